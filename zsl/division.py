"""How the images of a data set are divided, and how their features are scaled.

data set --> Division --> (training images, seen test images, unseen test images), classes renumbered seen first
"""

from dataclasses import dataclass

import numpy as np

from tinyldm.errors import UserError
from tinyldm.randomness import derive_seed
from zsl.data import Dataset


@dataclass
class Division:
    """What one training may see, and what it is tested on. Classes are numbered anew: seen 0..K-1, then unseen K..K+U-1.

    Attributes:
        classes: the data set's index of each (K + U,).
        seen_classes: K.
        train, seen_test, unseen_test: rows of the data set's features.
        labels: (N,) the new number of each row's class, -1 where it takes no part.
    """

    classes: np.ndarray
    seen_classes: int
    train: np.ndarray
    seen_test: np.ndarray
    unseen_test: np.ndarray
    labels: np.ndarray


def divide(data: Dataset, seed: int, held_out_images: float, held_out_classes: float | None = None) -> Division:
    """The division for the final training, or with `held_out_classes` the one to choose by.

    What the final training is tested on takes no part in choosing: neither unseen classes nor held-out images of seen ones. To
    choose by, other images of seen classes are held out.

    Args:
        seed: decides which classes and images are held out.
        held_out_images: share of each seen class's images that becomes `seen_test`; for the final training data with a
            `seen_test` keep theirs.
        held_out_classes: share of the seen classes that stands in for the unseen ones, whose images are not touched. None:
            the real unseen classes are tested.

    Raises:
        UserError: where nothing would be left.
    """
    seen, unseen = data.seen, data.unseen
    seen_test = data.seen_test
    if seen_test is None:
        seen_test = _held_out(data.labels, seen, held_out_images, seed, "held-out images")
    rows = np.arange(len(data.labels))
    tested = np.isin(rows, seen_test)
    if held_out_classes is not None:
        unseen = data.validation_classes
        if unseen is None:
            count = max(1, round(held_out_classes * len(seen)))
            shuffled = np.random.default_rng(derive_seed("held-out classes", seed)).permutation(seen)
            unseen = np.sort(shuffled[:count])
        seen = np.setdiff1d(seen, unseen)
        if len(seen) < 2:
            raise UserError(
                f"data.held_out_classes {held_out_classes} leaves {len(seen)} of {len(data.seen)} seen classes; take less"
            )
    classes = np.concatenate([seen, unseen])
    number = np.full(len(data.class_ids), -1)
    number[classes] = np.arange(len(classes))
    labels = number[data.labels]
    if held_out_classes is not None:
        labels[tested] = -1
        tested = np.isin(rows, _held_out(labels, np.arange(len(seen)), held_out_images, seed, "images to choose by"))
    is_seen = (labels >= 0) & (labels < len(seen))
    return Division(
        classes=classes,
        seen_classes=len(seen),
        train=rows[is_seen & ~tested],
        seen_test=rows[is_seen & tested],
        unseen_test=rows[labels >= len(seen)],
        labels=labels,
    )


def _held_out(labels: np.ndarray, classes: np.ndarray, share: float, seed: int, what: str) -> np.ndarray:
    """Rows of `share` of each class's images, rounded, but never all."""
    random = np.random.default_rng(derive_seed(what, seed))
    chosen = []
    for index in classes:
        rows = random.permutation(np.flatnonzero(labels == index))
        chosen.append(rows[: min(round(share * len(rows)), len(rows) - 1)])
    return np.sort(np.concatenate(chosen))


@dataclass
class Scaling:
    """x -> (x - shift) / scale, or rows of length 1. Fitted on training images, the same for all others.

    Attributes:
        shift, scale: numbers, or one for each column (D,).
        rows: make each row's length 1 instead.
    """

    shift: np.ndarray
    scale: np.ndarray
    rows: bool = False

    @classmethod
    def fit(cls, name: str, train: np.ndarray) -> "Scaling":
        """Of config.DataConfig.preprocessing, from the training features (n, D).

        Raises:
            UserError: for features that are all the same.
        """
        zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
        match name:
            case "none":
                return cls(zero, one)
            case "l2":
                return cls(zero, one, rows=True)
            case "minmax":
                low, high = train.min(0), train.max(0)
                return cls(low, np.where(high > low, high - low, 1).astype(np.float32))
        mean, variance = train.mean(dtype=np.float64), train.var(dtype=np.float64)
        if name == "centred":
            mean, variance = train.mean(0, dtype=np.float64), train.var(0, dtype=np.float64).mean()
        if variance == 0:
            raise UserError("all features are the same number; look at the file")
        scale = variance if name == "variance" else np.sqrt(variance)
        return cls(np.atleast_1d(np.float32(mean)), np.float32([scale]))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Features (N, D) float32, scaled."""
        if self.rows:
            return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        return (features - self.shift) / self.scale
