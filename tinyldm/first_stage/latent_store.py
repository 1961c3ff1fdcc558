"""Encodes each image once and stores its latents: the first stage does not run again for the same data.

A store is a folder:

    made_of.json       what the latents depend on: data set, commit, files, first stage. Its hash names the folder
    shard-00000.npy    float16 (n, V, C, h, w): the readable images among SHARD positions of the data. V counts the image, its
                       mirror image, and both again from a smaller version, as far as they are kept
    shard-00000.json   its numbers of positions and unreadable images, its labels, sums for the standard deviation; written last
    store.json         written last, when all shards are there

A killed build continues with the missing shards. Shards are assigned to ranks round-robin. Training memory-maps
the shards: in memory as far as they fit, on the disk otherwise.
"""

import contextlib
import itertools
import json
import math
import os
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from tinyldm.config.schema import DataConfig
from tinyldm.data.batch import Batch, Condition
from tinyldm.data.columns import names_and_values
from tinyldm.data.identity import cache_key, hub_id
from tinyldm.data.images import Images, collate, to_float
from tinyldm.data.prefetch import read_ahead
from tinyldm.data.small import shrink
from tinyldm.data.sources import Source
from tinyldm.errors import UserError, boundary
from tinyldm.files import difference, digest, one_at_a_time, replace_text
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.limits import read_npy_header
from tinyldm.portable.low_resolution import enlarge
from tinyldm.training.accelerator import rank_of

VERSION = 3
SHARD = 256  # positions: seconds of work on a GPU, minutes for a large first stage on a CPU
ENCODED_AT_ONCE = 16
ABOUT = ("positions", "corrupt", "values", "sum", "squares")  # numbers in a shard's json


@dataclass
class LatentStore:
    """Stored latents, read by image number.

    Attributes:
        shards: float16 (n, V, C, h, w) each, unscaled.
        std: standard deviation over all values.
        corrupt: number of unreadable images, which were skipped.
        unreadable: the names of their files.
        labels: numbers of labels (N, A) int64; None for data without labels.
        small: whether the second half of the views is that of the smaller images, enlarged.
        resident: all of them (N, V, C, h, w) on a device, see `move_to`.
    """

    shards: list[np.ndarray]
    std: float
    corrupt: int
    labels: np.ndarray | None = None
    small: bool = False
    unreadable: list[str] = field(default_factory=list)
    resident: torch.Tensor | None = None

    def __post_init__(self):
        self.ends = np.cumsum([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def views(self) -> int:
        """2 where mirrored images are kept too, else 1."""
        return self.shards[0].shape[1] // (2 if self.small else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all latents."""
        return sum(shard.nbytes for shard in self.shards)

    def move_to(self, device: torch.device) -> None:
        """Copy all latents to the memory of a device. Batches are then gathered there."""
        self.resident = torch.empty((len(self), *self.shards[0].shape[1:]), dtype=torch.float16, device=device)
        for shard, end in zip(self.shards, self.ends, strict=True):
            self.resident[end - len(shard) : end] = torch.from_numpy(shard).to(device)

    def get(self, indices: np.ndarray, views: np.ndarray | int = 0) -> torch.Tensor:
        """float32 (B, C, h, w), unscaled.

        Args:
            indices: (B,) numbers of images.
            views: (B,) or one for all; 1 is the mirrored image.
        """
        if self.resident is not None:
            where = torch.from_numpy(np.stack([indices, np.broadcast_to(views, len(indices))]))
            numbers, kept = where.to(self.resident.device, non_blocking=True)
            return self.resident[numbers, kept].float()
        latents = np.empty((len(indices), *self.shards[0].shape[2:]), np.float32)
        numbers = np.searchsorted(self.ends, indices, "right")
        for row, (number, index, view) in enumerate(zip(numbers, indices, np.broadcast_to(views, len(indices)), strict=True)):
            latents[row] = self.shards[number][index - self.ends[number], view]  # a negative index counts from the end
        return torch.from_numpy(latents)

    def batch(self, indices: np.ndarray, views: np.ndarray | int = 0) -> Batch:
        """`get` with the conditions of these images."""
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices])
        small = self.get(indices, views + self.views) if self.small else None
        return Batch(self.get(indices, views), Condition(labels, low_resolution=small))


def open_store(
    data: DataConfig,
    source: Source,
    part: str,
    seed: int,
    first_stage: FirstStage,
    accelerator: Accelerator,
    mirrored: bool,
    small: int | None = None,
) -> LatentStore:
    """The latents of one part of the data. Encodes them now, unless there is a store of the same data and first stage.

    Args:
        part: `train` or `held-out`.
        seed: chooses the held-out images if the data set has no split for them.
        mirrored: store the latents of the mirrored images too.
        small: store those of the images at this smaller side, enlarged, too. None: not.
    """
    found: list[Any] = [None, None, None]
    if accelerator.is_main_process:
        made_of = {
            "version": VERSION,
            **cache_key(data, part.replace("-", "_"), seed),
            "mirrored": mirrored,
            "factor": first_stage.downscale,
            "first stage": first_stage.fingerprint(),
        }
        if small:
            made_of["small"] = small
        if source.labels:
            made_of["labels"] = names_and_values(source.labels)
        stores = Path(data.cache_dir).expanduser() / "latents"
        if made_of["commit"] is None and hub_id(data.name):
            made_of = _of_last_commit(stores, made_of)
        folder = stores / digest(made_of)
        found = [folder, made_of, (folder / "store.json").exists()]
    broadcast_object_list(found)  # all ranks must take the same branch, whatever the Hub or another run does meanwhile
    folder, made_of, there = found
    if not there:
        with _alone(folder, made_of, accelerator):
            images = Images.of(source, data)
            _Builder(folder, images, first_stage, accelerator, mirrored, small).build(f"encoding the {part} part")
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _finish(folder, part, images)
        accelerator.wait_for_everyone()
    return _read(folder, made_of)


# ---------------------------------------------------------------------------------------------------------------- building


@contextlib.contextmanager
def _alone(folder: Path, made_of: dict[str, Any], accelerator: Accelerator) -> Iterator[None]:
    """The main rank creates the folder and locks it: other runs wait for these latents."""
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(one_at_a_time(folder, "encodes the same images"))
                if not (folder / "made_of.json").exists():
                    _say_why(folder, made_of)
                    replace_text(folder / "made_of.json", json.dumps(made_of, indent=1))
            except OSError as error:
                raise UserError(
                    f"data.cache_dir {folder.parent} cannot be written ({error.strerror}); choose another"
                ) from error
        accelerator.wait_for_everyone()
        yield


def _newest(stores: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of readable stores, newest first, with their made_of.json."""
    for file in sorted(stores.glob("*/made_of.json"), key=os.path.getmtime, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            if isinstance(made_of := json.loads(file.read_text()), dict):
                yield file.parent, made_of


def _of_last_commit(stores: Path, made_of: dict[str, Any]) -> dict[str, Any]:
    """Without an answer from the Hub about the last commit: the key of the newest store that differs only in the commit."""
    for folder, old in _newest(stores):
        if {**old, "commit": None} == json.loads(json.dumps(made_of)) and (folder / "store.json").exists():
            print(f"the Hub does not answer about the last commit of {old['data']!r}: using the latents of {old['commit']}")
            return old
    return made_of


def _say_why(folder: Path, made_of: dict[str, Any]) -> None:
    """Explains why no existing store can be reused: how the newest one of the same data and part differs."""
    for other, old in _newest(folder.parent):
        if (old.get("data"), old.get("part")) == (made_of["data"], made_of["part"]):
            why = difference(old, json.loads(json.dumps(made_of)))
            print(f"the latents in {other} do not fit ({why}): encoding again", file=sys.stderr)
            return


@dataclass
class _Builder:
    """Builds this rank's share of the shards: shard k belongs to rank k mod (number of ranks)."""

    folder: Path
    images: Images
    first_stage: FirstStage
    accelerator: Accelerator
    mirrored: bool
    small: int | None = None

    def build(self, doing: str) -> None:
        """Encode the missing shards."""
        kept = sum(
            about["positions"] for file in self.folder.glob("shard-*.json") if (about := _about(self.folder, _number(file)))
        )
        main = self.accelerator.is_main_process
        total = self.images.source.known_length()
        if self.accelerator.device.type == "cuda":
            self.first_stage.model.to(memory_format=torch.channels_last)
        with (
            tqdm(unit="image", desc=doing, initial=kept, total=total, dynamic_ncols=True, disable=not main) as bar,
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,  # the device encodes while a shard is written
        ):
            latents: list[torch.Tensor] = []
            labels: list[list[int]] = []
            written: list[Future[None]] = []
            for number, batch in read_ahead(self._batches(), read=lambda: self.images.source.read):
                if isinstance(batch, Batch):
                    latents.append(self._encode(batch.x))
                    labels += [] if batch.condition.labels is None else batch.condition.labels.tolist()
                    bar.update(len(batch.x) * self.accelerator.num_processes)
                else:
                    _wait(written)
                    written = [writer.submit(self._write, number, latents, labels, batch)]
                    latents, labels = [], []
            _wait(written)

    def _batches(self) -> Generator[tuple[int, Batch | dict[str, Any]], None, None]:
        """Yield (shard, uint8 images (B, C, H, W)) for each missing shard, then (shard, its numbers of positions and of corrupt
        images)."""
        rank = rank_of(self.accelerator)
        examples = self.images.source.epoch(None, 0)
        for number in itertools.count():
            shard = list(itertools.islice(examples, SHARD))
            if not shard:
                break
            if number % rank.count != rank.index or _about(self.folder, number):
                continue
            corrupt_before, known = self.images.corrupt, set(self.images.unreadable)
            decoded = self.images(shard)
            while batch := list(itertools.islice(decoded, ENCODED_AT_ONCE)):
                read = collate(batch)
                yield number, read.pinned() if self.accelerator.device.type == "cuda" else read
            names = [name for name in self.images.unreadable if name not in known]
            yield number, {"positions": len(shard), "corrupt": self.images.corrupt - corrupt_before, "unreadable": names}

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        pixels = to_float(batch.to(self.accelerator.device, non_blocking=True))
        views = [pixels, pixels.flip(-1)] if self.mirrored else [pixels]
        if self.small:
            views += [enlarge(shrink(view, self.small), view.shape[-1]) for view in views]
        return torch.stack([self.first_stage.to_half(self.first_stage.encode(view)) for view in views], 1)  # (B, V, C, h, w)

    def _write(self, number: int, parts: list[torch.Tensor], labels: list[list[int]], counts: dict[str, Any]) -> None:
        # Without parts, no image of this shard was readable.
        latents: np.ndarray = torch.cat(parts).cpu().numpy() if parts else np.empty(0, np.float16)
        kept = latents[:, : latents.shape[1] // 2] if self.small and parts else latents  # the scale is that of full images
        values = kept.astype(np.float64)
        aside = self.folder / f".shard-{number:05d}.npy"
        with aside.open("wb") as file:
            np.save(file, latents)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(_shard(self.folder, number))
        with np.errstate(invalid="ignore"):  # nan and inf are reported at the end
            sums = {"sum": values.sum(), "squares": np.square(values).sum(), "values": values.size}
        replace_text(_shard(self.folder, number).with_suffix(".json"), json.dumps({**counts, **sums, "labels": labels}))


def _wait(written: list[Future[None]]) -> None:
    """Until these shards are written; raises what went wrong."""
    for shard in written:
        shard.result()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


def _number(file: Path) -> int:
    return int(file.stem.removeprefix("shard-"))


def _about(folder: Path, number: int) -> dict[str, Any] | None:
    """The numbers of a shard; None if it is missing or damaged."""
    try:
        about = json.loads(_shard(folder, number).with_suffix(".json").read_text())
        _shard(folder, number).stat()
        return {key: about[key] for key in ABOUT}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listed(folder: Path, number: int, key: str) -> list[Any]:
    """A list of a shard: `labels` of its images, empty without labels, or names of `unreadable` files."""
    return json.loads(_shard(folder, number).with_suffix(".json").read_text()).get(key, [])


def _finish(folder: Path, part: str, images: Images) -> None:
    """Write store.json over all shards."""
    shards: list[dict[str, Any]] = []
    while shard := _about(folder, len(shards)):
        shards.append(shard)
    total = {key: sum(shard[key] for shard in shards) for key in ABOUT}
    images.seen, images.corrupt = total["positions"], total["corrupt"]  # from all ranks and earlier builds
    images.check()
    if not total["values"]:
        raise UserError(f"the {part} part of {images.source.name!r} is empty: see data.split and data.eval_fraction")
    std = math.sqrt(max(total["squares"] / total["values"] - (total["sum"] / total["values"]) ** 2, 0.0))
    if not 0 < std < float("inf"):
        for number in range(len(shards)):
            _shard(folder, number).with_suffix(".json").unlink()  # so that they are encoded again
        raise UserError(f"the first stage gives latents with standard deviation {std}: are its weights damaged?")
    about = {"shards": len(shards), "std": std, "corrupt": total["corrupt"]}
    replace_text(folder / "store.json", json.dumps(about, indent=1))


def _read(folder: Path, made_of: dict[str, Any]) -> LatentStore:
    with boundary(f"latent store {folder} is damaged", "delete that folder and run again"):
        if other := difference(json.loads((folder / "made_of.json").read_text()), json.loads(json.dumps(made_of))):
            raise ValueError(f"it belongs to other data: {other}")
        about = json.loads((folder / "store.json").read_text())
        shards = [mapped(_shard(folder, number)) for number in range(about["shards"])]
        shards = [shard for shard in shards if len(shard)]
        if not 0 < about["std"] < float("inf") or any(shard.dtype != np.float16 for shard in shards):
            raise ValueError(f"store.json says standard deviation {about['std']}, and the shards must be float16")
        numbers = range(about["shards"])
        labels = [label for number in numbers for label in _listed(folder, number, "labels")]
        unreadable = [name for number in numbers for name in _listed(folder, number, "unreadable")]
        if len(labels) not in (0, sum(map(len, shards))):
            raise ValueError(f"{len(labels)} labels for {sum(map(len, shards))} images")
        table = np.array(labels, np.int64) if labels else None
        return LatentStore(shards, about["std"], about["corrupt"], table, "small" in made_of, list(dict.fromkeys(unreadable)))


def mapped(file: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped. Unlike numpy's memmap it keeps no file open: a large store has more shards than
    the 1,024 files that a program may usually open."""
    with file.open("rb") as opened:
        shape, _, dtype = read_npy_header(opened)
        begin, size = opened.tell(), os.fstat(opened.fileno()).st_size
    if size != begin + dtype.itemsize * math.prod(shape):  # reading past the end of a map kills the program
        raise ValueError(f"{file.name} is not as large as its header says")
    content = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()
    return content[begin:].view(dtype).reshape(shape)
