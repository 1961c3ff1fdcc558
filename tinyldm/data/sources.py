"""Any data set becomes a `Source`: undecoded examples in an order that depends on (seed, epoch) alone.

A Hub id, parquet files, an image folder, WebDataset tars and toyfaces all come through `datasets`. For a new kind of data
set, this is the file to change; `tinyldm.data` makes batches out of a source.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from datasets.utils.file_utils import xopen
from huggingface_hub.errors import HTTPError
from PIL import Image

from tinyldm.config.schema import DataConfig
from tinyldm.data import toyfaces
from tinyldm.errors import UserError

UNREADABLE = (OSError, ValueError, tarfile.TarError, DatasetGenerationError, HTTPError)  # damaged files, a lost network


def image_bytes(value: dict[str, Any] | None) -> bytes:
    """The encoded file of an undecoded Image cell: parquet has `bytes`, folders have a `path`, WebDataset has both."""
    if not value:
        raise OSError("empty cell")
    if value.get("bytes") is not None:
        return value["bytes"]
    with xopen(value["path"], "rb") as file:
        return file.read()


@dataclass
class Source:
    """One part of a data set, undecoded and in a fixed order.

    `dataset` is a datasets.Dataset (random access) or IterableDataset (streamed); `image_column` its column of the type
    Image(decode=False); `label_column` one of class numbers, or None. `told_length` is what the data set's page says of a
    stream's length. `read` counts what has come out of a stream, skipped examples too: whether it is still alive.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    image_column: str
    name: str
    shuffle_buffer: int
    label_column: str | None = None
    told_length: int | None = None
    read: int = 0

    @property
    def classes(self) -> int | None:
        """Number of classes, or None without labels."""
        return self.dataset.features[self.label_column].num_classes if self.label_column else None

    @property
    def streamed(self) -> bool:
        """Whether examples can only be read one after the other."""
        return isinstance(self.dataset, datasets.IterableDataset)

    def length(self) -> int:
        """Examples in one pass; a stream has to be read through once (undecoded) to know."""
        return sum(1 for _ in self.epoch(None, 0)) if self.streamed else len(self.dataset)

    def known_length(self) -> int | None:
        """Examples in one pass, where that is known without reading through it."""
        return self.told_length if self.streamed else len(self.dataset)

    def epoch(self, seed: int | None, epoch: int, start: int = 0) -> Iterator[Callable[[], dict[str, Any]]]:
        """The examples from position `start` of one pass on, each as a function that fetches it.

        Args:
            seed: order of (seed, epoch). None: the order of the files.
            epoch: number of the pass, from 0.
            start: how many to skip; skipped ones are not decoded.

        Raises:
            UserError: where a stream breaks off: a damaged shard, a lost network.
        """
        if not self.streamed:
            order = np.arange(len(self.dataset))
            if seed is not None:
                np.random.default_rng([seed, epoch]).shuffle(order)
            for index in order[start:]:
                yield lambda index=int(index): self.dataset[index]
            return
        stream = self.dataset
        if seed is not None:
            # Several shards at a time are read in threads, and datasets sleeps 5 s after each epoch until they are gone.
            stream = stream.shuffle(seed=seed, buffer_size=self.shuffle_buffer, max_buffer_input_shards=1)
            stream.set_epoch(epoch)
        try:
            for position, example in enumerate(stream):
                self.read += 1
                if position >= start:  # stream.skip() would change the order
                    yield lambda example=example: example
        except UNREADABLE as error:
            raise UserError(_why_not(self.name, error)) from error

    def cell(self, example: dict[str, Any]) -> dict[str, Any]:
        """The undecoded image of an example."""
        return example[self.image_column]

    def label(self, example: dict[str, Any]) -> int | None:
        """The class number of an example; None without labels.

        Raises:
            ValueError: for an example that has none.
        """
        if self.label_column is None:
            return None
        label = example[self.label_column]
        if label is None or not 0 <= label < self.classes:
            raise ValueError(f"label {label}")
        return label


def open_sources(data: DataConfig, seed: int) -> tuple[Source, Source]:
    """The training part and the held-out part of a data set, disjoint by construction.

    With `data.eval_split` they are two splits of the data set. Without, an image is held out when a hash of (seed, its
    encoded bytes) falls below `data.eval_fraction`: independent of shards and order, and a copy goes with its original.

    Raises:
        UserError: for a data set, split or column that is not there, or a network that is not.
    """
    train = _load(data, data.split)
    if data.eval_split:
        return train, _load(data, data.eval_split)
    threshold = int(data.eval_fraction * 2**32)

    def held_out(cell: dict[str, Any]) -> bool:
        try:
            content = image_bytes(cell)
        except OSError:
            content = b""  # unreadable: it stays in the training part, where it is counted
        digest = hashlib.blake2b(content, digest_size=4, key=str(seed).encode()).digest()
        return content != b"" and int.from_bytes(digest, "big") < threshold

    column = train.image_column
    parts = (
        train.dataset.filter(lambda cell: not held_out(cell), input_columns=[column]),
        train.dataset.filter(held_out, input_columns=[column]),
    )
    return tuple(replace(train, dataset=part, told_length=None) for part in parts)


def _load(data: DataConfig, split: str) -> Source:
    if data.name == "toyfaces" and not data.streaming:
        raise UserError("toyfaces is drawn on the fly; set data.streaming to true")
    try:
        if data.name == "toyfaces":
            dataset = toyfaces.load(split, data.resolution)
        elif data.name == "digits":
            dataset = _digits(split, data.streaming)
        else:
            dataset = datasets.load_dataset(
                str(Path(data.name).expanduser()) if data.name.startswith("~") else data.name,
                data_files=data.data_files or _plain_folder(data.name),
                revision=data.revision,
                split=split,
                streaming=data.streaming,
            )
        if dataset.features is None:  # a stream of CSV or JSON lines does not know its columns before it is read
            dataset = dataset._resolve_features()
    except UNREADABLE as error:
        raise UserError(_why_not(data.name, error)) from error
    column = _image_column(data, dataset.features)
    dataset = dataset.cast_column(column, datasets.Image(decode=False))
    told = (dataset.info.splits or {}).get(split)
    labels = _label_column(data, dataset.features)
    return Source(dataset, column, data.name, data.shuffle_buffer, labels, told.num_examples if told else None)


def _digits(split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: the first 1,500 to train on, the others for validation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    parts = {"train": slice(0, 1500), "validation": slice(1500, None)}
    if split not in parts:
        raise ValueError(f"unknown split {split!r}; digits has train and validation")
    pixels = (digits.images[parts[split]] * (255 / 16)).round().astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    examples = {"image": [Image.fromarray(image) for image in pixels], "label": digits.target[parts[split]].tolist()}
    dataset = datasets.Dataset.from_dict(examples, features=features)
    return dataset.to_iterable_dataset() if streaming else dataset


def _plain_folder(name: str) -> str | None:
    """`**` for a folder of images without folders named after splits, so that all of it is the split `train`: `datasets`
    finds splits in file names too, and of a.png and train-1.png would silently read the second only."""
    folder = Path(name).expanduser()
    inside = [entry.relative_to(folder) for entry in folder.rglob("*")] if folder.is_dir() else []
    images = any(entry.suffix.lower() in Image.registered_extensions() for entry in inside)
    tables = any(entry.suffix in (".parquet", ".arrow", ".tar") and entry.stem != "metadata" for entry in inside)
    parts = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
    splits = any(folder.lower() in parts for entry in inside for folder in entry.parts[:-1])
    return "**" if images and not tables and not splits else None


def _why_not(name: str, error: Exception) -> str:
    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # its own message says nothing
    text = str(error) or type(error).__name__
    if isinstance(error, ConnectionError | HTTPError):
        return f"data set {name!r} cannot be reached ({text}): check the network, or give a local folder as data.name"
    if "bad split" in text.lower() or "unknown split" in text.lower():
        return f"data set {name!r}: {text}; set data.split and data.eval_split (null holds out a part of data.split)"
    if "save_to_disk" in text:
        return f"data set {name!r} was saved by save_to_disk: set data.name to arrow and data.data_files to {name}/**/*.arrow"
    return f"data set {name!r} cannot be read ({text}): data.name takes a Hub id, a folder with images, parquet or tars"


def _image_column(data: DataConfig, features: datasets.Features) -> str:
    names = ", ".join(features)
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if data.image_column:
        if data.image_column not in features:
            raise UserError(f"data set {data.name!r} has no column {data.image_column!r}; it has: {names}")
        feature = features[data.image_column]
        encoded = getattr(feature, "dtype", None) in ("binary", "large_binary", "string", "large_string")  # files or paths
        if not (isinstance(feature, datasets.Image) or encoded or (isinstance(feature, dict) and "bytes" in feature)):
            raise UserError(f"data.image_column {data.image_column!r} of {data.name!r} holds {feature}, not encoded images")
        return data.image_column
    if not images:
        raise UserError(
            f"data set {data.name!r} has no column of the type Image; it has: {names}; "
            "name the one with encoded images as data.image_column"
        )
    return images[0]


def _label_column(data: DataConfig, features: datasets.Features) -> str | None:
    if data.label_column is None:
        return None
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if data.label_column not in classes:
        raise UserError(
            f"data.label_column {data.label_column!r} of {data.name!r} is no column of class labels; "
            f"it has: {', '.join(classes) or 'none'}"
        )
    return data.label_column
