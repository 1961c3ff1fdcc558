"""Packs what benchmarks.gpu needs on a machine without a network: small photographs and a first stage of them.

    python -m benchmarks.gpu_pack .gpu --data ../shared/data/faces --first_stage runs/faces64-vq

FOLDER gets faces/, parquet files with the splits train and validation, and vq/vqvae/, and the command that it prints adds
wheels/: packages which a machine with PyTorch, transformers and accelerate lacks. All faces of 64 px take about 32 MB.
"""

import io
import itertools
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from tinyldm.config.schema import DataConfig
from tinyldm.data.images import Images
from tinyldm.data.sources import open_sources

PARTS = ("train", "validation")
# Needed, and often missing beside PyTorch; trainings ran with these on Python 3.12, torch 2.11 and huggingface-hub 1.33.
LACKING = ("datasets", "diffusers", "dill", "docstring-parser", "jsonargparse", "multiprocess", "typeshed-client")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(
    folder: str,
    data: str = "../shared/data/faces",
    first_stage: str = "runs/faces64-vq",
    side: int = 64,
    images: int | None = None,
    quality: int = 92,
) -> None:
    """Pack photographs and a first stage.

    Args:
        folder: where to; a packed folder there is replaced.
        data: a data set with the splits train and validation.
        first_stage: a run of train_vq.py over such images.
        side: of the packed images, in pixels.
        images: how many of each split. None: all.
        quality: of the JPEG files.
    """
    out, stage = Path(folder), Path(first_stage) / "vqvae"
    if not stage.is_dir():
        raise SystemExit(f"{first_stage} has no vqvae: give --first_stage, a run of train_vq.py")
    for part in ("faces", "vq"):
        shutil.rmtree(out / part, ignore_errors=True)
    for number, part in enumerate(PARTS):
        squares = itertools.islice(squares_of(data, number, side), images)
        count = write(out / "faces", part, (encoded(square, "JPEG", quality=quality) for square in squares))
        print(f"{part}: {count:,} images")
    shutil.copytree(stage, out / "vq" / "vqvae")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out} holds {size / 1e6:.1f} MB. The wheels, about 8 MB more:\n\n{download(out / 'wheels')}\n")


def squares_of(data: str, number: int, side: int) -> Iterator[np.ndarray]:
    """The images of a data set as this project reads them, (side, side, 3) in uint8.

    Args:
        number: 0 for its split train, 1 for validation.
    """
    source = open_sources(DataConfig(name=data, eval_split="validation", resolution=side), 0)[number]
    return (image for image, _ in Images(source, side, 4)(source.epoch(None, 0)))


def encoded(square: np.ndarray, kind: str, **options: int) -> bytes:
    """An image (H, W, 3) in uint8 as a file of this kind."""
    file = io.BytesIO()
    Image.fromarray(square).save(file, kind, **options)
    return file.getvalue()


def write(folder: Path, part: str, files: Iterable[bytes]) -> int:
    """Write image files to PART-0.parquet in the folder. Returns how many."""
    rows = [{"bytes": content, "path": None} for content in files]
    features = datasets.Features({"image": datasets.Image()})
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(str(folder / f"{part}-0.parquet"))
    return len(rows)


def download(folder: Path) -> str:
    """The command that fetches the lacking wheels for Python 3.12 on x86-64, at the versions installed here."""
    platforms = " ".join(f"--platform {name}" for name in PLATFORMS)
    wanted = " ".join(f"{name}=={version(name)}" for name in LACKING)
    how = f"--no-deps --only-binary=:all: --python-version 3.12 --implementation cp {platforms}"
    return f"python3 -m pip download {how} -d {folder} {wanted}"


if __name__ == "__main__":
    auto_cli(main)
