"""Memory of a pass over images from files (1, 10 and 20 times as many) and over stored latents (1 and 10 times as many).

Each pass runs in a new operating-system process. Passes over files vary by a few percent, so they are repeated.

python -m benchmarks.memory                  # about 5 minutes on 2 CPU cores
python -m benchmarks.memory --small true     # few images, to check that it runs
"""

import contextlib
import itertools
import statistics
import tempfile
from pathlib import Path

import datasets
import numpy as np
from jsonargparse import auto_cli

from benchmarks.data import BATCH, jpegs, parquet
from benchmarks.measure import RESULTS, in_new_process, megabytes, record
from tinyldm.config.schema import DataConfig
from tinyldm.data.images import ImageBatches, Images
from tinyldm.data.sources import open_sources
from tinyldm.first_stage.latent_batches import LatentBatches
from tinyldm.first_stage.latent_store import SHARD, LatentStore, mapped


def of_images(folder: str, side: int, images: int) -> float:
    """Peak MB of this process after a pass over `images` images in parquet files."""
    source, _ = open_sources(DataConfig(name=folder, eval_split="validation", resolution=side), 0)
    batches = ImageBatches(Images(source, side, 2), 0, BATCH)()
    with contextlib.closing(batches):
        for _ in range(images // BATCH):
            next(batches)
    return megabytes("VmHWM")


def of_latents(folder: str) -> dict[str, float]:
    """MB after an epoch of stored latents: the process's own memory, and pages of mapped files, which the system can reclaim at
    any time."""
    store = LatentStore([mapped(file) for file in sorted(Path(folder).glob("*.npy"))], 1.0, 0)
    for _ in itertools.islice(LatentBatches(store, 0, 64)(), len(store) // 64):
        pass
    return {"own": megabytes("RssAnon"), "mapped": megabytes("RssFile")}


def shards(folder: Path, images: int) -> Path:
    """Write the files of a store: latents of 256 px images from a VQ-f4, with their mirror images."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(images // SHARD):
        latents = random.standard_normal((SHARD, 2, 3, 64, 64), np.float32).astype(np.float16)
        np.save(folder / f"shard-{number:05d}.npy", latents)
    return folder


def main(images: int = 4000, latents: int = 20, repeats: int = 3, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        images: number of 128 px JPEG files in the smallest set.
        latents: number of shards in the smaller store.
        repeats: passes per set of files.
        small: few images and latents.
        output: folder for the JSON file.
    """
    datasets.disable_progress_bars()
    few, latents, repeats = (64, 1, 1) if small else (images, latents, repeats)
    read, kept = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        files = jpegs(64, 128)
        sets = {
            "few": (few, 1),
            "ten times as many": (10 * few, 10),
            "twenty times as many": (20 * few, 20),
            "ten times as many, in one file": (10 * few, 1),
        }  # images, files
        folders = {name: parquet(Path(temporary) / name.replace(" ", "-"), files, *size) for name, size in sets.items()}
        peaks: dict[str, list[float]] = {name: [] for name in sets}
        for _, (name, (count, parts)) in itertools.product(range(repeats), sets.items()):
            peaks[name].append(in_new_process(of_images, str(folders[name]), 64, count))
            print(f"{name}: at most {peaks[name][-1]:,.0f} MB after {count:,} images in {parts} files")
        for name, (count, _) in sets.items():
            read[name] = {"images": count, "megabytes": statistics.median(peaks[name]), "passes": peaks[name]}
        for name, count in (("few", latents), ("ten times as many", 10 * latents)):
            folder = shards(Path(temporary) / f"store-{count}", count * SHARD)
            kept[name] = {"images": count * SHARD, **in_new_process(of_latents, str(folder))}
            print(f"stored latents, {name}: {kept[name]}")
    record("memory", {"read": read, "kept": kept}, output, small)


if __name__ == "__main__":
    auto_cli(main)
