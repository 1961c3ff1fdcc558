"""Any data set becomes a `Source`: undecoded examples in an order that depends on (seed, epoch) alone.

`datasets` reads Hub data sets, parquet files, image folders, WebDataset tars and toyfaces. Add new kinds of data sets here;
images.py makes batches of a source.
"""

import functools
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

UNREADABLE = (OSError, ValueError, tarfile.TarError, DatasetGenerationError, HTTPError)  # damaged files, lost network


def hub_id(name: str) -> str | None:
    """The name of a data set if it is a Hub id, else None."""
    return name if "/" in name and not Path(name).expanduser().exists() else None


def image_bytes(value: dict[str, Any] | None) -> bytes:
    """The encoded file in an undecoded Image cell. Parquet has `bytes`, folders have a `path`, WebDataset has both."""
    if not value:
        raise OSError("empty cell")
    if value.get("bytes") is not None:
        return value["bytes"]
    with xopen(value["path"], "rb") as file:
        return file.read()


@dataclass
class Source:
    """One part of a data set, undecoded and in a fixed order.

    Attributes:
        dataset: a Dataset (random access) or an IterableDataset (streamed).
        image_column: its column of type Image(decode=False).
        name: the data set's name, for messages.
        shuffle_buffer: examples from which a shuffled stream draws the next one.
        label_column: its column of type ClassLabel, or None.
        listed_length: a stream's length by the data set's metadata, or None.
        exact_length: its length where that is certain, or None.
        read: number of examples read from a stream so far, skipped ones included.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    image_column: str
    name: str
    shuffle_buffer: int
    label_column: str | None = None
    listed_length: int | None = None
    exact_length: int | None = None
    read: int = 0

    @property
    def classes(self) -> int | None:
        """Number of classes, or None without labels."""
        return self.dataset.features[self.label_column].num_classes if self.label_column else None

    @property
    def streamed(self) -> bool:
        """Whether examples can only be read in sequence."""
        return isinstance(self.dataset, datasets.IterableDataset)

    def length(self) -> int:
        """Number of examples. A stream is read once, without decoding, to count them."""
        if not self.streamed:
            return len(self.dataset)
        return sum(1 for _ in self.epoch(None, 0)) if self.exact_length is None else self.exact_length

    def known_length(self) -> int | None:
        """Number of examples, or None if counting them would mean reading the stream."""
        return self.listed_length if self.streamed else len(self.dataset)

    def epoch(self, seed: int | None, epoch: int, start: int = 0) -> Iterator[Callable[[], dict[str, Any]]]:
        """Yield the examples of one epoch from position `start` on, each as a function that fetches it.

        Args:
            seed: the order depends on (seed, epoch). None: file order.
            epoch: number of the epoch, from 0.
            start: how many examples to skip, without decoding them.

        Raises:
            UserError: if a stream breaks off: a damaged shard, a lost network.
        """
        if not self.streamed:
            order = np.arange(len(self.dataset))
            if seed is not None:
                np.random.default_rng([seed, epoch]).shuffle(order)
            for index in order[start:]:
                yield functools.partial(self.dataset.__getitem__, int(index))
            return
        stream = self.dataset
        if seed is not None:
            # One shard at a time: with several, datasets reads in threads and sleeps 5 s after each epoch.
            stream = stream.shuffle(seed=seed, buffer_size=self.shuffle_buffer, max_buffer_input_shards=1)
            stream.set_epoch(epoch)
        try:
            for position, example in enumerate(stream):
                self.read += 1
                if position >= start:  # stream.skip() would change the shuffle
                    yield functools.partial(_unchanged, example)
        except UNREADABLE as error:
            raise UserError(_why_not(self.name, error)) from error

    def cell(self, example: dict[str, Any]) -> dict[str, Any]:
        """The undecoded image of an example."""
        return example[self.image_column]

    def label(self, example: dict[str, Any]) -> int | None:
        """The class number of an example; None without labels.

        Raises:
            ValueError: if the example has no valid label.
        """
        if self.label_column is None:
            return None
        label = example[self.label_column]
        if label is None or not 0 <= label < self.classes:
            raise ValueError(f"label {label}")
        return label


def _unchanged(example: dict[str, Any]) -> dict[str, Any]:
    return example


def open_sources(data: DataConfig, seed: int) -> tuple[Source, Source]:
    """The training part and the held-out part of a data set, disjoint by construction.

    With `data.eval_split` they are two splits of the data set. Without, a hash of (seed, encoded image) below
    `data.eval_fraction` holds an image out. So the choice does not depend on shards and order, and copies stay together.

    Raises:
        UserError: if the data set, split or column does not exist, or the network is down.
    """
    train = _load(data, data.split)
    if data.eval_split:
        return train, _load(data, data.eval_split)
    threshold = int(data.eval_fraction * 2**32)

    def held_out(cell: dict[str, Any]) -> bool:
        try:
            content = image_bytes(cell)
        except OSError:
            content = b""  # unreadable images stay in the training part, which counts them
        digest = hashlib.blake2b(content, digest_size=4, key=str(seed).encode()).digest()
        return content != b"" and int.from_bytes(digest, "big") < threshold

    column = train.image_column
    rest = train.dataset.filter(lambda cell: not held_out(cell), input_columns=[column])
    chosen = train.dataset.filter(held_out, input_columns=[column])
    train = replace(train, listed_length=None, exact_length=None)
    return replace(train, dataset=rest), replace(train, dataset=chosen)


def _load(data: DataConfig, split: str) -> Source:
    if data.name == "toyfaces" and not data.streaming:
        raise UserError("toyfaces is drawn while streaming: set data.streaming to true")
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
        if dataset.features is None:  # CSV and JSON lines: the columns are in the data
            dataset = dataset._resolve_features()
    except UNREADABLE as error:
        raise UserError(_why_not(data.name, error)) from error
    column = _image_column(data, dataset.features)
    dataset = dataset.cast_column(column, datasets.Image(decode=False))
    listed = (dataset.info.splits or {}).get(split)
    labels = _label_column(data, dataset.features)
    exact = toyfaces.SPLITS[split][1] if data.name == "toyfaces" else None  # counting them would draw them
    length = exact or (listed.num_examples if listed else None)
    return Source(dataset, column, data.name, data.shuffle_buffer, labels, length, exact)


def _digits(split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,500 for training, the rest for validation."""
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
    """`**` for a folder of images without a folder per split, so that all images are the split `train`.

    `datasets` would find splits in file names too: with a.png and train-1.png it would silently read only the second.
    """
    folder = Path(name).expanduser()
    inside = [entry.relative_to(folder) for entry in folder.rglob("*")] if folder.is_dir() else []
    images = any(entry.suffix.lower() in Image.registered_extensions() for entry in inside)
    tables = any(entry.suffix in (".parquet", ".arrow", ".tar") and entry.stem != "metadata" for entry in inside)
    parts = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
    splits = any(folder.lower() in parts for entry in inside for folder in entry.parts[:-1])
    return "**" if images and not tables and not splits else None


def _why_not(name: str, error: Exception) -> str:
    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # its own message gives no reason
    text = str(error) or type(error).__name__
    if isinstance(error, ConnectionError | HTTPError):
        return f"data set {name!r} cannot be reached ({text}): check the network, or set data.name to a local folder"
    if "bad split" in text.lower() or "unknown split" in text.lower():
        return f"data set {name!r}: {text}; set data.split and data.eval_split (null: hold out a fraction of data.split)"
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
            "set data.image_column to the one with encoded images"
        )
    return images[0]


def _label_column(data: DataConfig, features: datasets.Features) -> str | None:
    if data.label_column is None:
        return None
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if data.label_column not in classes:
        raise UserError(
            f"data.label_column {data.label_column!r} of {data.name!r} is not a column of class labels; "
            f"it has: {', '.join(classes) or 'none'}"
        )
    return data.label_column
