"""A data set for zero-shot learning, and where it is read from. The layouts of others are read by originals.py."""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tinyldm.errors import UserError

KEYS = ("features", "labels", "unseen_classes")


@dataclass
class Dataset:
    """Features, labels and class texts, checked.

    Attributes:
        name: of the folder or file.
        features: (N, D) float32.
        labels: (N,) int64, indices into the classes.
        class_ids, class_names: (C,) of each class: the number in the file, and what it is called.
        unseen: indices of the unseen classes (U,), ascending. All others are seen.
        texts: (C, T) float32, or None while there are only `articles`.
        articles: a text of each class, or None.
        seen_test: rows of `features` that the data set itself keeps from training, or None.
        validation_classes: seen classes that the data set itself holds out to choose by, or None.
        simulated: the features are not of images. Every report says so.
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

    def check(self) -> "Dataset":
        """Itself.

        Raises:
            UserError: for shapes that do not fit, values that are not finite, or classes without images or text.
        """
        if self.features.ndim != 2 or len(self.features) != len(self.labels):
            raise UserError(
                f"{self.name}: features are {_shape(self.features)} and labels {_shape(self.labels)}; "
                "give (images, dimensions) and one label an image"
            )
        if len(broken := np.flatnonzero(~np.isfinite(self.features).all(1))):
            raise UserError(
                f"{self.name}: the features of {len(broken)} images are not finite, those of row {broken[0]} first; "
                "compute them again or leave these images out"
            )
        if self.texts is not None:
            if self.texts.ndim != 2 or len(self.texts) != len(self.class_ids):
                raise UserError(
                    f"{self.name}: texts are {_shape(self.texts)}; give one row for each of {len(self.class_ids)} classes"
                )
            if not np.isfinite(self.texts).all():
                raise UserError(f"{self.name}: the text vector of {self._names(~np.isfinite(self.texts).all(1))} is not finite")
            if (empty := ~self.texts.any(1)).any():
                raise UserError(f"{self.name}: {self._names(empty)} has no text: its vector is all 0")
        elif self.articles is None:
            raise UserError(f"{self.name}: there are no class texts; give data.texts, a texts.npz or articles.jsonl")
        else:
            empty = np.array([not article.split() for article in self.articles])
            if empty.any():
                raise UserError(f"{self.name}: {self._names(empty)} has no text; write one, or leave the class out")
        if self.seen_test is not None and (
            self.seen_test.ndim != 1 or self.seen_test.dtype.kind not in "iu" or (self.seen_test >= len(self.labels)).any()
        ):
            raise UserError(f"{self.name}: seen_test must be numbers of rows below {len(self.labels)}")
        images = np.bincount(self.labels, minlength=len(self.class_ids))
        if not len(self.unseen) or len(self.seen) < 2:
            raise UserError(f"{self.name}: {len(self.seen)} seen and {len(self.unseen)} unseen classes; give at least 2 and 1")
        if not images[self.unseen].any():
            raise UserError(f"{self.name}: no image is of an unseen class; there is nothing to test on")
        trained = np.bincount(
            np.delete(self.labels, self.seen_test if self.seen_test is not None else []), minlength=len(images)
        )
        if (empty := ~trained.astype(bool) & np.isin(np.arange(len(images)), self.seen)).any():
            raise UserError(f"{self.name}: {self._names(empty)} is a seen class without images to train on; leave it out")
        return self

    def _names(self, where: np.ndarray) -> str:
        found = np.flatnonzero(where)
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return f"class {self.class_ids[found[0]]} ({self.class_names[found[0]]}){more}"


# ------------------------------------------------------------------------------------------------------- reading, writing


def load(path: str, split: str = "easy", texts: str | None = None) -> Dataset:
    """Whatever `data.path` names.

    Raises:
        UserError: for a path that is none of the layouts, or whose content does not fit together.
    """
    from zsl import originals, text

    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"data.path {path} does not exist")
    if place.is_file():
        data = load_npz(place, text.read(Path(texts).expanduser()) if texts else None)
    elif originals.is_original(place):
        data = originals.load(place, split)
        if texts:
            data = with_texts(data, text.read(Path(texts).expanduser()))
    elif (place / "features.npz").is_file():
        beside = [place / name for name in ("texts.npz", "articles.jsonl") if (place / name).is_file()]
        file = Path(texts).expanduser() if texts else beside[0] if beside else None
        data = load_npz(place / "features.npz", text.read(file) if file else None)
        data.name = place.name
    else:
        raise UserError(f"{path} holds no data set: there is no features.npz, res101.mat, nor train_test_split_*.mat in it")
    return data.check()


def load_npz(file: Path, texts: "ClassTexts | None" = None) -> Dataset:
    """A data set in one .npz, with its texts in it or given.

    Keys: features (N, D), labels (N,) of any integers, unseen_classes (U,) of the same; texts (C, T), classes (C,) and
    class_names (C,) unless `texts` is given; if they apply seen_test (rows), validation_classes and simulated.

    Raises:
        UserError: for a missing key, a wrong type, or labels of classes that have no text.
    """
    arrays = read_npz(file, KEYS)
    if texts is None:
        if not {"texts", "classes"} <= arrays.keys():
            raise UserError(f"{file} has no texts and classes in it; give data.texts, a texts.npz or articles.jsonl")
        texts = ClassTexts.from_arrays(file, arrays)
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
        simulated=bool(arrays.get("simulated", False)),
    )


def save_npz(data: Dataset, file: Path) -> None:
    """Write a data set with ready-made texts as `load_npz` reads it."""
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


@dataclass
class ClassTexts:
    """Texts of classes: their ids (C,), names, and either vectors (C, T) or articles."""

    ids: np.ndarray
    names: list[str]
    vectors: np.ndarray | None = None
    articles: list[str] | None = None

    @classmethod
    def from_arrays(cls, file: Path, arrays: dict[str, np.ndarray]) -> "ClassTexts":
        """From the keys texts, classes and, if there, class_names.

        Raises:
            UserError: for shapes that do not fit, or an id that is there twice.
        """
        ids, vectors = arrays["classes"], _numbers(file, "texts", arrays["texts"]).astype(np.float32)
        names = [str(name) for name in arrays.get("class_names", ids)]
        if vectors.ndim != 2 or not len(ids) == len(vectors) == len(names):
            raise UserError(
                f"{file}: texts are {_shape(vectors)}, classes {_shape(ids)}, names {len(names)}; give one of each a class"
            )
        if len(np.unique(ids)) < len(ids):
            raise UserError(f"{file}: a class is in `classes` twice")
        return cls(ids, names, vectors=vectors)

    def index_of(self, ids: np.ndarray, what: str) -> np.ndarray:
        """Positions of class ids among ours.

        Raises:
            UserError: for an id that has no text.
        """
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UserError(f"{what} are {_shape(ids)} of {ids.dtype}; give a row of whole numbers")
        unknown = np.setdiff1d(ids, self.ids)
        if len(unknown):
            raise UserError(f"{what} are out of range: class {unknown[0]} has no text (texts are of {len(self.ids)} classes)")
        order = np.argsort(self.ids)
        return order[np.searchsorted(self.ids[order], ids)].astype(np.int64)


def with_texts(data: Dataset, texts: ClassTexts) -> Dataset:
    """The same images with other texts of the same classes."""
    index = texts.index_of(data.class_ids, "class ids of the data set")
    return replace(
        data,
        texts=None if texts.vectors is None else texts.vectors[index],
        articles=None if texts.articles is None else [texts.articles[i] for i in index],
        class_names=[texts.names[i] for i in index],
    )


def read_npz(file: Path, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """All arrays of a .npz; objects in it are refused, never unpickled.

    Raises:
        UserError: when it is no such file, or a key is missing.
    """
    try:
        with np.load(file, allow_pickle=False) as opened:
            if missing := [key for key in needed if key not in opened.files]:
                raise UserError(f"{file} has no {' and no '.join(missing)}; it has {', '.join(opened.files) or 'nothing'}")
            return {key: opened[key] for key in opened.files}
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is no .npz of plain arrays ({error}); objects in it are not read") from error


def write_npz(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a .npz so that a kill at any moment leaves the old file or the new one.

    Raises:
        UserError: where it cannot be written.
    """
    aside = file.with_name(f".{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as opened:
            np.savez_compressed(opened, **arrays)
        aside.replace(file)
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); choose another place") from error


def _numbers(file: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{file}: {key} are of {array.dtype}; give numbers")
    return array


def _shape(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "one number"
