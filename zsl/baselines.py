"""Two plain baselines that a generative method should beat: ESZSL, and prototypes from the most similar seen classes.

Each has a few settings. The honest protocol chooses them on held-out seen classes, and the published protocol on the test
classes, as for the iteration and weight of the generative methods.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from zsl.classify import unit
from zsl.text import similarities

NEIGHBOURS = (1, 2, 3, 5, 8, 12, 20)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


class Linear:
    """A classifier (see classify.Scorer) whose scores are inner products.

    Args:
        weights: (C, D), one row per class.
        centre: subtracted from the features first (D,).
        cosine: use cosines instead of inner products.
    """

    def __init__(self, weights: np.ndarray, centre: np.ndarray, cosine: bool):
        self.weights, self.centre, self.cosine = unit(weights) if cosine else weights, centre, cosine

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores (N, C) of features (N, D)."""
        centred = features - self.centre
        return (unit(centred) if self.cosine else centred) @ self.weights.T

    def predict(self, features: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Classes (N,) of features (N, D), chosen from the classes `among` (A,)."""
        return among[self.scores(features)[:, among].argmax(1)]


def prototypes(features: np.ndarray, labels: np.ndarray, texts: np.ndarray, seen_classes: int) -> Iterator[tuple[Any, Linear]]:
    """Classify by the nearest prototype.

    The prototype of a seen class is the mean of its images. The prototype of an unseen class is the mean of the seen classes
    with the most similar texts, weighted by similarity. Distances are cosines, after the mean of the seen prototypes is
    subtracted from features and prototypes, as it is from the texts.

    Args:
        features: training images (N, D).
        labels: (N,) in 0..K-1.
        texts: texts of all classes, seen classes first (K + U, T).

    Yields:
        The setting (the number of seen classes that are averaged) and the classifier.
    """
    sums = np.zeros((seen_classes, features.shape[1]), np.float64)
    np.add.at(sums, labels, features)
    means = (sums / np.bincount(labels, minlength=seen_classes)[:, None]).astype(np.float32)
    centre = means.mean(0)
    for count in NEIGHBOURS:
        if count <= seen_classes:
            unseen = similarities(texts, seen_classes, count)[seen_classes:] @ means
            yield {"neighbours": count}, Linear(np.concatenate([means, unseen]) - centre, centre, cosine=True)


def eszsl(features: np.ndarray, labels: np.ndarray, texts: np.ndarray, seen_classes: int) -> Iterator[tuple[Any, Linear]]:
    """ESZSL (Romera-Paredes & Torr 2015): V = (X'X + g I)^-1 X'Y S (S'S + l I)^-1, scores x V s.

    The arguments are those of `prototypes`. Y is 1 for the class of an image and -1 for the others. The inverses come from two
    eigendecompositions, so all pairs of strengths cost little more than one pair.

    Yields:
        The setting (two strengths, as multiples of the mean eigenvalue) and the classifier.
    """
    centre = features.mean(0)
    x, s = (features - centre).astype(np.float64), texts[:seen_classes].astype(np.float64)
    y = -np.ones((len(labels), seen_classes))
    y[np.arange(len(labels)), labels] = 1
    visual, directions = np.linalg.eigh(x.T @ x)
    # S (S'S + l I)^-1 = (S S' + l I)^-1 S, so the smaller S S' (K, K) is enough. It has the same nonzero eigenvalues.
    textual, classes = np.linalg.eigh(s @ s.T)
    middle = directions.T @ (x.T @ y) @ classes
    products = classes.T @ (s @ texts.T.astype(np.float64))
    for g, strength in itertools.product(STRENGTHS, STRENGTHS):
        scaled = middle / (visual[:, None] + g * visual.mean()) / (textual + strength * textual.mean())
        weights = (directions @ (scaled @ products)).T
        yield {"visual": g, "textual": strength}, Linear(weights.astype(np.float32), centre, cosine=False)


BASELINES = {"prototype": prototypes, "eszsl": eszsl}
