"""Any source of images -> a stream of square RGB images, in an order that depends on (seed, position) alone.

A Hub id, parquet files, an image folder, WebDataset tars and toyfaces all come through `datasets`; from there one path:
undecoded examples -> hold out -> shuffle -> take this process's share -> decode, orient, resize, crop (in threads) -> batches.

The order has no state to save. Position p of the endless stream is example `p - epoch * length` of the shuffle of
(seed, epoch). Micro-batch k of process r out of R is the positions [(k R + r) B, (k R + r + 1) B): nobody sees another's
examples, uneven shards do not matter, and one process with batch 2 B sees what two with batch B see.
"""

import atexit
import contextlib
import hashlib
import io
import itertools
import queue
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError
from datasets.utils.file_utils import xopen
from huggingface_hub.errors import HTTPError
from PIL import Image, ImageOps

from tinyldm import toyfaces
from tinyldm.config import DataConfig
from tinyldm.errors import UserError

MAX_CORRUPT = 0.05  # more than this share of unreadable images means that something else is wrong
MIN_POSITIONS = 100  # before judging that share
UNREADABLE = (OSError, ValueError, tarfile.TarError, DatasetGenerationError, HTTPError)  # damaged files, a lost network


# ---------------------------------------------------------------------------------------------------------- one image


def to_square(image: Image.Image, resolution: int) -> np.ndarray:
    """Orient, crop the central square and resize it with antialiasing.

    Cropping comes first (the result is the same as resizing the shorter side and cropping after), so that a 10 x 10,000
    strip costs no more than a square.

    Args:
        image: of any mode: grey, palette, CMYK, 16-bit and transparent ones become RGB, the last over white.
        resolution: side of the result in pixels; smaller images are enlarged.

    Returns:
        uint8 array (resolution, resolution, 3).
    """
    image.draft("RGB", (2 * resolution, 2 * resolution))  # a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16 bits to 8 instead of scaling them
        grey = np.asarray(image, dtype=np.float32)
        grey = grey / 257 if image.mode.startswith("I") else grey * 255  # modes I are 16-bit files, F is in [0, 1]
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))


def image_bytes(value: dict[str, Any] | None) -> bytes:
    """The encoded file of an undecoded Image cell: parquet has `bytes`, folders have a `path`, WebDataset has both."""
    if not value:
        raise OSError("empty cell")
    if value.get("bytes") is not None:
        return value["bytes"]
    with xopen(value["path"], "rb") as file:
        return file.read()


# ----------------------------------------------------------------------------------------------------------- a source


@dataclass
class Source:
    """One part of a data set, undecoded and in a fixed order.

    `dataset` is a datasets.Dataset (random access) or IterableDataset (streamed); `image_column` its column of the type
    Image(decode=False).
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    image_column: str
    name: str
    shuffle_buffer: int

    @property
    def streamed(self) -> bool:
        """Whether examples can only be read one after the other."""
        return isinstance(self.dataset, datasets.IterableDataset)

    def length(self) -> int:
        """Examples in one pass; a stream has to be read through once (undecoded) to know."""
        return sum(1 for _ in self.epoch(None, 0)) if self.streamed else len(self.dataset)

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
            for example in itertools.islice(stream, start, None):  # stream.skip() would change the order
                yield lambda example=example: example
        except UNREADABLE as error:
            raise UserError(_why_not(self.name, error)) from error

    def cell(self, example: dict[str, Any]) -> dict[str, Any]:
        """The undecoded image of an example."""
        return example[self.image_column]


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
    return tuple(Source(part, column, train.name, train.shuffle_buffer) for part in parts)


def _load(data: DataConfig, split: str) -> Source:
    if data.name == "toyfaces" and not data.streaming:
        raise UserError("toyfaces is drawn on the fly; set data.streaming to true")
    try:
        if data.name == "toyfaces":
            dataset = toyfaces.load(split, data.resolution)
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
    return Source(dataset, column, data.name, data.shuffle_buffer)


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


# ----------------------------------------------------------------------------------------------------------- a stream


class Images:
    """Decodes examples in threads and yields images in the examples' order.

    Pillow releases the interpreter's lock while it decodes and resizes, so threads do what worker processes would
    without copies between processes, and a stream is read once however many there are.

    `corrupt` and `seen` count; above 5% the iteration stops.

    Raises:
        UserError: while iterating, when more than 5% of the images, or all of a small set, are corrupt.
    """

    def __init__(self, source: Source, resolution: int, num_workers: int):
        self.source, self.resolution, self.num_workers = source, resolution, num_workers
        self.seen = self.corrupt = 0

    def decode(self, fetch: Callable[[], dict[str, Any]]) -> np.ndarray | str:
        """uint8 array (resolution, resolution, 3), or why there is none."""
        try:
            with Image.open(io.BytesIO(image_bytes(self.source.cell(fetch())))) as image:
                return to_square(image, self.resolution)
        except Exception as error:  # Pillow's readers raise what they like: SyntaxError (PNG), RuntimeError (AVIF) ...
            return f"{type(error).__name__}: {error}"

    def __call__(self, examples: Iterable[Callable[[], dict[str, Any]]], fill: bool = False) -> Iterator[np.ndarray]:
        """Decode `examples`, leaving corrupt images out.

        Args:
            fill: give the place of a corrupt image to the next readable one: batches stay full, and which image stands
                where is still a function of the position.
        """
        waiting = 0  # places whose image was corrupt
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="decode") as pool:
            pending: deque = deque()
            examples = iter(examples)
            while True:
                for example in itertools.islice(examples, 4 * self.num_workers - len(pending)):
                    pending.append(pool.submit(self.decode, example))
                if not pending:
                    break
                image = pending.popleft().result()
                self.seen += 1
                waiting += 1
                if isinstance(image, str):
                    self._count_corrupt(image)
                    continue
                yield from itertools.repeat(image, waiting if fill else 1)
                waiting = 0

    def _count_corrupt(self, reason: str) -> None:
        self.corrupt += 1
        if self.corrupt <= 3:
            print(f"warning: skipped an unreadable image of {self.source.name} ({reason})", file=sys.stderr)
        if self.seen >= MIN_POSITIONS:
            self.check()

    def check(self) -> None:
        """Raise UserError when too many of the images seen so far were corrupt."""
        if self.corrupt > MAX_CORRUPT * self.seen:
            raise UserError(
                f"{self.corrupt} of {self.seen} images of {self.source.name!r} cannot be read, more than "
                f"{MAX_CORRUPT:.0%}: is data.image_column right, and are the files whole?"
            )


@dataclass
class ImageBatches:
    """Endless training batches of one process.

    Args:
        images: source and decoder.
        seed: of the order.
        batch_size: images a batch.
        process: (rank, number of processes).
    """

    images: Images
    seed: int
    batch_size: int
    process: tuple[int, int] = (0, 1)
    length: int | None = None

    def __call__(self, start: int = 0) -> Iterator[torch.Tensor]:
        """uint8 batches (B, 3, H, W) from micro-batch number `start` on, read ahead in a thread."""
        return read_ahead(self._batches(start))

    def _batches(self, start: int) -> Iterator[torch.Tensor]:
        decoded = self.images(self._examples(start), fill=True)
        while True:
            batch = list(itertools.islice(decoded, self.batch_size))
            if len(batch) < self.batch_size:
                return
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)  # channels_last in memory, as convolutions like it

    def _examples(self, start: int) -> Iterator[Callable[[], dict[str, Any]]]:
        rank, processes = self.process
        position, epoch, skip = start * processes * self.batch_size, 0, 0
        if position:
            self.length = self.length or self.images.source.length()
            epoch, skip = divmod(position, self.length)
        while True:
            seen_before, first = self.images.seen - self.images.corrupt, position
            for example in self.images.source.epoch(self.seed, epoch, skip):
                if position // self.batch_size % processes == rank:
                    yield example
                position += 1
            if position == first and not skip:
                raise UserError(
                    f"the training part of {self.images.source.name!r} is empty: see data.split, data.eval_fraction"
                )
            if not skip and self.images.seen and self.images.seen - self.images.corrupt == seen_before:
                self.images.check()  # a whole pass without one image: do not go round for ever
            epoch, skip = epoch + 1, 0


def read_ahead(batches: Generator[torch.Tensor], depth: int = 4, timeout: float = 600.0) -> Iterator[torch.Tensor]:
    """Run a generator in a thread, `depth` items ahead.

    Raises:
        UserError: when nothing came for `timeout` seconds (a stalled network), or what the generator raised.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def run() -> None:
        try:
            with contextlib.closing(batches):  # its decoding threads end with it
                for batch in batches:
                    put(batch)
                    if stopped.is_set():
                        return
            put(StopIteration())
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=run, daemon=True, name="read_ahead")
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join(timeout=5)

    atexit.register(stop)  # a daemon thread that is inside pyarrow when the interpreter goes aborts the process
    try:
        while True:
            try:
                item = ready.get(timeout=timeout)
            except queue.Empty:
                raise UserError(f"the data stream gave nothing for {timeout:.0f} s: check the network") from None
            if isinstance(item, StopIteration):
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        atexit.unregister(stop)
        stop()


def one_pass(images: Images, batch_size: int) -> Iterator[torch.Tensor]:
    """uint8 batches (B, 3, H, W) of all examples once, in the order of the files; the last may be smaller."""
    decoded = images(images.source.epoch(None, 0))
    while batch := list(itertools.islice(decoded, batch_size)):
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
    images.check()


def first_images(images: Images, count: int) -> torch.Tensor:
    """The first `count` images in the order of the files, uint8 (N, 3, H, W).

    Raises:
        UserError: when there is none.
    """
    decoded = list(itertools.islice(images(images.source.epoch(None, 0)), count))
    if not decoded:
        raise UserError(
            f"the held-out part of {images.source.name!r} has no readable image: raise data.eval_fraction, or name a "
            "split as data.eval_split"
        )
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1], on the device that the images are on (a quarter of the bytes to move)."""
    return images.float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] -> uint8, rounded and clamped."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
