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
from tinyldm.data.batch import UNKNOWN
from tinyldm.data.cells import image_bytes
from tinyldm.data.columns import LabelColumn, image_column, label_columns
from tinyldm.data.description import Description, Label
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
        labels: the columns that the model is conditioned on.
        balance: a label of each example; all its values are equally frequent in a shuffled epoch. None: as in the data.
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
    labels: list[LabelColumn] = field(default_factory=list)
    balance: np.ndarray | None = field(default=None, repr=False)
    roots: list[str] | None = None
    listed_length: int | None = None
    exact_length: int | None = None
    read: int = 0
    description: Description | None = field(default=None, repr=False)
    held_out: bool = False

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
                order = shuffled(len(order), np.random.default_rng([seed, epoch]), self.balance)
            for index in order[start:]:
                yield functools.partial(self.dataset.__getitem__, int(index))
            return
        stream = self.dataset
        if seed is not None:
            # One shard at a time: with several, datasets reads in threads and sleeps 5 s after each epoch.
            stream = stream.shuffle(seed=seed, buffer_size=self.shuffle_buffer, max_buffer_input_shards=1)
            stream.set_epoch(epoch)
        with _reading(self.name):
            total, counts = 0, [Counter[int]() for _ in self.labels]
            for position, example in enumerate(stream):
                self.read += 1
                total += 1
                for number, counter in zip(self.label(example), counts, strict=True):
                    counter[number] += 1
                if position >= start:  # stream.skip() would change the shuffle
                    yield functools.partial(_unchanged, example)
        self._learn(total, counts)

    def _learn(self, total: int, counts: list[Counter]) -> None:
        """Fill in the description after a whole pass.

        Args:
            total: number of examples.
            counts: for each label column the number of examples of each value.
        """
        if self.description is None:
            return
        if self.held_out:
            self.description.held_out = total
            return
        self.description.train = total
        for label, numbers in zip(self.description.labels.values(), counts, strict=True):
            label.count(numbers)

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

    def label(self, example: dict[str, Any]) -> list[int]:
        """The numbers of an example's labels, one for each column."""
        return [column.number_of(example[column.name]) for column in self.labels]

    def label_numbers(self) -> np.ndarray:
        """The numbers (N, A) of the labels of all examples, in file order. Reads the labels of all of it."""
        names = [column.name for column in self.labels]
        rows = [self.label(dict(zip(names, row, strict=True))) for row in self.columns(names)]
        return np.array(rows, np.int64).reshape(-1, len(names))

    def columns(self, names: list[str]) -> Iterator[tuple]:
        """The cells of other columns, row by row in file order; images are not read."""
        if not self.streamed:
            yield from zip(*(self.dataset[name] for name in names), strict=True)
            return
        with _reading(self.name):
            for example in self.dataset.select_columns(names):
                yield tuple(example[name] for name in names)


def shuffled(count: int, random: np.random.Generator, balance: np.ndarray | None = None) -> np.ndarray:
    """The numbers 0 .. count - 1 in random order.

    Args:
        balance: a label (count,) of each. Then each value has the same share: rare ones occur several times, others not
            always. Those without a label keep their share.
    """
    order = np.arange(count)
    if balance is None:
        random.shuffle(order)
        return order
    unknown = np.flatnonzero(balance == UNKNOWN)
    members = [np.flatnonzero(balance == value) for value in np.unique(balance) if value != UNKNOWN]
    share = -(-(count - len(unknown)) // max(1, len(members)))
    repeated = [np.concatenate([random.permutation(own) for _ in range(-(-share // len(own)))])[:share] for own in members]
    return random.permutation(np.concatenate([unknown, *repeated]))[:count]


def balanced_labels(source: Source, name: str) -> np.ndarray:
    """The labels (N,) of one column, for Source.balance.

    Raises:
        UserError: for a stream, which has no random access.
    """
    if source.streamed:
        raise UserError("condition.balanced needs random access to the images: set data.streaming to false")
    return source.label_numbers()[:, [column.name for column in source.labels].index(name)]


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
        like: the other split; a label has the same number in both.

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
    for name in [*data.labels, *filter(None, [data.group_column])]:
        if name not in dataset.features:
            advice = f"set data.{'label_columns' if name in data.labels else 'group_column'} to some of them, or to null"
            raise UserError(f"data set {data.name!r} has no column {name!r}; it has: {', '.join(dataset.features)}; {advice}")
    source.labels = like.labels if like else label_columns(data, dataset.features, source.columns)
    return source, opened


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
        description.groups = len(set(held_out.columns([data.group_column])))
    description.labels = {column.name: Label.of(column.values) for column in train.labels}
    if train.labels and not train.streamed:
        for label, numbers in zip(description.labels.values(), train.label_numbers().T, strict=True):
            label.count(Counter(numbers.tolist()))
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
