"""Read the folders that users of CIZSL, GAZSL and the benchmark of Xian et al. already have: .mat and .pkl files.

    CUB2011/  NABird/     features pfc_feat_*.mat, TF-IDF ..._TFIDF_new.mat, splits train_test_split_*.mat, labels_*.pkl
    GBU                   res101.mat and att_splits.mat (Xian et al. 2017)

.mat files are read by SciPy. Pickles are not trusted: only NumPy arrays and scalars are read from them. Class ids are those of
the files and start at 1. A file named SIMULATED in the folder marks features that do not come from images.
"""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy._core import multiarray, numeric

from tinyldm.errors import UserError
from zsl.data import Dataset

# The only (module, name) pairs that a pickle may use. numpy._core was called numpy.core when the original files were written.
ARRAYS: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for core in ("numpy.core", "numpy._core"):
    ARRAYS |= {(f"{core}.multiarray", name): getattr(multiarray, name) for name in ("_reconstruct", "scalar")}
    ARRAYS[f"{core}.numeric", "_frombuffer"] = getattr(numeric, "_frombuffer")  # noqa: B009 (it is missing in the stubs)


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


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise UserError(f"it asks for {module}.{name}")
        return ARRAYS[module, name]


def read_labels(file: Path) -> np.ndarray:
    """Read labels (N,) int64 from a pickle of an array or of a list of NumPy scalars. Python 2 pickles are read as latin1.

    Raises:
        UserError: if the pickle holds anything else. It is refused before any object is built, and nothing is executed.
    """
    try:
        with file.open("rb") as opened:
            content = _ArraysOnly(opened, encoding="latin1").load()
        labels = np.asarray(content)
        if labels.dtype.kind not in "iu":
            raise UserError(f"it holds {labels.dtype}, not integers")
    except UserError as error:
        raise UserError(
            f"{file} is refused: {error}; only arrays of numbers are read from a pickle, and nothing is executed"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing") from error
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise UserError(f"{file} is not a pickle of labels ({type(error).__name__}: {error})") from error
    return labels.ravel().astype(np.int64)


def read_mat(file: Path, *keys: str) -> list[np.ndarray]:
    """Read the named variables of a .mat.

    Raises:
        UserError: if the file or a variable is missing, or if the file has MATLAB's version 7.3.
    """
    from scipy.io import loadmat

    if not file.is_file():
        raise UserError(f"{file} is missing; docs/zsl.md says where to get the authors' files")
    try:
        variables = loadmat(file)
    except NotImplementedError as error:
        raise UserError(f"{file} has MATLAB's version 7.3; save it again with -v7") from error
    except Exception as error:  # SciPy raises many kinds of exceptions for a damaged file
        raise UserError(f"{file} cannot be read as a .mat ({type(error).__name__}: {error})") from error
    if missing := [key for key in keys if key not in variables]:
        has = ", ".join(key for key in variables if not key.startswith("__"))
        raise UserError(f"{file} has no {' and no '.join(missing)}; it has {has or 'nothing'}")
    return [variables[key] for key in keys]


def is_original(folder: Path) -> bool:
    """Whether the folder looks like one of the original folders."""
    return (folder / "res101.mat").is_file() or any(folder.glob("train_test_split_*.mat"))


def load(folder: Path, split: str) -> Dataset:
    """Load an original folder. The data set is not checked yet.

    Args:
        split: easy or hard, for CUB2011/ and NABird/.
    """
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
    keys = ("att", "allclasses_names", "trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc")
    attributes, names, *parts = read_mat(folder / "att_splits.mat", *keys)
    labels = labels.ravel().astype(np.int64) - 1
    trainval, seen_test, unseen_test, train, val = (part.ravel().astype(np.int64) - 1 for part in parts)
    if features.shape[1] != len(labels):
        raise UserError(f"{folder}: res101.mat has features of {features.shape[1]} images but {len(labels)} labels")
    for what, rows in (("labels", labels), *zip(keys[2:], (trainval, seen_test, unseen_test, train, val), strict=True)):
        limit = attributes.shape[1] if what == "labels" else len(labels)
        if (rows < 0).any() or (rows >= limit).any():
            raise UserError(f"{folder}: {what} is outside the range 1 to {limit}")
    validation = np.setdiff1d(labels[val], labels[train])
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
