"""Small data sets on disk. Picture i has one colour that encodes i, so tests can tell which pictures they got."""

import contextlib
import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import torch
from PIL import Image

from tinyldm.config.schema import DataConfig
from tinyldm.data.images import Images, collate
from tinyldm.data.sources import Source, open_part, open_sources

LABELS = ("cat", "dog")


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(number: int, width: int = 12, height: int = 8) -> bytes:
    """PNG file of picture 0 to 65535, not square."""
    return encode(Image.new("RGB", (width, height), (number % 256, number // 256, 77)))


def corrupt(number: int) -> bytes:
    """A truncated image file with different bytes for each number."""
    return picture(number)[:-25]


def numbers(images: torch.Tensor) -> list[int]:
    """The numbers of the pictures in a uint8 batch (B, 3, H, W)."""
    assert (images[:, 2] == 77).all() and (images == images[:, :, :1, :1]).all(), "not whole pictures"
    return (images[:, 0, 0, 0].int() + 256 * images[:, 1, 0, 0].int()).tolist()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    """Write files, given by their names in the folder."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def table(contents: list[bytes | None], column: str = "image") -> datasets.Dataset:
    """Encoded images and labels."""
    cells = [content and {"bytes": content, "path": None} for content in contents]
    features = datasets.Features({"label": datasets.ClassLabel(names=list(LABELS)), column: datasets.Image()})
    return datasets.Dataset.from_dict({"label": [i % 2 for i in range(len(cells))], column: cells}, features=features)


def parquet(path: Path, shards: list[list[bytes | None]], column: str = "image", split: str = "train") -> Path:
    """One parquet file per shard, named as on the Hub."""
    path.mkdir(parents=True, exist_ok=True)
    for i, contents in enumerate(shards):
        table(contents, column).to_parquet(path / f"{split}-{i:05d}-of-{len(shards):05d}.parquet")
    return path


def tars(path: Path, shards: list[list[bytes]]) -> Path:
    """One WebDataset tar per shard, with 000003.png next to 000003.cls."""
    path.mkdir(parents=True, exist_ok=True)
    for i, contents in enumerate(shards):
        with tarfile.open(path / f"{i:03d}.tar", "w") as tar:
            for j, content in enumerate(contents):
                for ending, member in (("png", content), ("cls", str(j % 2).encode())):
                    info = tarfile.TarInfo(f"{i:03d}{j:03d}.{ending}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))
    return path


def config(path, **changes) -> DataConfig:
    return DataConfig(name=str(path), resolution=8, shuffle_buffer=7, **changes)


def whole(path, **changes) -> Source:
    """The split `train`, with nothing held out."""
    return open_part(config(path, **changes), "train")[0]


def one_pass(images: Images, batch_size: int) -> Iterator[torch.Tensor]:
    """uint8 batches (B, C, H, W) of all examples once, in file order; the last one may be smaller."""
    decoded = images(images.source.epoch(None, 0))
    while batch := list(itertools.islice(decoded, batch_size)):
        yield collate(batch).x
    images.check()


def in_order(source: Source) -> list[int]:
    return [number for batch in one_pass(Images(source, 8, 2), 4) for number in numbers(batch)]


def joined(parts: Iterable[list]) -> list:
    return list(itertools.chain.from_iterable(parts))


def take(batches, count: int) -> list[list[int]]:
    """The numbers in the next batches of a generator, which is closed afterwards."""
    with contextlib.closing(batches):
        return [numbers(batch.x) for batch in itertools.islice(batches, count)]


def pictures(*names: str) -> dict[str, bytes]:
    """Picture i by the i-th name."""
    return {name: picture(i) for i, name in enumerate(names)}


def read(path, split: str = "train", **changes) -> list[int]:
    """Which pictures a split has, sorted."""
    return sorted(in_order(open_part(config(path, **changes), split)[0]))


def describe(path, **changes) -> dict:
    """What data.json says of a data set."""
    return open_sources(config(path, **{"eval_fraction": 1e-9, **changes}), 0)[0].description.to_json()


def values(found: dict) -> list[str]:
    """The names of the values of the only label in a data.json."""
    (label,) = found["labels"].values()
    return [value["name"] for value in label["values"]]
