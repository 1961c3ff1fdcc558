"""The columns of a data set: which one holds the images, and which values a column of labels has."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import datasets
from tqdm.auto import tqdm

from tinyldm.config.schema import DataConfig
from tinyldm.data.batch import UNKNOWN
from tinyldm.data.layout import natural
from tinyldm.errors import UserError

MAX_VALUES = 1000


@dataclass(frozen=True)
class LabelColumn:
    """A column of labels.

    Attributes:
        name: the name of the column.
        values: the names of its values, in the order of their numbers.
        numbers: cell -> number; None where cells hold numbers.
    """

    name: str
    values: list[str]
    numbers: dict[Any, int] | None = None

    def number_of(self, cell: Any) -> int:
        """The number of a cell's value. UNKNOWN for an empty cell, and for one whose value the column does not have."""
        number = cell if self.numbers is None else self.numbers.get(cell)
        return number if number is not None and 0 <= number < len(self.values) else UNKNOWN


def names_and_values(columns: Iterable[LabelColumn]) -> list[list[Any]]:
    """[[name, values], ...] as JSON. A list, since labels are numbered by the order of the columns."""
    return [[column.name, column.values] for column in columns]


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


def label_columns(
    data: DataConfig, features: datasets.Features, read: Callable[[list[str]], Iterable[tuple]]
) -> list[LabelColumn]:
    """The columns of data.label_columns with their values.

    ClassLabel columns keep their numbers. Booleans are `false` and `true`. Integers are numbered in their order, strings in
    natural order: 2 before 10.

    Args:
        read: gives the cells of columns, row by row. Called only if the type of a column does not name its values.

    Raises:
        UserError: for a column that holds no labels, or too many values.
    """
    found: dict[str, set[Any]] = {}
    for name in data.labels:
        feature, kind = features[name], getattr(features[name], "dtype", "")
        if isinstance(feature, datasets.ClassLabel) or kind == "bool":
            continue
        if not (kind in ("string", "large_string") or kind.startswith(("int", "uint"))):
            likely = [other for other, f in features.items() if isinstance(f, datasets.ClassLabel)]
            raise UserError(
                f"data.label_columns: {name!r} of {data.name!r} holds {kind or type(feature).__name__}, not labels (class "
                f"labels, booleans, integers or strings); columns of class labels: {', '.join(likely) or 'none'}"
            )
        found[name] = set()
    for row in tqdm(read(list(found)) if found else (), "reading the labels", unit="image", leave=False, delay=2):
        for (name, values), cell in zip(found.items(), row, strict=True):
            if cell not in (None, ""):
                values.add(cell)
            if len(values) > MAX_VALUES:
                raise UserError(
                    f"data.label_columns: {name!r} of {data.name!r} has more than {MAX_VALUES:,} values, too many to learn one "
                    "by one: choose another column"
                )
    return [_label_column(data, name, features[name], found.get(name, set())) for name in data.labels]


def _label_column(data: DataConfig, name: str, feature: Any, found: set[Any]) -> LabelColumn:
    if isinstance(feature, datasets.ClassLabel):
        if len(feature.names) > MAX_VALUES:
            raise UserError(f"data.label_columns: {name!r} of {data.name!r} has more than {MAX_VALUES:,} values")
        return LabelColumn(name, list(feature.names))
    if feature.dtype == "bool":
        return LabelColumn(name, ["false", "true"], {False: 0, True: 1})
    if not found:
        raise UserError(f"data.label_columns: {name!r} of {data.name!r} is empty: choose another column")
    ordered = sorted(found, key=natural if "string" in feature.dtype else None)
    return LabelColumn(name, [str(value) for value in ordered], {value: number for number, value in enumerate(ordered)})
