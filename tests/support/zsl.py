"""Small zero-shot data sets, and the smallest run that uses all parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from zsl.config import DataConfig, ModelConfig, Train, TrainConfig, parse_method
from zsl.data import Dataset
from zsl.game import Game, TrainingSet

SHARED = Path(__file__).parents[3] / "shared" / "data"
FLOWERS, CUB_WIKI = SHARED / "flowers-zsl", SHARED / "cub-wiki"
needs_flowers = pytest.mark.skipif(not FLOWERS.is_dir(), reason="needs ../shared/data/flowers-zsl")
needs_cub_wiki = pytest.mark.skipif(not CUB_WIKI.is_dir(), reason="needs ../shared/data/cub-wiki")
WORDS = ["red", "blue", "wing", "beak", "tail", "crest", "stripe", "spotted", "small", "long", "water", "forest"]
TINY = [
    *("--seeds", "2", "--model.hidden_size", "16", "--model.text_size", "8", "--model.noise_size", "4"),
    *("--train.iterations", "8", "--train.batch_size", "16", "--train.eval_steps", "2", "--train.checkpointing_steps", "3"),
    *("--train.critic_steps", "2", "--evaluate.samples_per_class", "6", "--evaluate.neighbours", "3", "--device", "cpu"),
    *("--data.held_out_classes", "0.4"),
]


def dataset(classes: int = 10, unseen: int = 3, images: int = 12, dim: int = 6, terms: int = 8, seed: int = 0) -> Dataset:
    """A data set with features that are a linear map of the class texts plus noise."""
    random = np.random.default_rng(seed)
    texts = np.abs(random.normal(size=(classes, terms))).astype(np.float32)
    means = texts @ random.normal(size=(terms, dim))
    labels = np.repeat(np.arange(classes), images)
    features = (means[labels] + 0.3 * random.normal(size=(len(labels), dim))).astype(np.float32)
    ids = np.arange(1, classes + 1)
    names = [f"bird {i}" for i in ids]
    return Dataset("birds", features, labels, ids, names, np.arange(classes - unseen, classes), texts).check()


def articles(path: Path, classes: int = 10, seed: int = 0) -> Path:
    """Write articles.jsonl, with a random bag of words for each class."""
    random = np.random.default_rng(seed)
    lines = []
    for i in range(1, classes + 1):
        text = " ".join(["bird", *random.choice(WORDS, 30)])
        lines.append(json.dumps({"class_id": i, "name": f"bird {i}", "text": text}))
    path.write_text("\n".join(lines) + "\n")
    return path


def folder(path: Path, **changes) -> Path:
    """Write features.npz and articles.jsonl, the layout for users' own data. `changes` replace arrays."""
    data = dataset()
    path.mkdir(parents=True, exist_ok=True)
    arrays = {"features": data.features, "labels": data.labels + 1, "unseen_classes": data.unseen + 1}
    np.savez(path / "features.npz", **{**arrays, **changes})
    articles(path / "articles.jsonl")
    return path


def game(
    method: str = "gazsl", faithful: bool = False, weight: float = 0.3, kind: type[Game] = Game, seed: int = 3, **train
) -> Game:
    """A game with 5 classes, in the default precision of torch."""
    random = torch.Generator().manual_seed(7)
    labels = torch.randint(0, 5, (40,), generator=random)
    labels[:5] = torch.arange(5)
    texts = torch.rand(5, 9, generator=random)
    data = TrainingSet(torch.randn(40, 7, generator=random), labels, texts)
    config = Train(
        "x",
        DataConfig("x"),
        faithful=faithful,
        model=ModelConfig(hidden_size=12, text_size=6, noise_size=4),
        train=TrainConfig(**{"batch_size": 11, "critic_steps": 2, **train}),
    )
    return kind(parse_method(method), weight, config, seed, data)


def original_cub(path: Path, split: str = "easy", seed: int = 0) -> Path:
    """Write an original CUB2011/ with 12 classes: .mat files and Python 2 pickles, one with an array and one with scalars."""
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    train, test = np.array([2, 3, 5, 6, 8, 9, 11, 12], np.uint8), np.array([1, 4, 7, 10], np.uint8)
    scipy.io.savemat(path / f"train_test_split_{split}.mat", {"train_cid": train[None], "test_cid": test[None]})
    scipy.io.savemat(path / "CUB_Porter_7551D_TFIDF_new.mat", {"PredicateMatrix": random.random((12, 9))})
    ending = "" if split == "easy" else "_hard"
    for part, ids in (("train", train), ("test", test)):
        labels = np.repeat(np.arange(len(ids)), 6).astype(np.uint8)
        scipy.io.savemat(path / f"pfc_feat_{part}{ending}.mat", {"pfc_feat": random.normal(size=(len(labels), 7))})
        content = python2_scalars(labels) if part == "test" else python2_array(labels)
        (path / f"labels_{part}{ending}.pkl").write_bytes(content)
    return path


def python2_array(labels: np.ndarray) -> bytes:
    """The bytes that cPickle in Python 2 wrote for a uint8 array (protocol 2), with the data as a latin1 string."""
    raw, count = labels.astype(np.uint8).tobytes(), len(labels)
    return b"".join(
        [
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87R",
            b"(K\x01M" + count.to_bytes(2, "little") + b"\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + count.to_bytes(4, "little") + raw + b"tb.",
        ]
    )


def python2_scalars(labels: np.ndarray) -> bytes:
    """The bytes that cPickle in Python 2 wrote for a list of numpy.uint8."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    items = b"".join(b"cnumpy.core.multiarray\nscalar\n" + dtype + b"U\x01" + bytes([label]) + b"\x86R" for label in labels)
    return b"\x80\x02](" + items + b"e."


def gbu(path: Path, seed: int = 0) -> Path:
    """Write the layout of Xian et al. with 8 classes: ids from 1, features in columns, names in cells."""
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(1, 9), 5)
    where = {i: np.flatnonzero(labels == i) + 1 for i in range(1, 9)}
    seen_test = np.concatenate([where[i][:1] for i in range(1, 7)])
    trainval = np.concatenate([where[i][1:] for i in range(1, 7)])
    train = np.concatenate([where[i][1:] for i in range(1, 5)])
    val = np.concatenate([where[i][1:] for i in range(5, 7)])
    unseen = np.concatenate([where[7], where[8]])
    scipy.io.savemat(path / "res101.mat", {"features": random.normal(size=(6, 40)), "labels": labels[:, None]})
    names = np.array([[f"animal {i}"] for i in range(1, 9)], dtype=object)
    places = {
        "trainval_loc": trainval,
        "test_seen_loc": seen_test,
        "test_unseen_loc": unseen,
        "train_loc": train,
        "val_loc": val,
    }
    content = {"att": random.random((4, 8)), "allclasses_names": names, **{key: v[:, None] for key, v in places.items()}}
    scipy.io.savemat(path / "att_splits.mat", content)
    return path
