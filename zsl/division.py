"""Split the images of a data set into parts for training and testing, and scale their features.

data set --> Division --> (training images, seen test images, unseen test images), with seen classes numbered first
"""

from dataclasses import dataclass

import numpy as np

from tinyldm.errors import UserError
from tinyldm.randomness import derive_seed
from zsl.data import Dataset


@dataclass
class Division:
    """The training and test parts of one training. Classes get new numbers: seen 0..K-1, then unseen K..K+U-1.

    Attributes:
        classes: index in the data set of each class (K + U,).
        seen_classes: K.
        train, seen_test, unseen_test: rows of the data set's features.
        labels: (N,) the new class number of each row, or -1 if the row is not used.
    """

    classes: np.ndarray
    seen_classes: int
    train: np.ndarray
    seen_test: np.ndarray
    unseen_test: np.ndarray
    labels: np.ndarray


def divide(data: Dataset, seed: int, held_out_images: float, held_out_classes: float | None = None) -> Division:
    """The division for the final training, or with `held_out_classes` the one for validation.

    The final test images (unseen classes, and held-out images of seen classes) are never used for validation. Validation holds
    out other images of seen classes.

    Args:
        seed: determines which classes and images are held out.
        held_out_images: fraction of each seen class's images that becomes `seen_test`. In the final training, data with
            its own `seen_test` uses that instead.
        held_out_classes: fraction of the seen classes that replaces the unseen classes, whose images are not used. None: test
            on the real unseen classes.

    Raises:
        UserError: if fewer than two classes remain.
    """
    seen, unseen = data.seen, data.unseen
    seen_test = data.seen_test
    if seen_test is None:
        seen_test = _held_out(data.labels, seen, held_out_images, seed, "held-out images")
    rows = np.arange(len(data.labels))
    tested = np.isin(rows, seen_test)
    if held_out_classes is not None:
        if data.validation_classes is not None:
            unseen = data.validation_classes
        else:
            count = max(1, round(held_out_classes * len(seen)))
            shuffled = np.random.default_rng(derive_seed("held-out classes", seed)).permutation(seen)
            unseen = np.sort(shuffled[:count])
        seen = np.setdiff1d(seen, unseen)
        if len(seen) < 2:
            raise UserError(
                f"data.held_out_classes {held_out_classes} leaves {len(seen)} of {len(data.seen)} seen classes; lower it"
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


def _held_out(labels: np.ndarray, classes: np.ndarray, fraction: float, seed: int, purpose: str) -> np.ndarray:
    """Rows of a fraction of each class's images. At least one image per class is left."""
    random = np.random.default_rng(derive_seed(purpose, seed))
    chosen = []
    for index in classes:
        rows = random.permutation(np.flatnonzero(labels == index))
        chosen.append(rows[: min(round(fraction * len(rows)), len(rows) - 1)])
    return np.sort(np.concatenate(chosen))


@dataclass
class Scaling:
    """x -> (x - shift) / scale, or rows of length 1. Fitted on the training images and applied to all images.

    Attributes:
        shift, scale: (1,), or one number per column (D,).
        rows: scale each row to length 1 instead.
    """

    shift: np.ndarray
    scale: np.ndarray
    rows: bool = False

    @classmethod
    def fit(cls, name: str, train: np.ndarray) -> "Scaling":
        """Fit the scaling `name` (see config.DataConfig.preprocessing) on training features (n, D).

        Raises:
            UserError: if all features are equal.
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
        if name == "centred":
            mean, variance = train.mean(0, dtype=np.float64), train.var(0, dtype=np.float64).mean()
        else:
            mean, variance = train.mean(dtype=np.float64), train.var(dtype=np.float64)
        if variance == 0:
            raise UserError("all features are the same number; check the file")
        scale = variance if name == "variance" else np.sqrt(variance)
        return cls(np.atleast_1d(mean).astype(np.float32), np.array([scale], np.float32))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Scale features (N, D) float32."""
        if self.rows:
            return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        return (features - self.shift) / self.scale
