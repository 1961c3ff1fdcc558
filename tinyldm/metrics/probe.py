"""Does an image show its label? A linear probe on features of real images says so (Alain & Bengio 2017)."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tinyldm.data.batch import UNKNOWN
from tinyldm.metrics.distances import GROUPS, groups

INVERSE_L2 = 1e-2  # C of the logistic regression on standardised features
MIN_IMAGES = 10  # of a value, to learn it and to be judged by it


class Probe:
    """Logistic regression on standardised features, in which each value counts the same, however rare it is.

    Args:
        features: (N, D).
        labels: (N,) the number of each image's value; UNKNOWN is left out.

    Attributes:
        values: the values that it knows: those with at least MIN_IMAGES images. With fewer than two it knows none.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray):
        values, counts = np.unique(labels[labels != UNKNOWN], return_counts=True)
        self.values = values[counts >= MIN_IMAGES]
        if len(self.values) < 2:
            self.values = self.values[:0]
            return
        known = np.isin(labels, self.values)
        regression = LogisticRegression(C=INVERSE_L2, class_weight="balanced", max_iter=1000)
        self.classifier = make_pipeline(StandardScaler(), regression)
        self.classifier.fit(features[known], labels[known])

    def right(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(N,) whether it reads the label of each image."""
        return self.classifier.predict(features) == labels


def shares(right: np.ndarray, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of images whose label was read: the mean over values of the share of each, and that of all images.

    The first is the balanced accuracy, in which guessing gives 1 / (number of values). In the second, a rare value may be
    ignored at hardly any cost.

    Args:
        right: (N,) whether the label of an image was read.
        labels: (N,).
        values: (V,) the values that count; each has images.

    Returns:
        (1 + GROUPS, 2) both shares, and those without one group of images each, for distances.jackknife.
    """
    members = labels == values[:, None]  # (V, N)
    group = groups(len(labels))

    def both(kept: np.ndarray) -> tuple[float, float]:
        counts, hits = (members & kept).sum(1), (members & kept & right).sum(1)
        return (hits[counts > 0] / counts[counts > 0]).mean(), hits.sum() / counts.sum()

    return np.array([both(kept) for kept in (group >= 0, *(group != g for g in range(GROUPS)))])
