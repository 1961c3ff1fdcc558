"""Accuracies of zero-shot and generalised zero-shot classification, and the exact seen-unseen curve. All values are in 0..1."""

from typing import NamedTuple

import numpy as np
import torch


def top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of the images (N,) that are classified correctly."""
    return float((predicted == labels).mean())


def per_class_top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of each class in `labels`, averaged over the classes (Xian et al. 2017)."""
    _, index = np.unique(labels, return_inverse=True)
    return float((np.bincount(index, predicted == labels) / np.bincount(index)).mean())


def harmonic_mean(seen: float, unseen: float) -> float:
    """H = 2 S U / (S + U) (Xian et al. 2017), and 0 if both are 0."""
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def vote(similarities: np.ndarray, owners: np.ndarray, neighbours: int, classes: int) -> np.ndarray:
    """The most frequent class among the `neighbours` most similar samples. In a tie, the smallest class number wins.

    Args:
        similarities: similarity of N images to M samples (N, M).
        owners: the class of each sample (M,), in 0..classes-1.

    Returns:
        Predicted classes (N,).
    """
    nearest = torch.from_numpy(similarities).topk(neighbours, sorted=False).indices.numpy()
    cells = np.arange(len(similarities))[:, None] * classes + owners[nearest]
    return np.bincount(cells.ravel(), minlength=len(similarities) * classes).reshape(-1, classes).argmax(1)


class Curve(NamedTuple):
    """Accuracy on seen and unseen classes when an offset is added to the scores of unseen classes (Chao et al. 2016).

    Attributes:
        offsets: ascending (P,), starting at -infinity. Just above each offset, one or more predictions change between seen and
            unseen classes.
        seen: accuracy on images of seen classes (P,), decreasing.
        unseen: accuracy on images of unseen classes (P,), increasing.
    """

    offsets: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray

    @property
    def area(self) -> float:
        """Area under the curve (AUSUC), with straight lines between the points."""
        return float(np.trapezoid(self.seen, self.unseen))


def seen_unseen_curve(
    seen_scores: np.ndarray, seen_labels: np.ndarray, unseen_scores: np.ndarray, unseen_labels: np.ndarray, seen_classes: int
) -> Curve:
    """The curve at every offset where it changes, instead of at 400 fixed offsets.

    Let s be the best score of an image among seen classes, and u among unseen classes. With an offset d > s - u, the prediction
    is an unseen class. At equality the seen class comes first and wins. An image can only be correct if the best class on its
    own side is correct: then a seen image is correct for d <= s - u, and an unseen image for d > s - u. The curve is therefore
    two cumulative counts over the sorted differences.

    Args:
        seen_scores: scores of images of seen classes for all classes, seen classes first (N, K + U).
        seen_labels: (N,) in 0..K-1.
        unseen_scores, unseen_labels: the same for images of unseen classes, (M, K + U) and (M,) in K..K+U-1.
        seen_classes: K.
    """
    offsets, correct = [], []
    for scores, labels, is_seen in ((seen_scores, seen_labels, True), (unseen_scores, unseen_labels, False)):
        first, second = scores[:, :seen_classes], scores[:, seen_classes:]
        best = first.argmax(1) if is_seen else second.argmax(1) + seen_classes
        correct.append(best == labels)
        offsets.append(first.max(1).astype(np.float64) - second.max(1))
    points = np.unique(np.concatenate([[-np.inf], offsets[0][correct[0]], offsets[1][correct[1]]]))
    # Just above a point, seen images with a larger difference are still correct. Unseen images up to it are already correct.
    lost = np.searchsorted(np.sort(offsets[0][correct[0]]), points, "right")
    won = np.searchsorted(np.sort(offsets[1][correct[1]]), points, "right")
    return Curve(points, (correct[0].sum() - lost) / len(seen_labels), won / len(unseen_labels))
