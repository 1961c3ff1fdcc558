"""A part of a data set as a `Source`: undecoded examples in an order that depends on (seed, epoch) alone.

opening.py opens a split of any kind of data set. `open_sources` makes the training part and the held-out part of it, with
a description of what was understood. images.py makes batches of a source.
"""

import contextlib
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HTTPError
from tqdm.auto import tqdm

from tinyldm.config.schema import DataConfig
from tinyldm.data.cells import image_bytes
from tinyldm.data.columns import classes, image_column
from tinyldm.data.description import Class, Description
from tinyldm.data.opening import Opened, open_split
from tinyldm.errors import UserError, why

COMPARED = (1_000, 20_000)  # images of the held-out part and of the training part that are compared for overlap
MAX_OVERLAP = 0.01  # of the held-out images: a few copies occur in real data sets


def hub_id(name: str) -> str | None:
    """The name of a data set if it is a Hub id, else None."""
    return name if "/" in name and not Path(name).expanduser().exists() else None


@dataclass
class Source:
    """One part of a data set, undecoded and in a fixed order.

    Attributes:
        dataset: a Dataset (random access) or an IterableDataset (streamed).
        image_column: its column of type Image(decode=False).
        name: the data set's name, for messages.
        shuffle_buffer: examples from which a shuffled stream draws the next one.
        label_column: the column with the classes, or None.
        class_names: the names of the classes, in the order of their numbers; None without labels.
        numbers: value of a cell -> class number; None where cells hold class numbers.
        roots: see `image_bytes`.
        listed_length: a stream's length by the data set's metadata, or None.
        exact_length: its length where that is certain, or None.
        read: number of examples read from a stream so far, skipped ones included.
        description: of the whole data set; both parts share it. A whole pass over a stream fills in what it counts.
        held_out: whether this is the held-out part.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    image_column: str
    name: str
    shuffle_buffer: int
    label_column: str | None = None
    class_names: list[str] | None = None
    numbers: dict[Any, int] | None = None
    roots: list[str] | None = None
    listed_length: int | None = None
    exact_length: int | None = None
    read: int = 0
    description: Description | None = field(default=None, repr=False)
    held_out: bool = False

    @property
    def classes(self) -> int | None:
        """Number of classes, or None without labels."""
        return len(self.class_names) if self.class_names is not None else None

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
        with _reading(self.name):
            counts: Counter = Counter()
            for position, example in enumerate(stream):
                self.read += 1
                counts[self.number_of(example[self.label_column]) if self.label_column else None] += 1
                if position >= start:  # stream.skip() would change the shuffle
                    yield functools.partial(_unchanged, example)
        self._learn(counts)

    def _learn(self, counts: Counter) -> None:
        """Fill in the description after a whole pass.

        Args:
            counts: number of examples of each class; None: of no class.
        """
        if self.description is None:
            return
        if self.held_out:
            self.description.held_out = counts.total()
            return
        self.description.train = counts.total()
        for entry in self.description.classes or []:
            entry.count = counts[entry.number]

    def content(self, example: dict[str, Any]) -> bytes:
        """The encoded image of an example.

        Raises:
            OSError: see `image_bytes`.
        """
        return image_bytes(example[self.image_column], self.roots)

    def file_name(self, example: dict[str, Any]) -> str:
        """The name of an example's file, or what identifies it where there is none."""
        cell = example.get(self.image_column) or {}
        if path := cell.get("path"):
            return Path(str(path).split("::")[0]).name
        return str(example.get("__key__") or hashlib.blake2b(cell.get("bytes") or b"", digest_size=6).hexdigest())

    def label(self, example: dict[str, Any]) -> int | None:
        """The class number of an example; None without labels.

        Raises:
            ValueError: if the example has no valid label.
        """
        if self.class_names is None or self.label_column is None:
            return None
        value = example[self.label_column]
        label = self.number_of(value)
        if label is None:
            raise ValueError(f"label {value!r}")
        return label

    def number_of(self, value: Any) -> int | None:
        """The class number of a cell of the label column; None for a cell that is empty or of no class."""
        number = value if self.numbers is None else self.numbers.get(value)
        return number if number is not None and 0 <= number < len(self.class_names or ()) else None

    def class_counts(self) -> Counter:
        """Number of examples of each class, and under None of those of no class. Reads the labels of all of it."""
        return Counter(map(self.number_of, self.column(self.label_column or "")))

    def column(self, column: str) -> Iterator[Any]:
        """The cells of another column, in file order; images are not read."""
        if not self.streamed:
            yield from self.dataset[column]
            return
        with _reading(self.name):
            for example in self.dataset.select_columns([column]):
                yield example[column]


def _unchanged(example: dict[str, Any]) -> dict[str, Any]:
    return example


def open_sources(data: DataConfig, seed: int) -> tuple[Source, Source]:
    """The training part and the held-out part of a data set, disjoint by construction.

    With `data.eval_split` they are two splits of the data set. Without, a hash of (seed, encoded image) below
    `data.eval_fraction` holds an image out. So the choice does not depend on shards and order, and copies stay together.
    With `data.group_column` the hash is that of the group.

    Raises:
        UserError: if the data set, split or column does not exist, the parts share images, or the network is down.
    """
    train, opened = open_part(data, data.split)
    if data.eval_split:
        held_out, _ = open_part(data, data.eval_split, train)
        _check_disjoint(train, held_out, data)
        how = f"split {data.eval_split}"
    else:
        train, held_out = _hold_out(train, data, seed)
        what, by = ("groups", data.group_column) if data.group_column else ("images", "the image file")
        how = f"{100 * data.eval_fraction:.3g}% of the {what}, by a hash of {by}"
    description = _describe(data, opened, train, held_out, how)
    return replace(train, description=description), replace(held_out, description=description, held_out=True)


def open_part(data: DataConfig, split: str, like: Source | None = None) -> tuple[Source, Opened]:
    """One split of a data set, and how it was opened.

    Args:
        like: the other split; a class has the same number in both.

    Raises:
        UserError: if the data set, split or column does not exist.
    """
    with _reading(data.name):
        opened = open_split(data, split)
        dataset = opened.dataset
        if dataset.features is None:  # CSV and JSON lines: the columns are in the data
            dataset = dataset._resolve_features()
    column = image_column(data, dataset.features)
    source = Source(dataset.cast_column(column, datasets.Image(decode=False)), column, data.name, data.shuffle_buffer)
    source.roots, source.listed_length = opened.roots, opened.length
    source.exact_length = opened.length if opened.exact else None
    for name in filter(None, (data.label_column, data.group_column)):
        if name not in dataset.features:
            advice = f"set data.{'label' if name == data.label_column else 'group'}_column to one of them, or to null"
            raise UserError(f"data set {data.name!r} has no column {name!r}; it has: {', '.join(dataset.features)}; {advice}")
    if data.label_column:
        source.label_column = data.label_column
        cells = source.column(data.label_column)
        names, numbers = (like.class_names, like.numbers) if like else classes(data, dataset.features, cells)
        source.class_names, source.numbers = names, numbers
        _drop_unlabelled(source, opened)
    return source, opened


def _drop_unlabelled(source: Source, opened: Opened) -> None:
    """Leave out the examples that are of no class, and count them. In a stream they turn out later."""
    if not isinstance(source.dataset, datasets.Dataset):
        return
    labelled = np.array([source.number_of(value) is not None for value in source.column(source.label_column or "")], bool)
    if not labelled.all():
        others = source.dataset.select(np.flatnonzero(~labelled)).select_columns([source.image_column])
        opened.ignored["without a label"] = [source.file_name(example) for example in others]
        source.dataset = source.dataset.select(np.flatnonzero(labelled))
        opened.listed = None if opened.listed is None else opened.listed - int((~labelled).sum())


def _hold_out(source: Source, data: DataConfig, seed: int) -> tuple[Source, Source]:
    """Split a part in two by a hash of each image or group."""
    threshold = int(data.eval_fraction * 2**32)
    columns = [data.group_column or source.image_column]

    def place(cell: Any) -> int:
        """Uniform in 0 .. 2^32 - 1. Unreadable images get 2^32: they stay in the training part, which counts them."""
        try:
            content = str(cell).encode() if data.group_column else image_bytes(cell, source.roots)
        except OSError:
            content = b""
        digest = hashlib.blake2b(content, digest_size=4, key=str(seed).encode()).digest()
        return int.from_bytes(digest, "big") if content else 2**32

    if isinstance(source.dataset, datasets.Dataset):
        cells = source.dataset.select_columns(columns)
        bar = tqdm(cells, "choosing the held-out part", unit="image", leave=False, delay=2)
        places = np.array([place(row[columns[0]]) for row in bar], np.int64)
        if len(places):
            threshold = max(threshold, int(places.min()) + 1)  # at least one image or group
        chosen = places < min(threshold, 2**32)
        parts = [source.dataset.select(np.flatnonzero(rows)) for rows in (~chosen, chosen)]
    else:
        rest = source.dataset.filter(lambda cell: place(cell) >= threshold, input_columns=columns)
        parts = [rest, source.dataset.filter(lambda cell: place(cell) < threshold, input_columns=columns)]
    train, other = (replace(source, dataset=part, listed_length=None, exact_length=None) for part in parts)
    return train, other


def _check_disjoint(train: Source, held_out: Source, data: DataConfig) -> None:
    """Refuse two splits that share images, whatever they are called. Compares the contents of local data sets.

    Raises:
        UserError: if more than MAX_OVERLAP of the held-out images that are compared are in the training part.
    """
    remote = train.streamed and any("://" in root for root in train.roots or [])
    if remote or data.name == "toyfaces":  # reading a remote split twice costs too much, and toyfaces' splits are disjoint
        return

    def digests(source: Source, count: int) -> Iterator[bytes]:
        for fetch in itertools.islice(source.epoch(None, 0), count):
            with contextlib.suppress(OSError):
                yield hashlib.blake2b(source.content(fetch()), digest_size=16).digest()

    known = set(digests(held_out, COMPARED[0]))
    shared = known & set(digests(train, COMPARED[1]))
    if len(shared) > MAX_OVERLAP * len(known):
        raise UserError(
            f"{len(shared):,} of {len(known):,} images of the split {data.eval_split!r} are also in {data.split!r}, so "
            "held-out images would be trained on: set data.eval_split to another split, or to null to hold out a part"
        )


def _describe(data: DataConfig, opened: Opened, train: Source, held_out: Source, how: str) -> Description:
    lengths = [part.known_length() if part.exact_length is None else part.exact_length for part in (train, held_out)]
    read = None if lengths[0] is None or lengths[1] is None else lengths[0] + lengths[1]
    name = data.name if opened.roots and not Path(data.name).exists() else Path(data.name).name
    description = Description(name, opened.kind, train.image_column, data.split, lengths[1], how, lengths[0], opened.found)
    for reason, names in opened.ignored.items():
        description.ignore(reason, names)
    if opened.listed is not None and read is not None and opened.listed > read:
        description.ignored["in other splits"] = opened.listed - read
    description.notes = opened.notes
    if data.group_column and not held_out.streamed:
        description.groups = len(set(held_out.column(data.group_column)))
    if train.class_names is not None:
        counts = None if train.streamed else train.class_counts()
        description.classes = [
            Class(number, name, None if counts is None else counts[number]) for number, name in enumerate(train.class_names)
        ]
    return description


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever `datasets` raises inside `with`, for damaged files or a lost network, becomes one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_why_not(name, error)) from error


def _why_not(name: str, error: Exception) -> str:
    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # its own message gives no reason
    text = why(error)
    if isinstance(error, ConnectionError | HTTPError):
        return f"data set {name!r} cannot be reached ({text}): check the network, or set data.name to a local folder"
    if "bad split" in text.lower() or "unknown split" in text.lower():
        return f"data set {name!r}: {text}; set data.split and data.eval_split (null: hold out a fraction of data.split)"
    return f"data set {name!r} cannot be read ({text}): data.name takes a Hub id, a folder with images, parquet or tars"
