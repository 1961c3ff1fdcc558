"""Latents are encoded once and kept: the first stage never runs again, in this run or the next one over the same data.

A store is a folder: latents.bin, float16 (N, V, C, h, w) with V = 2 where mirrored images are kept too, and
store.json, which says what it was made of. It is memory-mapped: in memory as far as it fits, on the disk otherwise.
"""

import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from tinyldm.config import DataConfig
from tinyldm.data import Images, one_pass, read_ahead, to_float
from tinyldm.errors import UserError
from tinyldm.first_stage import FirstStage
from tinyldm.randomness import derive_seed
from tinyldm.sources import Source

VERSION = 1


@dataclass
class LatentStore:
    """Latents by number.

    Attributes:
        latents: float16 (N, V, C, h, w), unscaled.
        std: standard deviation over all values.
        corrupt: how many images were left out because they could not be read.
    """

    latents: np.ndarray
    std: float
    corrupt: int

    def __len__(self) -> int:
        return len(self.latents)

    def get(self, indices: np.ndarray, mirrored: np.ndarray | int = 0) -> torch.Tensor:
        """float32 (B, C, h, w), unscaled."""
        return torch.from_numpy(self.latents[indices, mirrored].astype(np.float32))


def open_store(
    data: DataConfig, source: Source, part: str, seed: int, first_stage: FirstStage, device: torch.device, mirrored: bool
) -> LatentStore:
    """The latents of one part of the data, encoded now if no store of the same data and first stage is there.

    Args:
        part: `train` or `held-out`.
        seed: which images are held out depends on it when the data set has no split for that.
        mirrored: keep the latents of the mirrored images too.
    """
    made_of = {
        "version": VERSION,
        "data": [data.name, data.revision, data.data_files, data.split, data.eval_split, source.image_column],
        "files": local_files(data),
        "held out": None if data.eval_split else [data.eval_fraction, seed],
        "part": part,
        "resolution": [data.resolution, data.channels],
        "mirrored": mirrored,
        "first stage": first_stage.fingerprint(),
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(data.cache_dir).expanduser() / "latents" / key
    if not (folder / "store.json").exists():
        images = Images(source, data.resolution, data.num_workers, data.channels)
        _build(folder, made_of, images, first_stage, device, mirrored)
    return _read(folder)


def local_files(data: DataConfig) -> list:
    """Name, size and time of each file of a local data set: a changed folder is another data set."""
    named = data.data_files or []  # may lie elsewhere than data.name, as for data.name parquet
    named = [named] if isinstance(named, str) else named.values() if isinstance(named, dict) else named
    files = {file for pattern in named for file in glob.glob(os.path.expanduser(pattern), recursive=True)}
    files.update(map(str, Path(data.name).expanduser().rglob("*")))
    return [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in sorted(files) if os.path.isfile(file)]


def _read(folder: Path) -> LatentStore:
    try:
        about = json.loads((folder / "store.json").read_text())
        shape = tuple(about["shape"])
        if (folder / "latents.bin").stat().st_size != 2 * math.prod(shape):
            raise ValueError("latents.bin has the wrong size")
        latents = np.memmap(folder / "latents.bin", np.float16, "r", shape=shape)
        if not 0 < about["std"] < float("inf"):
            raise ValueError(f"store.json says standard deviation {about['std']}")
        return LatentStore(latents, about["std"], about["corrupt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"latent store {folder} is damaged ({error}); delete that folder and start again") from error


def _build(folder: Path, made_of: dict, images: Images, first_stage: FirstStage, device: torch.device, mirrored: bool) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"data.cache_dir {folder.parent} cannot be written ({error.strerror}); choose another") from error
    count, total, squares, shape = 0, 0.0, 0.0, ()
    try:
        with (
            (aside / "latents.bin").open("wb") as file,
            tqdm(unit="image", desc=f"encoding the {made_of['part']} part", dynamic_ncols=True) as bar,
        ):
            for batch in read_ahead(one_pass(images, 16)):
                pixels = to_float(batch.to(device))
                views = [pixels, pixels.flip(-1)] if mirrored else [pixels]
                latents = torch.stack([first_stage.encode(view).cpu().half() for view in views], 1)  # (B, V, C, h, w)
                file.write(latents.numpy().tobytes())
                count, shape = count + len(latents), tuple(latents.shape[1:])
                total += latents.double().sum().item()
                squares += latents.double().square().sum().item()
                bar.update(len(latents))
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise UserError(
                f"the {made_of['part']} part of {images.source.name!r} is empty: see data.split and data.eval_fraction"
            )
        values = count * math.prod(shape)
        std = math.sqrt(max(squares / values - (total / values) ** 2, 0.0))
        if not 0 < std < float("inf"):
            raise UserError(f"the first stage gives latents of standard deviation {std}: are its weights whole?")
        about = {**made_of, "shape": [count, *shape], "std": std, "corrupt": images.corrupt}
        (aside / "store.json").write_text(json.dumps(about, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@dataclass
class LatentBatches:
    """Endless training batches: each epoch visits each image once, in the permutation of (seed, epoch).

    Position p of the endless sequence is entry p mod N of permutation p div N; which view (mirrored or not) is drawn
    per epoch and image. Micro-batch k of process r of R takes the positions [(k R + r) B, (k R + r + 1) B).
    """

    store: LatentStore
    seed: int
    batch_size: int
    process: tuple[int, int] = (0, 1)

    def __call__(self, start: int = 0) -> Iterator[torch.Tensor]:
        """float32 (B, C, h, w), unscaled, from micro-batch number `start` on."""
        rank, processes = self.process
        orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for micro in range(start, 2**62):
            positions = np.arange(self.batch_size) + (micro * processes + rank) * self.batch_size
            epochs, places = np.divmod(positions, len(self.store))
            orders = {epoch: orders.get(epoch) or self._order(epoch) for epoch in np.unique(epochs).tolist()}
            picked = [
                (orders[epoch][0][place], orders[epoch][1][place]) for epoch, place in zip(epochs.tolist(), places, strict=True)
            ]
            indices, views = np.array(picked).T
            yield self.store.get(indices, views)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(derive_seed("order", self.seed, epoch))
        count, views = self.store.latents.shape[:2]
        return random.permutation(count), random.integers(views, size=count)
