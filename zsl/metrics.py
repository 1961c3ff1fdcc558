"""Accuracies of zero-shot and generalised zero-shot classification, and the exact seen-unseen curve. All are shares of 1."""

from typing import NamedTuple

import numpy as np
import torch


def top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images (N,) that are right."""
    return float((predicted == labels).mean())


def per_class_top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes in `labels` of the share of their images that are right (Xian et al. 2017)."""
    _, index = np.unique(labels, return_inverse=True)
    return float((np.bincount(index, predicted == labels) / np.bincount(index)).mean())


def harmonic_mean(seen: float, unseen: float) -> float:
    """H = 2 S U / (S + U) (Xian et al. 2017); 0 where both are."""
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def vote(similarities: np.ndarray, owners: np.ndarray, neighbours: int, classes: int) -> np.ndarray:
    """The class that most of the `neighbours` most similar samples have; of several, the one with the smallest number.

    Args:
        similarities: of N images to M samples (N, M).
        owners: the samples' classes (M,) in 0..classes-1.

    Returns:
        (N,)
    """
    nearest = torch.from_numpy(similarities).topk(neighbours, sorted=False).indices.numpy()
    cells = np.arange(len(similarities))[:, None] * classes + owners[nearest]
    return np.bincount(cells.ravel(), minlength=len(similarities) * classes).reshape(-1, classes).argmax(1)


class Curve(NamedTuple):
    """Accuracy on seen against unseen classes as an offset is added to the scores of the unseen ones (Chao et al. 2016).

    Attributes:
        offsets: ascending (P,), the first -infinity: just above each of them one or more images change sides.
        seen: share of seen classes' images that are right (P,), falling.
        unseen: the same of unseen classes' images, rising.
    """

    offsets: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray

    @property
    def area(self) -> float:
        """The area under it (AUSUC), of the straight lines between its points."""
        return float(np.trapezoid(self.seen, self.unseen))


def seen_unseen_curve(
    seen_scores: np.ndarray, seen_labels: np.ndarray, unseen_scores: np.ndarray, unseen_labels: np.ndarray, seen_classes: int
) -> Curve:
    """The curve at every offset where it changes, instead of at 400 of them.

    With s the best score of an image among seen classes and u among unseen ones, the offset d makes it unseen as soon as
    d > s - u (at equality the seen class stands first and wins). An image counts where the best class on its side is the right
    one: up to its s - u for a seen image, above it for an unseen one. So the curve is two cumulative counts over the
    sorted differences.

    Args:
        seen_scores: of images of seen classes to all classes, the seen ones first (N, K + U).
        seen_labels: (N,) in 0..K-1.
        unseen_scores, unseen_labels: of images of unseen classes (M, K + U) and (M,) in K..K+U-1.
        seen_classes: K.
    """
    offsets, right = [], []
    for scores, labels, is_seen in ((seen_scores, seen_labels, True), (unseen_scores, unseen_labels, False)):
        first, second = scores[:, :seen_classes], scores[:, seen_classes:]
        best = first.argmax(1) if is_seen else second.argmax(1) + seen_classes
        turns = first.max(1).astype(np.float64) - second.max(1)
        right.append(best == labels)
        offsets.append(turns)
    points = np.unique(np.concatenate([[-np.inf], offsets[0][right[0]], offsets[1][right[1]]]))
    # Just above a point: seen images whose difference is larger are still right, unseen ones up to it are right by now.
    lost = np.searchsorted(np.sort(offsets[0][right[0]]), points, "right")
    won = np.searchsorted(np.sort(offsets[1][right[1]]), points, "right")
    return Curve(points, (right[0].sum() - lost) / len(seen_labels), won / len(unseen_labels))
