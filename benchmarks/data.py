"""Reading images: this project compared with a bare loop over the same bytes, and with diffusers' example.

    python -m benchmarks.data                                         # about 4 minutes
    python -m benchmarks.data --faces ../shared/data/faces            # photographs as well: 8 minutes
    python -m benchmarks.data --small true                            # few images, to check that it runs

Everything runs on one core, including decoding threads and the data loader's workers. Images become squares, resized with
antialiasing, in uint8 batches (float batches in diffusers' example).
"""

import contextlib
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from torchvision.transforms import v2

from benchmarks.measure import RESULTS, in_turns, ratio, record, told
from benchmarks.train_unconditional import example_batches
from tinyldm.config.schema import DataConfig
from tinyldm.data import toyfaces
from tinyldm.data.batch import Batch
from tinyldm.data.images import ImageBatches, Images
from tinyldm.data.sources import open_sources

BATCH = 16


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Within this context, all threads and child processes share one core."""
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("this benchmark needs Linux: it puts all threads on one core")
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    _put_on({max(before)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _put_on(before)
        torch.set_num_threads(threads)


def _put_on(chosen: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):  # pyarrow's pools already have threads
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), chosen)


def parquet(folder: Path, files: list[bytes], rows: int, shards: int = 1) -> Path:
    """Write `rows` images to train-*.parquet, cycling through all `files` but the last, which goes to validation.parquet."""

    def examples(count: int) -> Iterator[dict]:
        for number in range(count):
            yield {"image": {"bytes": files[number % (len(files) - 1) if count > 1 else -1], "path": None}}

    features = datasets.Features({"image": datasets.Image()})
    names = [(f"train-{number:05d}-of-{shards:05d}", rows // shards) for number in range(shards)]
    for name, count in (*names, ("validation", 1)):
        data_set = datasets.Dataset.from_generator(
            examples, features=features, cache_dir=str(folder.parent / "cache"), gen_kwargs={"count": count}
        )
        folder.mkdir(exist_ok=True)
        data_set.to_parquet(str(folder / f"{name}.parquet"), batch_size=100)
    return folder


def jpegs(count: int, side: int) -> list[bytes]:
    """Toy faces as JPEG files."""
    encoded = []
    for index in range(count):
        file = io.BytesIO()
        toyfaces.draw(0, index, side).save(file, "JPEG", quality=92)
        encoded.append(file.getvalue())
    return encoded


# -------------------------------------------------------------------------------------------------- four ways to read images


def ours(folder: Path, side: int, count: int) -> float:
    """Images per second of tinyldm's stream."""
    data = DataConfig(name=str(folder), eval_split="validation", resolution=side, shuffle_buffer=4 * BATCH)
    source, _ = open_sources(data, 0)
    batches = ImageBatches(Images(source, side, 1), 0, BATCH)()
    with contextlib.closing(batches):
        next(batches)  # opens the files and fills the buffer, which is small, so that reading continues
        return speed(batches, count)


def bare_pillow(files: list[bytes], side: int, count: int) -> float:
    """Images per second of decoding, cropping and resizing alone, by Pillow."""

    def images() -> Iterator[np.ndarray]:
        for content in itertools.cycle(files):
            image = Image.open(io.BytesIO(content))
            image.draft("RGB", (2 * side, 2 * side))
            image = image.convert("RGB")
            least = min(image.size)
            left, top = (image.width - least) // 2, (image.height - least) // 2
            box = (left, top, left + least, top + least)
            yield np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))

    return speed((torch.from_numpy(np.stack(batch)) for batch in batched(images())), count)


def torchvision_loop(files: list[bytes], side: int, count: int) -> float:
    """Images per second of torchvision's own decoder and transforms, in a loop."""
    from torchvision.io import ImageReadMode, decode_jpeg

    transform = v2.Compose([v2.Resize(side, v2.InterpolationMode.BICUBIC), v2.CenterCrop(side)])

    def images() -> Iterator[torch.Tensor]:
        for content in itertools.cycle(files):
            yield transform(decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB))

    return speed((torch.stack(batch) for batch in batched(images())), count)


def diffusers_example(folder: Path, side: int, count: int) -> float:
    """Images per second of diffusers' examples/unconditional_image_generation/train_unconditional.py: a memory-mapped Arrow
    data set, torchvision's transforms on PIL images with bilinear resizing, and a shuffling DataLoader."""
    data = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))
    endless = example_batches(data, side, BATCH, False, v2.InterpolationMode.BILINEAR)
    next(endless)
    return speed(endless, count)


def batched(images: Iterator) -> Iterator[list]:
    """Yield lists of BATCH images."""
    while batch := list(itertools.islice(images, BATCH)):
        yield batch


def speed(batches: Iterator, count: int) -> float:
    """Images per second, measured over at least `count` images."""
    started, seen = time.perf_counter(), 0
    while seen < count:
        batch = next(batches)
        seen += len(batch.x if isinstance(batch, Batch) else batch)
    return seen / (time.perf_counter() - started)


def main(pairs: int = 5, images: int = 512, faces: str | None = None, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        pairs: number of paired measurements.
        images: images per measurement.
        faces: a folder of parquet files with photographs, such as ../shared/data/faces, to measure at 64 px too.
        small: a few small images.
        output: folder for the JSON file.
    """
    figures: dict[str, dict] = {}
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        sets = {
            "cartoon faces, JPEG of 512 px, to 256 px": (jpegs(8 if small else 64, 64 if small else 512), 32 if small else 256)
        }
        if faces:
            source, _ = open_sources(DataConfig(name=faces, eval_split="validation"), 0)
            cells = itertools.islice(source.epoch(None, 0), 1000)
            sets["photographs, JPEG of about 180 px, to 64 px"] = ([source.content(cell()) for cell in cells], 64)
        for number, (name, (files, side)) in enumerate(sets.items()):
            folder = parquet(temporary / f"set{number}", files, 4 * images)
            others: dict[str, Callable[[], float]] = {
                "a bare loop of Pillow": lambda files=files, side=side: bare_pillow(files, side, images),
                "a bare loop of torchvision": lambda files=files, side=side: torchvision_loop(files, side, images),
                "diffusers' example": lambda folder=folder, side=side: diffusers_example(folder, side, images),
            }
            figures[name] = {}
            with one_core():
                for other, function in others.items():
                    results = in_turns(lambda folder=folder, side=side: ours(folder, side, images), function, pairs)
                    figures[name][other] = ratio(results)
                    print(told(f"{name}: tinyldm against {other}", figures[name][other]))
    record("data", {"speed": figures}, output, small)


if __name__ == "__main__":
    auto_cli(main)
