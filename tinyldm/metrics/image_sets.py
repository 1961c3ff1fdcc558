"""The sets of images that evaluate.py compares: a folder, an npz, a part of a data set, and features of each.

An `ImageSet` yields its images from any position on, so that interrupted work can resume.
"""

import collections
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from tinyldm.config.schema import DataConfig
from tinyldm.data.batch import Batch
from tinyldm.data.columns import names_and_values
from tinyldm.data.given import files_in
from tinyldm.data.identity import cache_key
from tinyldm.data.images import Images, collate
from tinyldm.data.sources import Source, hub_id
from tinyldm.data.subsets import in_random_order, random_rows
from tinyldm.errors import UserError, boundary
from tinyldm.files import digest
from tinyldm.limits import open_image, read_arrays
from tinyldm.metrics.chunks import Arrays, Batches, Chunks, fill
from tinyldm.metrics.features import FeatureNetwork

RANDOM = "random"  # in a key: another subset than that of versions that took the first images


@dataclass
class ImageSet:
    """Images of one size.

    Attributes:
        key: the settings that the images depend on, as JSON. Results state it, and caches are named by it.
        batches: (position, limit or None) -> uint8 batches from there on, each with the position after it.
        count: number of images; None if only reading them would tell.
    """

    key: dict[str, Any]
    batches: Callable[[int, int | None], Batches]
    count: int | None = None


# ------------------------------------------------------------------------------------------------------------- a data set


def data_part(source: Source, data: DataConfig, part: str, split_seed: int, batch_size: int) -> ImageSet:
    """All images of a part in file order, without unreadable ones."""
    return ImageSet(cache_key(data, part, split_seed), _from_source(source, data, batch_size))


def random_part(source: Source, data: DataConfig, part: str, split_seed: int, batch_size: int) -> ImageSet:
    """The images of a part in a random order, of which the first ones are a random subset. See subsets.in_random_order."""
    key = {**cache_key(data, part, split_seed), "order": RANDOM, **_buffer(source, True)}
    return ImageSet(key, _from_source(source, data, batch_size, at_random=True))


def part_labels(source: Source, data: DataConfig, part: str, split_seed: int, batch_size: int, limit: int | None) -> np.ndarray:
    """The labels (N, A) of `limit` random images of a part (None: of all, in file order), saved in data.cache_dir.

    They belong to the images of random_part or data_part: decoding tells which images are left out as unreadable.
    """
    order = {} if limit is None else {"order": RANDOM}
    labels = names_and_values(source.labels)
    key = {**cache_key(data, part, split_seed), **order, "labels": labels, **_buffer(source, limit is not None)}
    chunks = Chunks(Path(data.cache_dir).expanduser() / "labels" / digest(key), key, "delete it")
    batches = _from_source(source, data, batch_size, limit is not None, _labels)
    doing = f"labels of the {part.replace('_', '-')} part"
    return chunks.read(fill(chunks, limit, batches, lambda numbers: {"labels": numbers.numpy()}, doing))["labels"]


def _buffer(source: Source, at_random: bool) -> dict[str, int]:
    """A stream from the Hub is only random as far as its buffer reaches, so its random subset is another one."""
    return {"buffer": source.shuffle_buffer} if at_random and source.streamed and hub_id(source.name) else {}


def _labels(batch: Batch) -> torch.Tensor:
    assert batch.condition.labels is not None
    return batch.condition.labels


def _pixels(batch: Batch) -> torch.Tensor:
    return batch.x.expand(-1, 3, -1, -1)  # grey images too: feature networks take colours


def _from_source(
    source: Source,
    data: DataConfig,
    batch_size: int,
    at_random: bool = False,
    taken: Callable[[Batch], torch.Tensor] = _pixels,
) -> Callable[[int, int | None], Batches]:
    def batches(position: int, limit: int | None) -> Batches:
        images = Images.of(source, data)
        examples = in_random_order(source, limit, position) if at_random else source.epoch(None, 0, position)
        decoded, count = itertools.islice(images(examples), limit), 0
        while batch := list(itertools.islice(decoded, batch_size)):
            count += len(batch)
            yield taken(collate(batch)), position + images.seen
        if not position and (limit is None or count < limit):  # only a whole pass has a meaningful share
            images.check()

    return batches


def pick(images: ImageSet, rows: np.ndarray) -> torch.Tensor:
    """The images (len(rows), 3, H, W) with these numbers, in this order. Decodes all images up to the last one."""
    picked: dict[int, torch.Tensor] = {}
    numbers, number = set(rows.tolist()), itertools.count()
    for batch, _ in images.batches(0, int(rows.max()) + 1):
        picked.update({i: image for image in batch if (i := next(number)) in numbers})
    return torch.stack([picked[i] for i in rows.tolist()])


# ----------------------------------------------------------------------------------------------------- images from files


def open_images(path: str, data: DataConfig, batch_size: int, at_random: bool = False) -> ImageSet:
    """A folder of images, or an npz with one uint8 array (N, H, W, 3). Images must have the size of the reference.

    Args:
        at_random: in a random order, for a subset of them.

    Raises:
        UserError: if it is neither, holds no images, or holds images of another size.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return _folder(local, data, batch_size, at_random)
    if local.suffix != ".npz" or not local.is_file():
        raise UserError(f"images {path} is neither a folder nor an npz file")
    with boundary(f"images {path} cannot be read", "use an npz written by sample.py"):
        arrays = read_arrays(local)
    array = next(iter(arrays.values())) if len(arrays) == 1 else None
    if array is None or array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        holds = f"{array.dtype} {array.shape}" if array is not None else f"the arrays {', '.join(arrays) or '(none)'}"
        raise UserError(f"images {path} holds {holds}; it must be one uint8 array (N, H, W, 3), N above 0")
    _check_size(array.shape[2], array.shape[1], data.resolution, path)
    order = random_rows(len(array)) if at_random else np.arange(len(array))

    def batches(position: int, limit: int | None) -> Batches:
        end = len(array) if limit is None else min(len(array), position + limit)
        for first in range(position, end, batch_size):
            after = min(first + batch_size, end)
            yield torch.from_numpy(array[order[first:after]]).permute(0, 3, 1, 2), after

    key = {"images": str(local.resolve()), "format": "npz", "content": hashlib.sha256(array.tobytes()).hexdigest()[:16]}
    return ImageSet(key | ({"order": RANDOM} if at_random else {}), batches, len(array))


def _folder(folder: Path, data: DataConfig, batch_size: int, at_random: bool) -> ImageSet:
    files = files_in(folder)
    if not files:
        raise UserError(f"the folder {folder} holds no images: use one with png or jpeg files, or an npz")
    first, size = files[0], (0, 0)
    formats: collections.Counter = collections.Counter()
    stats = []
    for file in files:
        with boundary(f"image {file} cannot be read", "delete it or fix it"), open_image(file) as image:
            this = image.size
            formats[image.format] += 1
        if file is first:
            size = this
        if this != size:
            raise UserError(
                f"images of mixed sizes: {first} is {size[0]} x {size[1]}, {file} is {this[0]} x {this[1]}; "
                "all must have the size of the reference"
            )
        stats.append([str(file), file.stat().st_size, file.stat().st_mtime_ns])
    _check_size(*size, data.resolution, str(folder))
    table = datasets.Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", datasets.Image(decode=False))
    key = {
        "images": str(folder.resolve()),
        "format": ", ".join(f"{count} {kind}" for kind, count in formats.most_common()),
        "content": digest(stats),
        **({"order": RANDOM} if at_random else {}),
    }
    return ImageSet(key, _from_source(Source(table, "image", str(folder), 0), data, batch_size, at_random), len(files))


def _check_size(width: int, height: int, resolution: int, path: str) -> None:
    if (width, height) != (resolution, resolution):
        advice = f"set --data.resolution {width}" if width == height else "make them square"
        raise UserError(
            f"the images of {path} are {width} x {height}, those of the reference {resolution} x {resolution} "
            f"(data.resolution): {advice}"
        )


# -------------------------------------------------------------------------------------------------------------- features


def embed(images: ImageSet, limit: int | None, chunks: Chunks, make: Callable[[torch.Tensor], Arrays], doing: str) -> Arrays:
    """The arrays of the first `limit` images (None: all). Makes and saves the missing ones.

    Raises:
        UserError: if features are not finite, or there are no images.
    """

    def checked(batch: torch.Tensor) -> Arrays:
        arrays = make(batch)
        if not np.isfinite(arrays["features"]).all():
            raise UserError(f"{doing}: not finite; check the images, and use --dtype float32")
        return arrays

    count = fill(chunks, limit, images.batches, checked, doing)
    if not count:
        raise UserError(f"{doing}: there are no images: check data.split, data.eval_split and data.eval_fraction")
    return chunks.read(count)


def embed_part(images: ImageSet, part: str, data: DataConfig, network: FeatureNetwork, limit: int | None = None) -> Arrays:
    """Features of the first `limit` images (None: all) of a part of a data set, saved in data.cache_dir for other models."""
    key = {"images": images.key, "features": network.recipe}
    folder = Path(data.cache_dir).expanduser() / "features" / digest(key)
    doing = f"features of the {part.replace('_', '-')} part"
    return embed(images, limit, Chunks(folder, key, "delete it"), network.embed, doing)
