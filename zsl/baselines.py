"""Two plain methods that a generative one must beat: ESZSL, and the prototype made of the most similar seen classes.

Each has a few settings, chosen on held-out seen classes in the honest protocol and on the test classes in the published one, as
the generative methods' iteration and weight are.
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
    """Scores by an inner product: what `classify.figures` asks of a classifier.

    Args:
        weights: (C, D), one row a class.
        centre: taken from the features first (D,).
        cosine: compare directions.
    """

    def __init__(self, weights: np.ndarray, centre: np.ndarray, cosine: bool):
        self.weights, self.centre, self.cosine = unit(weights) if cosine else weights, centre, cosine

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(N, C) of features (N, D)."""
        centred = features - self.centre
        return (unit(centred) if self.cosine else centred) @ self.weights.T

    def predict(self, features: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Classes (N,), chosen among these (A,)."""
        return among[self.scores(features)[:, among].argmax(1)]


def prototypes(features: np.ndarray, labels: np.ndarray, texts: np.ndarray, seen_classes: int) -> Iterator[tuple[Any, Linear]]:
    """An unseen class is the mean of the seen classes with the most similar texts, weighted by their similarity; a seen
    class is the mean of its own images. Cosines, with the mean of the seen classes' means
    taken away on both sides, as in the texts.

    Args:
        features: training images (N, D).
        labels: (N,) in 0..K-1.
        texts: of all classes, the seen ones first (K + U, T).

    Yields:
        The number of seen classes, and the classifier.
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

    Arguments as `prototypes`; Y is 1 for an image's class and -1 for the others. The inverses are those of two
    eigendecompositions, so that all pairs of strengths cost little more than one.

    Yields:
        The two strengths, as multiples of the mean eigenvalue, and the classifier.
    """
    centre = features.mean(0)
    x, s = (features - centre).astype(np.float64), texts[:seen_classes].astype(np.float64)
    y = -np.ones((len(labels), seen_classes))
    y[np.arange(len(labels)), labels] = 1
    visual, directions = np.linalg.eigh(x.T @ x)
    # S'S (T, T) has the eigenvalues of S S' (K, K), and S (S'S + l I)^-1 = (S S' + l I)^-1 S: the small one is enough.
    textual, classes = np.linalg.eigh(s @ s.T)
    middle = directions.T @ (x.T @ y) @ classes
    products = classes.T @ (s @ texts.T.astype(np.float64))
    for g, strength in itertools.product(STRENGTHS, STRENGTHS):
        scaled = middle / (visual[:, None] + g * visual.mean()) / (textual + strength * textual.mean())
        weights = (directions @ (scaled @ products)).T
        yield {"visual": g, "textual": strength}, Linear(weights.astype(np.float32), centre, cosine=False)


BASELINES = {"prototype": prototypes, "eszsl": eszsl}
