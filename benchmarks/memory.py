"""Memory of a pass over ten and twenty times as many images, read from files, and over ten times as many kept latents.

Each pass runs in a new operating-system process. Passes over files vary by a few percent, so they are repeated.

python -m benchmarks.memory                  # about 5 minutes on 2 CPU cores
python -m benchmarks.memory --small true     # few images, to see that it runs
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
    """Most MB that this process has had after a pass over so many images in parquet files."""
    source, _ = open_sources(DataConfig(name=folder, eval_split="validation", resolution=side), 0)
    batches = ImageBatches(Images(source, side, 2), 0, BATCH)()
    with contextlib.closing(batches):
        for _ in range(images // BATCH):
            next(batches)
    return megabytes("VmHWM")


def of_latents(folder: str) -> dict[str, float]:
    """MB after an epoch of kept latents: what is this process's own, and the mapped files' pages, which the system takes back
    when it needs them."""
    store = LatentStore([mapped(file) for file in sorted(Path(folder).glob("*.npy"))], 1.0, 0)
    for _ in itertools.islice(LatentBatches(store, 0, 64)(), len(store) // 64):
        pass
    return {"own": megabytes("RssAnon"), "mapped": megabytes("RssFile")}


def shards(folder: Path, images: int) -> Path:
    """A store's files: latents of 256 px images by a VQ-f4, with their mirror images."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(images // SHARD):
        latents = random.standard_normal((SHARD, 2, 3, 64, 64), np.float32).astype(np.float16)
        np.save(folder / f"shard-{number:05d}.npy", latents)
    return folder


def main(images: int = 4000, latents: int = 20, repeats: int = 3, small: bool = False, output: str = str(RESULTS)) -> None:
    """Measure.

    Args:
        images: in the smaller set of JPEG files of 128 px.
        latents: shards of kept latents in the smaller store.
        repeats: of each pass over files.
        small: few of both.
        output: where the JSON goes.
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
            print(f"kept latents, {name}: {kept[name]}")
    record("memory", {"read": read, "kept": kept}, output, small)


if __name__ == "__main__":
    auto_cli(main)
