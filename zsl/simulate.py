"""SIMULATED visual features in the original layout, to try formats, splits and code without the authors' features.

    python -m zsl.simulate --source ../shared/data/cub-wiki --out runs/cub-simulated/CUB2011

This writes a CUB2011/ with the real splits and labels, and a TF-IDF of the real articles over the original terms. The features
are random numbers from a formula. Every report of a run with them says so. Never compare such results with published ones.
"""

import itertools
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.io import savemat

from tinyldm.errors import UserError, one_line_errors
from tinyldm.manifest import Manifest
from tinyldm.randomness import derive_seed
from zsl import text
from zsl.config import TextConfig
from zsl.originals import CUB, read_labels, read_mat

DIM = 3584  # 7 parts of 512 numbers, as in the authors' features
DIRECTIONS = 64  # dimensions of the texts that determine features
SHARE = 0.5  # fraction of the variance of class means that the text determines
SPREAD = 1.5  # deviation of the images of a class, relative to that of the class means


def features(texts: np.ndarray, class_id: int, images: int) -> np.ndarray:
    """Features (images, DIM) float32 of one class: a linear map of its text, a part of its own, and noise.

    Args:
        texts: LSA of all class texts with unit variance (C, DIRECTIONS).
        class_id: starts at 1.
        images: number of images.
    """
    common = np.random.default_rng(derive_seed("simulated", "map")).normal(size=(DIRECTIONS, DIM)) / np.sqrt(DIRECTIONS)
    random = np.random.default_rng(derive_seed("simulated", class_id))
    mean = np.sqrt(SHARE) * texts[class_id - 1] @ common + np.sqrt(1 - SHARE) * random.normal(size=DIM)
    return (mean + SPREAD * random.normal(size=(images, DIM))).astype(np.float32)


def simulate(source: str, out: str, split: Literal["easy", "hard"] = "easy") -> None:
    """Write the folder.

    Args:
        source: folder with CUB2011/ (splits, labels, terms) and articles.jsonl of its 200 classes.
        out: the folder to write.
        split: the split to write.
    """
    original, target = Path(source) / "CUB2011", Path(out)
    terms = text.read_terms(original / "CUB_Porter_7551D_TFIDF_term.mat")
    articles = text.read(Path(source) / "articles.jsonl")
    order = np.argsort(articles.ids)
    if articles.articles is None or articles.ids[order].tolist() != list(range(1, 201)):
        raise UserError(f"{source}/articles.jsonl must have one article for each class from 1 to 200")
    matrix, _ = text.tfidf([articles.articles[i] for i in order], TextConfig(sublinear=False), vocabulary=terms)
    directions = text.reduce(matrix - matrix.mean(0), DIRECTIONS)
    directions /= directions.std()
    split_file, parts = CUB.split.format(split=split), ("train", "test")
    tables = [(CUB.labels[split].format(part=part), CUB.features[split].format(part=part)) for part in parts]
    try:
        target.mkdir(parents=True, exist_ok=True)
        Manifest(target).claim(target / name for name in ["SIMULATED", CUB.texts, split_file, *itertools.chain(*tables)])
        (target / "SIMULATED").write_text(f"{__doc__}")
        savemat(target / CUB.texts, {"PredicateMatrix": matrix.astype(np.float64)})
        shutil.copyfile(original / split_file, target / split_file)
        for (name, made), ids in zip(tables, read_mat(original / split_file, "train_cid", "test_cid"), strict=True):
            shutil.copyfile(original / name, target / name)
            labels = read_labels(original / name)
            simulated = np.empty((len(labels), DIM), np.float32)
            for index, class_id in enumerate(ids.ravel()):
                simulated[labels == index] = features(directions, int(class_id), int((labels == index).sum()))
            savemat(target / made, {"pfc_feat": simulated})
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); choose another folder") from error
    print(f"{target}: {split} split with SIMULATED features")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    with one_line_errors():
        auto_cli(simulate, as_positional=False, prog="python -m zsl.simulate")
