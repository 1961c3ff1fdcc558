"""A source of images -> a stream of square RGB images, in an order that depends on (seed, position) alone.

Undecoded examples -> this process's share -> decode, orient, crop, resize (in threads) -> batches.

The order has no state to save. Position p of the endless stream is example `p - epoch * length` of the shuffle of
(seed, epoch). From position P on, micro-batch k of rank r out of R is the positions P + [(k R + r) B, (k R + r + 1) B): no two
ranks see the same examples, uneven shards do not matter, one rank with batch 2 B sees what two with batch B see, and a
training may continue from any position with other batches.
"""

import io
import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from tinyldm.config.schema import DataConfig
from tinyldm.data.batch import Batch, Condition
from tinyldm.data.prefetch import Stalled, read_ahead
from tinyldm.data.sources import Source, image_bytes
from tinyldm.errors import UserError
from tinyldm.randomness import ALONE, Draw, Rank

TRANSFORM = "oriented, central square, Pillow bicubic with antialiasing, 8 bits"  # to_square, for what is kept of its images
MAX_CORRUPT = 0.05  # more than this share of unreadable images means that something else is wrong
RETRIES = 2  # of a stream that stalls
MIN_POSITIONS = 100  # before judging that share
GROUP = 16  # examples that a thread decodes at once: handing over each by itself costs a tenth of decoding a small photograph


def to_square(image: Image.Image, resolution: int, channels: int = 3) -> np.ndarray:
    """Orient, crop the central square and resize it with antialiasing.

    Cropping comes first (the result is the same as resizing the shorter side and cropping after), so that a 10 x 10,000
    strip costs no more than a square.

    Args:
        image: of any mode: grey, palette, CMYK, 16-bit and transparent ones become RGB, the last over white.
        resolution: side of the result in pixels; smaller images are enlarged.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        uint8 array (resolution, resolution, channels).
    """
    mode = "RGB" if channels == 3 else "L"
    image.draft(mode, (2 * resolution, 2 * resolution))  # a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16 bits to 8 instead of scaling them
        grey = np.asarray(image, dtype=np.float32)
        grey = grey / 257 if image.mode.startswith("I") else grey * 255  # modes I are 16-bit files, F is in [0, 1]
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != mode:  # convert() would copy
        image = image.convert(mode)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    square = image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.asarray(square).reshape(resolution, resolution, channels)


class Images:
    """Decodes examples in threads and yields (image, label) in the examples' order.

    Pillow releases the interpreter's lock while it decodes and resizes, so threads do what worker processes would
    without copies between processes, and a stream is read once however many there are.

    `corrupt` and `seen` count; above 5% the iteration stops.

    Raises:
        UserError: while iterating, when more than 5% of the images, or all of a small set, are corrupt.
    """

    def __init__(self, source: Source, resolution: int, num_workers: int, channels: int = 3):
        self.source, self.resolution, self.num_workers, self.channels = source, resolution, num_workers, channels
        self.seen = self.corrupt = 0

    @classmethod
    def of(cls, source: Source, data: DataConfig) -> "Images":
        """The images of a source, as a recipe's data section wants them."""
        return cls(source, data.resolution, data.num_workers, data.channels)

    def decode(self, fetch: Callable[[], dict[str, Any]]) -> tuple[np.ndarray, int | None] | str:
        """uint8 array (resolution, resolution, channels) and label, or why there is none."""
        try:
            example = fetch()
            with Image.open(io.BytesIO(image_bytes(self.source.cell(example)))) as image:
                return to_square(image, self.resolution, self.channels), self.source.label(example)
        except Exception as error:  # Pillow's readers raise what they like: SyntaxError (PNG), RuntimeError (AVIF) ...
            return f"{type(error).__name__}: {error}"

    def _decode_all(self, group: list[Callable[[], dict[str, Any]]]) -> list[tuple[np.ndarray, int | None] | str]:
        return [self.decode(fetch) for fetch in group]

    def __call__(
        self, examples: Iterable[Callable[[], dict[str, Any]]], fill: bool = False
    ) -> Iterator[tuple[np.ndarray, int | None]]:
        """Decode `examples`, leaving corrupt images out.

        Args:
            fill: give the place of a corrupt image to the next readable one: batches stay full, and which image stands
                where is still a function of the position.
        """
        waiting = 0  # places whose image was corrupt
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="decode") as pool:
            pending: deque = deque()
            examples = iter(examples)
            groups = iter(lambda: list(itertools.islice(examples, GROUP)), [])
            while True:
                for group in itertools.islice(groups, self.num_workers + 1 - len(pending)):
                    pending.append(pool.submit(self._decode_all, group))
                if not pending:
                    break
                for decoded in pending.popleft().result():
                    self.seen += 1
                    waiting += 1
                    if isinstance(decoded, str):
                        self._count_corrupt(decoded)
                        continue
                    yield from itertools.repeat(decoded, waiting if fill else 1)
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
        rank: whose batches these are.
        length: images in a pass; known after one, or counted when it is needed before.
        timeout: seconds without an example after which the stream counts as stalled.
    """

    images: Images
    seed: int
    batch_size: int
    rank: Rank = ALONE
    length: int | None = None
    timeout: float = 600.0

    def __call__(self, position: int = 0) -> Generator[Batch, None, None]:
        """Batches from a position on, read ahead in a thread.

        Args:
            position: how many images all ranks have seen before.

        A stream that stalls is opened anew, where it stopped, RETRIES times.

        Raises:
            UserError: while iterating, for a stream that stalls again and again, or what reading it raises.
        """
        for left in reversed(range(RETRIES + 1)):
            try:
                for batch in read_ahead(self._batches(position), timeout=self.timeout, read=lambda: self.images.source.read):
                    yield batch
                    position += self.rank.count * self.batch_size
                return
            except Stalled as error:
                if not left:
                    raise
                print(f"warning: {error}; opening it anew", file=sys.stderr)

    def _batches(self, position: int) -> Generator[Batch, None, None]:
        decoded = self.images(self._examples(position), fill=True)
        while True:
            batch = list(itertools.islice(decoded, self.batch_size))
            if len(batch) < self.batch_size:
                return
            yield collate(batch)

    def _examples(self, position: int) -> Iterator[Callable[[], dict[str, Any]]]:
        start, epoch, skip = position, 0, 0
        if position:
            self.length = self.length or self.images.source.length()
            epoch, skip = divmod(position, self.length)
        while True:
            seen_before, first = self.images.seen - self.images.corrupt, position
            for example in self.images.source.epoch(self.seed, epoch, skip):
                if (position - start) // self.batch_size % self.rank.count == self.rank.index:
                    yield example
                position += 1
            if position == first and not skip:
                raise UserError(
                    f"the training part of {self.images.source.name!r} is empty: see data.split, data.eval_fraction"
                )
            if not skip:
                self.length = position - first
            if not skip and self.images.seen and self.images.seen - self.images.corrupt == seen_before:
                self.images.check()  # a whole pass without one image: do not go round for ever
            epoch, skip = epoch + 1, 0


def collate(decoded: list[tuple[np.ndarray, int | None]]) -> Batch:
    """Batch what Images yields; channels_last in memory, as convolutions like it."""
    images, labels = zip(*decoded, strict=True)
    condition = Condition() if labels[0] is None else Condition(torch.tensor(labels))
    return Batch(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), condition)


def one_pass(images: Images, batch_size: int) -> Iterator[torch.Tensor]:
    """uint8 batches (B, C, H, W) of all examples once, in the order of the files; the last may be smaller."""
    decoded = images(images.source.epoch(None, 0))
    while batch := list(itertools.islice(decoded, batch_size)):
        yield collate(batch).x
    images.check()


def first_examples(images: Images, count: int) -> Batch:
    """The first `count` images in the order of the files, with their labels.

    Raises:
        UserError: when there is none.
    """
    decoded = list(itertools.islice(images(images.source.epoch(None, 0)), count))
    if not decoded:
        raise UserError(
            f"the held-out part of {images.source.name!r} has no readable image: raise data.eval_fraction, or name a "
            "split as data.eval_split"
        )
    return collate(decoded)


def first_images(images: Images, count: int) -> torch.Tensor:
    """The first `count` images in the order of the files, uint8 (N, C, H, W).

    Raises:
        UserError: when there is none.
    """
    return first_examples(images, count).x


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1], on the device that the images are on (a quarter of the bytes to move)."""
    return images.float() / 127.5 - 1


def mirror_half(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Images (B, C, H, W), each mirrored or not with equal chances."""
    flip = draw.uniform(len(images)) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] -> uint8, rounded and clamped."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
