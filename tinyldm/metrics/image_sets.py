"""What evaluate.py looks at: samples of a model, a folder or an npz of images, the parts of a data set. Each is an `ImageSet`:
what it is made of, and its images from any position on, so that work on it can go on where it stopped."""

import collections
import hashlib
import itertools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from tinyldm.config.schema import DataConfig
from tinyldm.data.identity import cache_key
from tinyldm.data.images import Images, collate
from tinyldm.data.sources import Source
from tinyldm.errors import UserError
from tinyldm.files import digest
from tinyldm.metrics.chunks import Batches, Pieces, fill
from tinyldm.metrics.features import FeatureNetwork

Arrays = dict[str, np.ndarray]


@dataclass
class ImageSet:
    """Images of one size.

    Attributes:
        made_of: what they depend on, as JSON: the stamp of figures, and the key of what is kept.
        batches: (position, how many at most or None) -> uint8 batches from there on, each with the position after it.
        count: how many there are; None where only reading or drawing them tells.
    """

    made_of: dict[str, Any]
    batches: Callable[[int, int | None], Batches]
    count: int | None = None


# ------------------------------------------------------------------------------------------------------------- a data set


def data_part(source: Source, data: DataConfig, part: str, split_seed: int, batch_size: int) -> ImageSet:
    """The images of a part in the order of its files; unreadable ones are left out."""
    return ImageSet(cache_key(data, part, split_seed), _from_source(source, data, batch_size))


def _from_source(source: Source, data: DataConfig, batch_size: int) -> Callable[[int, int | None], Batches]:
    def batches(position: int, wanted: int | None) -> Batches:
        images = Images(source, data.resolution, data.num_workers, data.channels)
        decoded, count = itertools.islice(images(source.epoch(None, 0, position)), wanted), 0
        while batch := list(itertools.islice(decoded, batch_size)):
            count += len(batch)
            yield collate(batch).images.expand(-1, 3, -1, -1), position + images.seen  # grey ones as well, as in draw
        if not position and (wanted is None or count < wanted):  # seen as a whole: one of the first few says nothing
            images.check()

    return batches


def pick(images: ImageSet, rows: np.ndarray) -> torch.Tensor:
    """The images (len(rows), 3, H, W) of these numbers, in this order; those before the last one are decoded on the way."""
    found: dict[int, torch.Tensor] = {}
    wanted, number = set(rows.tolist()), itertools.count()
    for batch, _ in images.batches(0, int(rows.max()) + 1):
        found.update({i: image for image in batch if (i := next(number)) in wanted})
    return torch.stack([found[i] for i in rows.tolist()])


# ----------------------------------------------------------------------------------------------------- images of any origin


def open_images(path: str, data: DataConfig, batch_size: int) -> ImageSet:
    """A folder of images, or an npz with one uint8 array (N, H, W, 3); each image as large as the reference's.

    Raises:
        UserError: when it is neither, has no images, or images of another size.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return _folder(local, data, batch_size)
    if local.suffix != ".npz" or not local.is_file():
        raise UserError(f"images {path} is neither a folder nor an npz file")
    try:
        with np.load(local) as arrays:
            names = arrays.files
            array = arrays[names[0]] if len(names) == 1 else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"images {path} cannot be read ({error}); give an npz as sample.py writes it") from error
    if array is None or array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        holds = f"{array.dtype} {array.shape}" if array is not None else f"the arrays {', '.join(names) or '(none)'}"
        raise UserError(f"images {path} holds {holds}; it must be one uint8 array (N, H, W, 3), N above 0")
    _check_size(array.shape[2], array.shape[1], data.resolution, path)

    def batches(position: int, wanted: int | None) -> Batches:
        end = len(array) if wanted is None else min(len(array), position + wanted)
        for first in range(position, end, batch_size):
            after = min(first + batch_size, end)
            yield torch.from_numpy(array[first:after]).permute(0, 3, 1, 2), after

    made_of = {"images": str(local.resolve()), "format": "npz", "content": hashlib.sha256(array.tobytes()).hexdigest()[:16]}
    return ImageSet(made_of, batches, len(array))


def _folder(folder: Path, data: DataConfig, batch_size: int) -> ImageSet:
    endings = Image.registered_extensions()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in endings and not file.name.startswith("."))
    if not files:
        raise UserError(f"the folder {folder} holds no images; give one with png or jpeg files, or an npz")
    first, formats, stats = None, collections.Counter(), []
    for file in files:
        try:
            with Image.open(file) as image:
                size = image.size
                formats[image.format] += 1
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"image {file} cannot be read ({error}); delete or mend it") from error
        if first and size != first[1]:
            raise UserError(
                f"images of mixed sizes: {first[0]} is {first[1][0]} x {first[1][1]}, {file} is {size[0]} x {size[1]}; "
                "they must have one size, that of the reference"
            )
        first = first or (file, size)
        stats.append([str(file), file.stat().st_size, file.stat().st_mtime_ns])
    _check_size(*first[1], data.resolution, str(folder))
    table = datasets.Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", datasets.Image(decode=False))
    made_of = {
        "images": str(folder.resolve()),
        "format": ", ".join(f"{count} {kind}" for kind, count in formats.most_common()),
        "content": digest(stats),
    }
    return ImageSet(made_of, _from_source(Source(table, "image", str(folder), 0), data, batch_size), len(files))


def _check_size(width: int, height: int, resolution: int, path: str) -> None:
    if (width, height) != (resolution, resolution):
        advice = f"set --data.resolution {width}" if width == height else "make them square"
        raise UserError(
            f"the images of {path} are {width} x {height}, those of the reference {resolution} x {resolution} "
            f"(data.resolution): {advice}"
        )


# ---------------------------------------------------------------------------------------------------------------- a model


# -------------------------------------------------------------------------------------------------------------- features


def embed(images: ImageSet, wanted: int | None, pieces: Pieces, make: Callable[[torch.Tensor], Arrays], doing: str) -> Arrays:
    """The kept arrays of the first `wanted` images (None: all), those that are missing made now.

    Raises:
        UserError: where features are not finite, or there are no images.
    """

    def checked(batch: torch.Tensor) -> Arrays:
        arrays = make(batch)
        if not np.isfinite(arrays["features"]).all():
            raise UserError(f"{doing}: not finite; look at the images, and use --dtype float32")
        return arrays

    count = fill(pieces, wanted, images.batches, checked, doing)
    if not count:
        raise UserError(f"{doing}: there are no images; see data.split, data.eval_split and data.eval_fraction")
    return pieces.read(count)


def embed_part(images: ImageSet, part: str, data: DataConfig, network: FeatureNetwork, wanted: int | None = None) -> Arrays:
    """Features of the first images of a part of a data set. They are kept in data.cache_dir, for the next model as well."""
    made_of = {"images": images.made_of, "features": network.recipe}
    folder = Path(data.cache_dir).expanduser() / "features" / digest(made_of)
    doing = f"features of the {part.replace('_', '-')} part"
    return embed(images, wanted, Pieces(folder, made_of, "delete it"), network.embed, doing)
