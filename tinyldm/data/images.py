"""Turns a source of images into batches of square images, in an order that depends on (seed, position) alone.

Undecoded examples -> this rank's share -> decode, orient, crop, resize (in threads) -> batches.

The order has no state to save. Position p of the endless stream is example `p - epoch * length` of the shuffle of
(seed, epoch). From position P on, micro-batch k of rank r out of R holds the positions P + [(k R + r) B, (k R + r + 1) B).
So no two ranks see the same example, uneven shards do not matter, and one rank with batch size 2 B sees what two with B
see. A training may continue from any position with another batch size or number of ranks.
"""

import functools
import io
import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from tinyldm.config.schema import DataConfig
from tinyldm.data.batch import Batch, Condition
from tinyldm.data.colour import to_8_bits, to_srgb
from tinyldm.data.kept import KeptImages
from tinyldm.data.prefetch import Stalled, read_ahead
from tinyldm.data.resizing import central_square, shrink, shrinks
from tinyldm.data.sources import Source
from tinyldm.data.subsets import in_random_order
from tinyldm.errors import UserError
from tinyldm.limits import open_image
from tinyldm.randomness import ALONE, Draw, Rank

try:
    from torchvision.io import decode_jpeg
except ImportError:  # torchvision 0.29 says that it will be removed
    decode_jpeg = None  # type: ignore[assignment]

TRANSFORM = (
    # Names to_square in cache keys: change both together.
    "oriented, black and white as declared or measured, central square, bicubic with antialiasing by Pillow or torch, sRGB, "
    "8 bits"
)
MAX_CORRUPT = 0.05  # more unreadable images than this share hint at another problem
RETRIES = 2  # how often a stalled stream is reopened
MIN_POSITIONS = 100  # images seen before MAX_CORRUPT applies
GROUP = 16  # examples per decoding task: a task costs a tenth of decoding a small photograph


def to_square(image: Image.Image, resolution: int, channels: int = 3) -> np.ndarray:
    """Orient, crop the central square and resize it with antialiasing.

    Cropping first gives the same result as resizing the shorter side first. But a 10 x 10,000 strip costs no more than a
    square.

    Colours become sRGB by the file's profile. Values of more than 8 bits, and floats, are scaled as colour.to_8_bits says.

    Args:
        image: an image of any mode: grey, palette, CMYK, 16-bit, float or transparent (shown on white).
        resolution: side length of the result in pixels; smaller images are enlarged.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        uint8 array (resolution, resolution, channels).
    """
    mode, profile = "RGB" if channels == 3 else "L", image.info.get("icc_profile")
    # Decode a large JPEG at 1/2, 1/4 or 1/8 of its size. A profile needs all colours.
    image.draft("RGB" if profile else mode, (2 * resolution, 2 * resolution))
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16 bits to 8 instead of scaling them
        image = to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB") and not (image.mode == "CMYK" and profile):
        image = image.convert("RGB")
    square = central_square(image, resolution)
    if profile or image.mode != mode:  # last: the square has fewer pixels
        square = np.asarray(to_srgb(Image.fromarray(square, image.mode), profile).convert(mode))
    return square.reshape(resolution, resolution, channels)


def read_square(content: bytes, resolution: int, channels: int = 3) -> np.ndarray:
    """`to_square` of an image file, faster for a plain JPEG.

    Raises:
        Exception: of many types, for a file that is damaged or too large.
    """
    with open_image(io.BytesIO(content), 2 * resolution) as image:
        pixels = _plain_jpeg(image, content) if channels == 3 and shrinks(image.size, resolution) else None
        return to_square(image, resolution, channels) if pixels is None else shrink(pixels, resolution)


def _plain_jpeg(image: Image.Image, content: bytes) -> np.ndarray | None:
    """The pixels (H, W, 3) of a colour JPEG without profile and rotation, decoded at full size. None for other files, and for
    damaged ones: Pillow says what is wrong.

    Args:
        image: the file, opened by open_image.
    """
    full = getattr(image, "decoderconfig", None) == (1, 0)  # by JPEG's `draft`
    if not decode_jpeg or not full or image.mode != "RGB" or "icc_profile" in image.info or image.getexif().get(0x112, 1) != 1:
        return None
    try:
        pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), "RGB")
    except RuntimeError:
        return None
    return pixels.permute(1, 2, 0).numpy()


Fetch = Callable[[], dict[str, Any]]  # reads an example
Decoded = tuple[np.ndarray, list[int]]  # an image and the numbers of its labels


class Unreadable(NamedTuple):
    """An example that could not be decoded: its file's name, and the error."""

    name: str
    reason: str


class Images:
    """Decodes examples in threads and yields (image, labels) in the examples' order.

    Pillow releases the interpreter's lock while it decodes and resizes. So threads are as fast as worker processes, copy
    nothing, and read a stream only once.

    Attributes:
        seen: number of examples so far.
        corrupt: how many of them could not be decoded, in all epochs.
        unreadable: file name -> reason; each file counts once.
        kept: those that are decoded only once. None: each one is decoded whenever it is read.

    Raises:
        UserError: while iterating, if more than 5% of the images are corrupt, or all images of a small data set.
    """

    def __init__(self, source: Source, resolution: int, num_workers: int, channels: int = 3):
        self.source, self.resolution, self.num_workers, self.channels = source, resolution, num_workers, channels
        self.seen = self.corrupt = 0
        self.unreadable: dict[str, str] = {}
        self.kept: KeptImages | None = None

    @classmethod
    def of(cls, source: Source, data: DataConfig) -> "Images":
        """The images of a source, as a recipe's data section wants them."""
        return cls(source, data.resolution, data.num_workers, data.channels)

    def decode(self, fetch: Fetch) -> Decoded | Unreadable:
        """uint8 array (resolution, resolution, channels) and numbers of labels, or why there is none."""
        example: dict[str, Any] = {}
        try:
            example = fetch()
            content = self.source.content(example)
            decode = functools.partial(read_square, content, self.resolution, self.channels)
            return self.kept(content, decode) if self.kept else decode(), self.source.label(example)
        except Exception as error:  # Pillow's readers raise many types: SyntaxError (PNG), RuntimeError (AVIF) ...
            return Unreadable(self.source.file_name(example), f"{type(error).__name__}: {error}")

    def _decode_all(self, group: list[Fetch]) -> list[Decoded | Unreadable]:
        return [self.decode(fetch) for fetch in group]

    def __call__(self, examples: Iterable[Fetch], fill: bool = False) -> Iterator[Decoded]:
        """Decode `examples` and skip corrupt images.

        Args:
            fill: yield the next readable image once more for each corrupt one. Batches stay full, and each position still
                determines its image.
        """
        waiting = 0  # positions that the next readable image fills
        for decoded in self._decoded(iter(examples)):
            self.seen += 1
            waiting += 1
            if isinstance(decoded, Unreadable):
                self._count_corrupt(decoded)
                continue
            yield from itertools.repeat(decoded, waiting if fill else 1)
            waiting = 0

    def _decoded(self, examples: Iterator[Fetch]) -> Iterator[Decoded | Unreadable]:
        """What `decode` returns for each example: from threads, or without `num_workers` from this one."""
        if not self.num_workers:
            yield from map(self.decode, examples)
            return
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="decode") as pool:
            pending: deque = deque()
            groups = iter(lambda: list(itertools.islice(examples, GROUP)), [])
            while True:
                for group in itertools.islice(groups, self.num_workers + 1 - len(pending)):
                    pending.append(pool.submit(self._decode_all, group))
                if not pending:
                    break
                yield from pending.popleft().result()

    def _count_corrupt(self, image: Unreadable) -> None:
        self.corrupt += 1
        if image.name not in self.unreadable and len(self.unreadable) < 3:
            print(f"warning: skipped {image.name} of {self.source.name}, which is unreadable ({image.reason})", file=sys.stderr)
        self.unreadable.setdefault(image.name, image.reason)
        if self.seen >= MIN_POSITIONS:
            self.check()

    def check(self) -> None:
        """Raise UserError if too many of the images seen so far were corrupt."""
        if self.corrupt > MAX_CORRUPT * self.seen:
            raise UserError(
                f"{self.corrupt} of {self.seen} images of {self.source.name!r} cannot be read, more than "
                f"{MAX_CORRUPT:.0%}: check data.image_column, and whether the files are damaged"
            )


@dataclass
class ImageBatches:
    """Endless training batches of one rank.

    Args:
        images: source and decoder.
        seed: seed of the order.
        batch_size: images per batch.
        rank: the rank that gets these batches.
        length: images per epoch; counted when first needed.
        timeout: seconds without an example after which the stream counts as stalled.
    """

    images: Images
    seed: int
    batch_size: int
    rank: Rank = ALONE
    length: int | None = None
    timeout: float = 600.0

    def __call__(self, position: int = 0) -> Generator[Batch, None, None]:
        """Yield batches from a position on, read ahead in a thread.

        Args:
            position: how many images all ranks have seen before.

        A stalled stream is reopened at the same position, up to RETRIES times.

        Raises:
            UserError: while iterating, if the stream keeps stalling or cannot be read.
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
                print(f"warning: {error}; opening it again", file=sys.stderr)

    def _batches(self, position: int) -> Generator[Batch, None, None]:
        decoded = self.images(self._examples(position), fill=True)
        while True:
            batch = list(itertools.islice(decoded, self.batch_size))
            if len(batch) < self.batch_size:
                return
            yield collate(batch)

    def _examples(self, position: int) -> Iterator[Fetch]:
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
                self.images.check()  # a whole epoch without an image: do not loop forever
            epoch, skip = epoch + 1, 0


def collate(decoded: list[Decoded]) -> Batch:
    """Make a batch of what Images yields, channels_last in memory for faster convolutions."""
    images, labels = zip(*decoded, strict=True)
    condition = Condition(torch.tensor(labels)) if labels[0] else Condition()
    return Batch(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), condition)


def first_examples(images: Images, count: int) -> Batch:
    """`count` random images, with their labels: the first ones of subsets.in_random_order.

    Raises:
        UserError: if there are no images.
    """
    decoded = list(itertools.islice(images(in_random_order(images.source, count)), count))
    if not decoded:
        raise UserError(
            f"the held-out part of {images.source.name!r} has no readable image: raise data.eval_fraction, or set "
            "data.eval_split"
        )
    return collate(decoded)


def first_images(images: Images, count: int) -> torch.Tensor:
    """`count` random images, uint8 (N, C, H, W). See first_examples.

    Raises:
        UserError: if there are no images.
    """
    return first_examples(images, count).x


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]. Move the images to their device first: uint8 is a quarter of the bytes."""
    return images.float() / 127.5 - 1


def mirror_half(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Mirror each image of (B, C, H, W) with probability 1/2."""
    flip = draw.uniform(len(images)) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] -> uint8, rounded and clamped."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
