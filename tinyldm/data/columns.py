"""The columns of a data set: which one holds the images, and which classes a label column has."""

from collections.abc import Iterable
from typing import Any

import datasets
from tqdm.auto import tqdm

from tinyldm.config.schema import DataConfig
from tinyldm.data.layout import natural
from tinyldm.errors import UserError

MAX_CLASSES = 1000


def image_column(data: DataConfig, features: datasets.Features) -> str:
    """The column of images: data.image_column, else `image`, else the only one of type Image."""
    names = ", ".join(features)
    if data.image_column:
        if data.image_column not in features:
            raise UserError(f"data set {data.name!r} has no column {data.image_column!r}; it has: {names}")
        feature = features[data.image_column]
        encoded = getattr(feature, "dtype", None) in ("binary", "large_binary", "string", "large_string")  # files or paths
        if not (isinstance(feature, datasets.Image) or encoded or (isinstance(feature, dict) and "bytes" in feature)):
            raise UserError(f"data.image_column {data.image_column!r} of {data.name!r} holds {feature}, not encoded images")
        return data.image_column
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    images = images or [
        name for name, feature in features.items() if isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
    ]
    if not images:
        raise UserError(
            f"data set {data.name!r} has no column of the type Image; it has: {names}; "
            "set data.image_column to the one with encoded images"
        )
    if len(images) > 1 and "image" not in images:
        raise UserError(f"data set {data.name!r} has several columns of images: set data.image_column to one of {images}")
    return "image" if "image" in images else images[0]


def classes(data: DataConfig, features: datasets.Features, values: Iterable[Any]) -> tuple[list[str], dict[Any, int] | None]:
    """The names of the classes in data.label_column, and the number of each of its values.

    ClassLabel columns keep their numbers. Integers are numbered in their order, strings in natural order: 2 before 10.

    Args:
        values: the cells of the column; read only where its type does not name the classes.

    Raises:
        UserError: for a column that holds no classes, or too many.
    """
    feature = features[data.label_column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), None
    kind = getattr(feature, "dtype", "")
    if not (kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint"))):
        likely = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)]
        raise UserError(
            f"data.label_column {data.label_column!r} of {data.name!r} holds {kind or type(feature).__name__}, not classes "
            f"(class labels, integers or strings); columns of class labels: {', '.join(likely) or 'none'}"
        )
    found: set[Any] = set()
    for value in tqdm(values, "reading the labels", unit="image", leave=False, delay=2):
        found.add(value)
        if len(found) > MAX_CLASSES + 1:
            raise UserError(
                f"data.label_column {data.label_column!r} of {data.name!r} has more than {MAX_CLASSES:,} values, so it does "
                "not hold classes: choose another column"
            )
    found.discard(None)
    if not found:
        raise UserError(f"data.label_column {data.label_column!r} of {data.name!r} is empty: choose another column")
    ordered = sorted(found, key=natural if "string" in kind else None)
    return [str(value) for value in ordered], {value: number for number, value in enumerate(ordered)}
