"""Saves slow work in chunks: an interrupted command loses at most 30 seconds and resumes when run again.

A folder holds made_of.json, the settings that its rows depend on, and a numbered npz file per chunk. Rows made with other
settings are refused, never mixed in.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tinyldm.errors import UserError, boundary
from tinyldm.files import difference, one_at_a_time, replace_text
from tinyldm.limits import read_arrays
from tinyldm.manifest import Manifest

SECONDS = 30.0  # of work per chunk
NUMBERS = ("rows", "position", "complete")  # saved in a chunk beside its arrays
Arrays = dict[str, np.ndarray]
Batches = Iterator[tuple[torch.Tensor, int]]  # uint8 (B, 3, H, W), and the position in their source after them


class Chunks:
    """Rows of arrays in a folder.

    Attributes:
        rows: how many rows the folder holds.
        position: where in the source the next row starts. Unreadable images make it larger than `rows`.
        complete: whether the source ended with these rows.

    Args:
        key: the settings that the rows depend on, as JSON.
        advice: what to do if the folder holds rows with another key, for the message.

    Raises:
        UserError: if it holds such rows, if a chunk is damaged, or if the folder cannot be written.
    """

    def __init__(self, folder: Path, key: dict[str, Any], advice: str):
        self.folder, self.manifest, key = folder, Manifest(folder), json.loads(json.dumps(key, default=str))
        with boundary(f"{folder} cannot be used", "choose another, or delete it"):
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "made_of.json").exists():
                if other := difference(json.loads((folder / "made_of.json").read_text()), key):
                    raise UserError(f"{folder} was made with other settings ({other}): {advice}")
            else:
                replace_text(self.manifest.own(folder / "made_of.json"), json.dumps(key, indent=1))
        self._scan()

    def _scan(self) -> None:
        self.rows, self.position, self.complete = 0, 0, False
        self.files = sorted(self.folder.glob("[0-9]*.npz"))
        for file in self.files:
            with boundary(f"{file} is damaged", f"delete the folder {file.parent}"):
                chunk = read_arrays(file, NUMBERS)
                self.rows += int(chunk["rows"])
                self.position, self.complete = int(chunk["position"]), bool(chunk["complete"])

    def enough(self, limit: int | None) -> bool:
        """Whether the folder holds the first `limit` rows (None: all of the source)."""
        return self.complete or (limit is not None and self.rows >= limit)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for adding chunks. Another run waits, and then sees the new chunks."""
        with one_at_a_time(self.folder, "makes the same chunks"):
            self._scan()
            yield

    def add(self, arrays: Arrays, position: int, complete: bool = False) -> None:
        """Save a chunk: arrays with the same number of rows. Without arrays it only records the end of the source."""
        rows = len(next(iter(arrays.values()))) if arrays else 0
        numbers = {"rows": np.array(rows), "position": np.array(position), "complete": np.array(complete)}
        file = self.manifest.own(self.folder / f"{len(self.files):08d}.npz")
        aside = file.with_name(f".{file.name}")
        with aside.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **numbers, **arrays)
        os.replace(aside, file)
        self.files.append(file)
        self.rows, self.position, self.complete = self.rows + rows, position, complete

    def read(self, limit: int) -> Arrays:
        """The first `limit` rows of every array."""
        parts = [part for file in self.files if (part := _read(file))["rows"]]
        return {name: np.concatenate([part[name] for part in parts])[:limit] for name in parts[0] if name not in NUMBERS}

    def each(self, name: str, start: int = 0) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the rows of an array from `start` on, one chunk at a time, with the row number after them."""
        after = 0
        for file in self.files:
            chunk = _read(file, "rows", name)
            before, after = after, after + int(chunk["rows"])
            if after > max(start, before):
                yield chunk[name][max(0, start - before) :], after


def fill(
    chunks: Chunks,
    limit: int | None,
    batches: Callable[[int, int | None], Batches],
    make: Callable[[torch.Tensor], Arrays],
    doing: str,
) -> int:
    """Make the missing ones of the first `limit` rows (None: all of the source), with a progress bar.

    Args:
        batches: (position, limit) -> images from there on.
        make: batch -> the arrays to save, one row per image.
        doing: the label of the progress bar.

    Returns:
        The number of rows, at most `limit`.
    """
    if not chunks.enough(limit):  # otherwise no lock is needed
        with chunks.locked():
            _add_missing(chunks, limit, batches, make, doing)
    return chunks.rows if limit is None else min(chunks.rows, limit)


def _add_missing(
    chunks: Chunks,
    limit: int | None,
    batches: Callable[[int, int | None], Batches],
    make: Callable[[torch.Tensor], Arrays],
    doing: str,
) -> None:
    if chunks.enough(limit):  # another run has made them in the meantime
        return
    missing = None if limit is None else limit - chunks.rows
    unsaved: list[Arrays] = []
    since, rows, after = time.monotonic(), chunks.rows, chunks.position
    with tqdm(total=limit, initial=rows, unit="image", desc=doing, dynamic_ncols=True) as bar:
        for batch, after in batches(chunks.position, missing):
            unsaved.append(make(batch))
            rows += len(batch)
            bar.update(len(batch))
            if time.monotonic() - since >= SECONDS:
                chunks.add(_concatenate(unsaved), after)
                unsaved, since = [], time.monotonic()
    ended = limit is None or rows < limit
    if unsaved or ended:
        chunks.add(_concatenate(unsaved), after, ended)


def _concatenate(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _read(file: Path, *names: str) -> Arrays:
    """The arrays of a chunk with these names, or all."""
    with boundary(f"{file} is damaged", f"delete the folder {file.parent}"):
        return read_arrays(file, names, optional=True)
