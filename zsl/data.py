"""The data set for zero-shot learning, and its .npz file. originals.py reads other layouts; load.py decides which one it is."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tinyldm.errors import UserError, boundary
from tinyldm.limits import read_arrays

KEYS = ("features", "labels", "unseen_classes")


@dataclass
class Dataset:
    """Features, labels and class texts.

    Attributes:
        name: name of the folder or file.
        features: (N, D) float32.
        labels: (N,) int64, indices into the classes.
        class_ids, class_names: (C,) the number of each class in the file, and its name.
        unseen: (U,) indices of the unseen classes, ascending. All other classes are seen.
        texts: (C, T) float32, or None if there are only `articles`.
        articles: a text for each class, or None.
        seen_test: rows of `features` that the data set itself reserves for testing, or None.
        validation_classes: seen classes that the data set itself holds out for validation, or None.
        simulated: the features do not come from images. Every report says so.
    """

    name: str
    features: np.ndarray
    labels: np.ndarray
    class_ids: np.ndarray
    class_names: list[str]
    unseen: np.ndarray
    texts: np.ndarray | None = None
    articles: list[str] | None = None
    seen_test: np.ndarray | None = None
    validation_classes: np.ndarray | None = None
    simulated: bool = False

    @property
    def seen(self) -> np.ndarray:
        """Indices of the seen classes (K,), ascending."""
        return np.setdiff1d(np.arange(len(self.class_ids)), self.unseen)

    @property
    def class_texts(self) -> "ClassTexts":
        """The texts of the classes, as vectors or as articles."""
        return ClassTexts(self.class_ids, self.class_names, self.texts, self.articles)

    def check(self) -> "Dataset":
        """Check the data and return self.

        Raises:
            UserError: if shapes do not match, values are not finite, or a class has no images or no text.
        """
        self._check_features()
        self._check_texts()
        self._check_classes()
        return self

    def _check_features(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.labels) or not self.features.size:
            raise UserError(
                f"{self.name}: features are {_shape(self.features)} and labels {_shape(self.labels)}; "
                "features must be (images, dimensions), with one label per image"
            )
        if len(broken := np.flatnonzero(~np.isfinite(self.features).all(1))):
            raise UserError(
                f"{self.name}: the features of {len(broken)} images are not finite, first in row {broken[0]}; "
                "recompute them or remove these images"
            )

    def _check_texts(self) -> None:
        if self.texts is not None:
            if self.texts.ndim != 2 or len(self.texts) != len(self.class_ids):
                raise UserError(
                    f"{self.name}: texts are {_shape(self.texts)}; there must be {len(self.class_ids)} rows, one per class"
                )
            if len(broken := np.flatnonzero(~np.isfinite(self.texts).all(1))):
                raise UserError(f"{self.name}: the text vector of {self._names(broken)} is not finite; recompute it")
            if len(empty := np.flatnonzero(~self.texts.any(1))):
                raise UserError(f"{self.name}: {self._names(empty)} has no text: its vector is all 0")
        elif self.articles is None:
            raise UserError(f"{self.name}: there are no class texts; set data.texts to a texts.npz or articles.jsonl")
        elif len(empty := np.flatnonzero([not article.split() for article in self.articles])):
            raise UserError(f"{self.name}: {self._names(empty)} has no text; write one or remove the class")

    def _check_classes(self) -> None:
        reserved = np.zeros(0, np.int64) if self.seen_test is None else self.seen_test
        if reserved.ndim != 1 or reserved.dtype.kind not in "iu" or not np.isin(reserved, range(len(self.labels))).all():
            raise UserError(f"{self.name}: seen_test must hold row numbers below {len(self.labels)}")
        images = np.bincount(self.labels, minlength=len(self.class_ids))
        if not len(self.unseen) or len(self.seen) < 2:
            raise UserError(
                f"{self.name}: {len(self.seen)} seen and {len(self.unseen)} unseen classes; there must be at least 2 and 1"
            )
        if not images[self.unseen].any():
            raise UserError(f"{self.name}: no image is of an unseen class, so there is nothing to test on; add some")
        train_images = np.bincount(np.delete(self.labels, reserved), minlength=len(images))
        if len(empty := self.seen[train_images[self.seen] == 0]):
            raise UserError(
                f"{self.name}: {self._names(empty)} is a seen class without images to train on; add images or remove the class"
            )

    def _names(self, classes: np.ndarray) -> str:
        """Name the first class and count the others."""
        first = classes[0]
        more = f" and {len(classes) - 1} more" if len(classes) > 1 else ""
        return f"class {self.class_ids[first]} ({self.class_names[first]}){more}"


@dataclass
class ClassTexts:
    """Texts of classes: ids (C,), names, and either vectors (C, T) or articles."""

    ids: np.ndarray
    names: list[str]
    vectors: np.ndarray | None = None
    articles: list[str] | None = None

    @classmethod
    def from_arrays(cls, file: Path, arrays: dict[str, np.ndarray]) -> "ClassTexts":
        """Read the keys texts and classes, and class_names if present.

        Raises:
            UserError: if shapes do not match or an id occurs twice.
        """
        ids, vectors = arrays["classes"], _numbers(file, "texts", arrays["texts"]).astype(np.float32)
        names = [str(name) for name in arrays.get("class_names", ids)]
        if vectors.ndim != 2 or not len(ids) == len(vectors) == len(names):
            raise UserError(
                f"{file}: texts are {_shape(vectors)}, classes {_shape(ids)}, names {len(names)}; there must be one per class"
            )
        if len(np.unique(ids)) < len(ids):
            raise UserError(f"{file}: a class occurs twice in `classes`; remove one of the two")
        return cls(ids, names, vectors=vectors)

    def index_of(self, ids: np.ndarray, what: str) -> np.ndarray:
        """Positions of class ids in `self.ids`.

        Raises:
            UserError: if an id has no text.
        """
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UserError(f"{what} are {_shape(ids)} of {ids.dtype}; they must be a 1-d array of integers")
        unknown = np.setdiff1d(ids, self.ids)
        if len(unknown):
            raise UserError(f"{what} are out of range: class {unknown[0]} has no text (there are {len(self.ids)} texts)")
        order = np.argsort(self.ids)
        return order[np.searchsorted(self.ids[order], ids)].astype(np.int64)

    def index_by_name(self, names: list[str], what: str) -> np.ndarray:
        """Positions of classes by name: `Red rose`, `red_rose` and `007.Red_Rose` are one. A bare number is a class id.

        Raises:
            UserError: if a name has no text, or has several, or its number is the id of another class.
        """
        known: dict[str, list[int]] = {}
        for position, name in enumerate(self.names):
            known.setdefault(_plain(name), []).append(position)
        by_id = {int(number): position for position, number in enumerate(self.ids)}
        positions = []
        for name in names:
            number, _, rest = name.partition(".") if "." in name else (name, "", "")
            matches = known.get(_plain(name)) or known.get(_plain(rest), [])
            numbered = by_id.get(int(number)) if number.isdecimal() else None
            if not matches and not rest and numbered is not None:
                matches = [numbered]
            if len(matches) != 1:
                there = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
                how = "several texts" if matches else "no text"
                raise UserError(f"{what}: the class {name!r} has {how}; texts are for {there}: give both the same names")
            if rest and numbered is not None and numbered != matches[0]:
                raise UserError(
                    f"{what}: the class {name!r} has the number {number}, but among the texts class {int(number)} is "
                    f"{self.names[numbered]!r}: fix the number or the name"
                )
            positions += matches
        if len(set(positions)) < len(positions):
            raise UserError(f"{what}: two classes have the same text; give each class a text of its own")
        return np.array(positions, np.int64)


def with_texts(data: Dataset, texts: ClassTexts) -> Dataset:
    """The same images with other texts for the same classes."""
    index = texts.index_of(data.class_ids, "class ids of the data set")
    return replace(
        data,
        texts=None if texts.vectors is None else texts.vectors[index],
        articles=None if texts.articles is None else [texts.articles[i] for i in index],
        class_names=[texts.names[i] for i in index],
    )


# ------------------------------------------------------------------------------------------------------- reading, writing


def _plain(name: str) -> str:
    """Letters and digits of a class name in lower case, without the number before its first dot: `007.Red_Rose` -> redrose."""
    number, dot, rest = name.partition(".")
    return re.sub(r"[\W_]+", "", (rest if dot and number.isdecimal() else name).lower())


def load_npz(file: Path, texts: ClassTexts | None = None) -> Dataset:
    """Read a data set from one .npz. Its texts are in the same file unless `texts` is given.

    Keys: features (N, D), labels (N,) as any integers, unseen_classes (U,) as the same integers. Without `texts`: texts (C, T),
    classes (C,) and optionally class_names (C,). Optional: seen_test (rows), validation_classes, simulated.

    Raises:
        UserError: if a key is missing, a type is wrong, or a label has no text.
    """
    arrays = read_npz(file, KEYS)
    if texts is None:
        if not {"texts", "classes"} <= arrays.keys():
            raise UserError(f"{file} holds no texts and classes; set data.texts to a texts.npz or articles.jsonl")
        texts = ClassTexts.from_arrays(file, arrays)
    elif "class_names" in arrays and "texts" not in arrays:  # written by `zsl features`: its numbers are those of folders
        arrays = _named_as(texts, file, arrays)
    index = texts.index_of(arrays["labels"], f"labels in {file}")
    validation = arrays.get("validation_classes")
    return Dataset(
        name=file.stem,
        features=_numbers(file, "features", arrays["features"]).astype(np.float32),
        labels=index,
        class_ids=texts.ids,
        class_names=texts.names,
        unseen=np.unique(texts.index_of(arrays["unseen_classes"], f"unseen_classes in {file}")),
        texts=texts.vectors,
        articles=texts.articles,
        seen_test=arrays.get("seen_test"),
        validation_classes=None if validation is None else texts.index_of(validation, f"validation_classes in {file}"),
        simulated=bool(np.any(arrays.get("simulated", False))),
    )


def _named_as(texts: ClassTexts, file: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with the class ids of the texts: class n, by its name, instead of the n-th folder."""
    names = [str(name) for name in arrays["class_names"]]
    ids = texts.ids[texts.index_by_name(names, f"class_names in {file}")]
    own = ClassTexts(np.arange(1, len(names) + 1), names)
    keys = [key for key in ("labels", "unseen_classes", "validation_classes") if key in arrays]
    return {**arrays, **{key: ids[own.index_of(arrays[key], f"{key} in {file}")] for key in keys}}


def save_npz(data: Dataset, file: Path) -> None:
    """Write a data set with text vectors in the format of `load_npz`."""
    if data.texts is None:
        raise ValueError("only data sets with text vectors can be saved")
    arrays = {
        "features": data.features,
        "labels": data.class_ids[data.labels],
        "unseen_classes": data.class_ids[data.unseen],
        "texts": data.texts,
        "classes": data.class_ids,
        "class_names": np.array(data.class_names),
        "simulated": np.array(data.simulated),
    }
    if data.seen_test is not None:
        arrays["seen_test"] = data.seen_test
    if data.validation_classes is not None:
        arrays["validation_classes"] = data.class_ids[data.validation_classes]
    write_npz(file, arrays)


def read_npz(file: Path, required: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read all arrays of a .npz. Pickled objects in it are refused, never unpickled.

    Raises:
        UserError: if the file is not a .npz or a key is missing.
    """
    if not file.exists():
        raise UserError(f"{file} does not exist")
    with boundary(f"{file} is not a .npz of plain arrays", "pickled objects are not read"):
        arrays = read_arrays(file)
    if missing := [key for key in required if key not in arrays]:
        raise UserError(f"{file} has no {' and no '.join(missing)}; it has {', '.join(arrays) or 'nothing'}")
    return arrays


def write_npz(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a .npz atomically: if the program is killed, either the old file or the new file remains.

    Raises:
        UserError: if the file cannot be written.
    """
    temporary = file.with_name(f".{file.name}")
    with boundary(f"{file} cannot be written", "choose another path"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as opened:
            np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]  # the stub takes every value for `allow_pickle`
        temporary.replace(file)


def _numbers(file: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{file}: {key} are of {array.dtype}; they must be numbers")
    return array


def _shape(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"
