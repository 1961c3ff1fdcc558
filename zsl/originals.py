"""Read the folders that users of CIZSL, GAZSL and the benchmark of Xian et al. already have: .mat and .pkl files.

    CUB2011/  NABird/     features pfc_feat_*.mat, TF-IDF ..._TFIDF_new.mat, splits train_test_split_*.mat, labels_*.pkl
    GBU                   res101.mat and att_splits.mat (Xian et al. 2017)

.mat files are read by SciPy. Pickles are not trusted: only NumPy arrays and scalars are read from them. Class ids are those of
the files and start at 1. A file named SIMULATED in the folder marks features that do not come from images.
"""

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyldm.errors import UserError, boundary
from tinyldm.limits import check_expansion
from zsl.data import Dataset

LABELS_BYTES = 2**24  # two million labels


class FileNames(NamedTuple):
    """File names of one original data set. {split} is easy or hard, {part} is train or test.

    Attributes:
        features, labels: split -> name.
        validation: split -> number of validation classes, the last of the training classes, as in the published loader.
    """

    texts: str
    split: str
    features: dict[str, str]
    labels: dict[str, str]
    validation: dict[str, int | None]


# The original names are irregular: CUB's easy split has no suffix, and neither do the labels of NABird's easy split.
CUB = FileNames(
    texts="CUB_Porter_7551D_TFIDF_new.mat",
    split="train_test_split_{split}.mat",
    features={"easy": "pfc_feat_{part}.mat", "hard": "pfc_feat_{part}_hard.mat"},
    labels={"easy": "labels_{part}.pkl", "hard": "labels_{part}_hard.pkl"},
    validation={"easy": None, "hard": 30},
)
NAB = FileNames(
    texts="NAB_Porter_13217D_TFIDF_new.mat",
    split="train_test_split_NABird_{split}.mat",
    features={"easy": "pfc_feat_{part}_easy.mat", "hard": "pfc_feat_{part}_hard.mat"},
    labels={"easy": "labels_{part}.pkl", "hard": "labels_{part}_hard.pkl"},
    validation={"easy": None, "hard": 65},
)


class _Type:
    """Stands for a numpy.dtype in a pickle: an integer type and its byte order."""

    def __init__(self, code: str, *flags: Any):
        if not re.fullmatch("[iu][1248]", code):
            raise UserError(f"it holds {code}, not integers")
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def read(self, content: bytes | str) -> np.ndarray:
        raw = content.encode("latin1") if isinstance(content, str) else bytes(content)
        return np.frombuffer(raw, f"{self.order}{self.code}").astype(np.int64)


class _Array:
    """Stands for a numpy.ndarray in a pickle."""

    values: np.ndarray

    def __init__(self, *ignored: Any):
        """The values come later."""

    def __setstate__(self, state: tuple) -> None:
        kind, _, content = state[-3:]
        self.values = kind.read(content)


def _from_buffer(content: bytes, kind: _Type, *ignored: Any) -> _Array:
    array = _Array()
    array.values = kind.read(content)
    return array


def _scalar(kind: _Type, content: bytes | str) -> int:
    return int(kind.read(content)[0])


# The only names that a pickle may use, and what stands for them: nothing of NumPy is called with what the file says.
STANDINS: dict[tuple[str, str], Any] = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _Type}
for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    STANDINS |= {(f"{core}.multiarray", "_reconstruct"): _Array, (f"{core}.multiarray", "scalar"): _scalar}
    STANDINS[f"{core}.numeric", "_frombuffer"] = _from_buffer


class _LabelsOnly(pickle._Unpickler):
    """The reader in Python: the one in C takes memory for any number of objects that a file claims to have."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STANDINS:
            raise UserError(f"it asks for {module}.{name}")
        return STANDINS[module, name]


def read_labels(file: Path) -> np.ndarray:
    """Read labels (N,) int64 from a pickle of an array or of a list of NumPy scalars. Python 2 pickles are read as latin1.

    Raises:
        UserError: if the pickle holds anything else. Nothing in it is executed.
    """
    if not file.exists():
        raise UserError(f"{file} is missing")
    try:
        with boundary(f"{file} is not a pickle of labels"), file.open("rb") as opened:
            if len(content := opened.read(LABELS_BYTES + 1)) > LABELS_BYTES:
                raise ValueError("it is larger than any labels")
            labels = _LabelsOnly(io.BytesIO(content), encoding="latin1").load()
            if isinstance(labels, list) and all(type(label) is int for label in labels):
                return np.array(labels, np.int64)
            if not isinstance(labels, _Array):
                raise UserError(f"it holds a {type(labels).__name__}, not integers")
            return labels.values
    except UserError as error:
        if error.__cause__:
            raise
        raise UserError(
            f"{file} is refused: {error}; only arrays of numbers are read from a pickle, and nothing is executed"
        ) from error


def read_mat(file: Path, *keys: str, optional: tuple[str, ...] = ()) -> list[Any]:
    """Read the named variables of a .mat: arrays, and None for each of `optional` that the file does not have.

    Raises:
        UserError: if the file or a variable is missing, or if the file has MATLAB's version 7.3.
    """
    from scipy.io import loadmat, whosmat

    if not file.is_file():
        raise UserError(f"{file} is missing; docs/zsl.md says where to get the authors' files")
    wanted = [*keys, *optional]
    try:
        with boundary(f"{file} cannot be read as a .mat"):
            shapes = {name: shape for name, shape, _ in whosmat(file)}
            check_expansion(sum(8 * math.prod(shapes.get(key, ())) for key in wanted), file.stat().st_size)
            variables = loadmat(file, variable_names=wanted)
    except UserError as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise UserError(f"{file} has MATLAB's version 7.3; save it again with -v7") from error
        raise
    if missing := [key for key in keys if key not in variables]:
        raise UserError(f"{file} has no {' and no '.join(missing)}; it has {', '.join(shapes) or 'nothing'}")
    return [variables.get(key) for key in wanted]


def is_original(folder: Path) -> bool:
    """Whether the folder looks like one of the original folders."""
    return (folder / "res101.mat").is_file() or any(folder.glob("train_test_split_*.mat"))


def load(folder: Path, split: str) -> Dataset:
    """Load an original folder. The data set is not checked yet.

    Args:
        split: easy or hard, for CUB2011/ and NABird/.
    """
    with boundary(f"{folder} is not a data set of a known layout"):
        if (folder / "res101.mat").is_file():
            return load_gbu(folder)
        return load_wiki(folder, NAB if any(folder.glob("train_test_split_NABird_*.mat")) else CUB, split)


def load_wiki(folder: Path, names: FileNames, split: str) -> Dataset:
    """Load CUB-wiki or NAB-wiki. Label i means the i-th class in the list of the split."""
    train_ids, test_ids = (
        ids.ravel().astype(np.int64) for ids in read_mat(folder / names.split.format(split=split), "train_cid", "test_cid")
    )
    [texts] = read_mat(folder / names.texts, "PredicateMatrix")
    features, labels = [], []
    for part, ids in (("train", train_ids), ("test", test_ids)):
        if (ids < 1).any() or (ids > len(texts)).any():
            raise UserError(f"{folder}: class ids of the {split} split are out of range; the texts have {len(texts)} classes")
        file = folder / names.labels[split].format(part=part)
        own = read_labels(file)
        if (own < 0).any() or (own >= len(ids)).any():
            raise UserError(f"{file}: labels are out of range; the {split} split has {len(ids)} {part} classes")
        feature_file = folder / names.features[split].format(part=part)
        [matrix] = read_mat(feature_file, "pfc_feat")
        if len(matrix) != len(own):
            raise UserError(
                f"{feature_file} has {len(matrix)} rows, but {file.name} has {len(own)} labels; use files of the same split"
            )
        features.append(matrix.astype(np.float32))
        labels.append(ids[own] - 1)
    held_out = names.validation[split]
    return Dataset(
        name=f"{folder.name} {split}",
        features=np.concatenate(features),
        labels=np.concatenate(labels),
        class_ids=np.arange(1, len(texts) + 1),
        class_names=[f"class {i}" for i in range(1, len(texts) + 1)],
        unseen=np.unique(test_ids) - 1,
        texts=texts.astype(np.float32),
        validation_classes=None if held_out is None else np.sort(train_ids)[-held_out:] - 1,
        simulated=(folder / "SIMULATED").exists(),
    )


def load_gbu(folder: Path) -> Dataset:
    """Load the layout of Xian et al. Attributes serve as texts, and some images of seen classes are reserved for testing."""
    features, labels = read_mat(folder / "res101.mat", "features", "labels")
    keys, optional = ("att", "allclasses_names", "test_seen_loc", "test_unseen_loc"), ("train_loc", "val_loc")
    attributes, names, *parts = read_mat(folder / "att_splits.mat", *keys, optional=optional)
    labels = labels.ravel().astype(np.int64) - 1
    rows = [np.zeros(0, np.int64) if part is None else part.ravel().astype(np.int64) - 1 for part in parts]
    seen_test, unseen_test, train, val = rows
    if features.shape[1] != len(labels):
        raise UserError(f"{folder}: res101.mat has features of {features.shape[1]} images but {len(labels)} labels")
    for what, values in (("labels", labels), *zip((*keys[2:], *optional), rows, strict=True)):
        limit = attributes.shape[1] if what == "labels" else len(labels)
        if (values < 0).any() or (values >= limit).any():
            raise UserError(f"{folder}: {what} is outside the range 1 to {limit}")
    validation = np.setdiff1d(labels[val], labels[train]) if len(train) else np.zeros(0, np.int64)
    return Dataset(
        name=folder.name,
        features=features.T.astype(np.float32),
        labels=labels,
        class_ids=np.arange(1, attributes.shape[1] + 1),
        class_names=[str(np.ravel(name)[0]) for name in names.ravel()],
        unseen=np.unique(labels[unseen_test]),
        texts=attributes.T.astype(np.float32),
        seen_test=np.sort(seen_test),
        validation_classes=validation if len(validation) else None,
        simulated=(folder / "SIMULATED").exists(),
    )
