"""What takes long is kept in pieces as it is made, so that a kill costs half a minute and the same command goes on.

A folder holds made_of.json, which says what its rows were made of, and a numbered npz for each piece. Rows of another make
are refused, never mixed in.
"""

import contextlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tinyldm.errors import UserError
from tinyldm.files import difference, one_at_a_time, replace_text

SECONDS = 30.0  # of work in a piece
ABOUT = ("rows", "position", "complete")  # numbers beside the arrays of a piece
Batches = Iterator[tuple[torch.Tensor, int]]  # uint8 (B, 3, H, W), and the position in their source after them


class Pieces:
    """Rows of arrays in a folder.

    Attributes:
        rows: how many are there.
        position: where in the source the next row begins: more than `rows` where the source has unreadable images.
        complete: whether the source ended with these rows.

    Args:
        made_of: what the rows depend on, as JSON.
        mend: what to do where the folder holds rows of another make.

    Raises:
        UserError: when it does, when a piece is damaged, or when the folder cannot be written.
    """

    def __init__(self, folder: Path, made_of: dict[str, Any], mend: str):
        self.folder, made_of = folder, json.loads(json.dumps(made_of, default=str))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "made_of.json").exists():
                if other := difference(json.loads((folder / "made_of.json").read_text()), made_of):
                    raise UserError(f"{folder} was made with other settings ({other}); {mend}")
            else:
                replace_text(folder / "made_of.json", json.dumps(made_of, indent=1))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} cannot be used ({error}); choose another, or delete it") from error
        self._look()

    def _look(self) -> None:
        self.rows, self.position, self.complete = 0, 0, False
        self.files = sorted(self.folder.glob("[0-9]*.npz"))
        for file in self.files:
            piece = _read(file, *ABOUT)
            self.rows += int(piece["rows"])
            self.position, self.complete = int(piece["position"]), bool(piece["complete"])

    def enough(self, wanted: int | None) -> bool:
        """Whether the first `wanted` rows are there (None: as many as the source has)."""
        return self.complete or (wanted is not None and self.rows >= wanted)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While one process adds, another that wants to waits for it, and then sees what was added."""
        with one_at_a_time(self.folder, "makes the same"):
            self._look()
            yield

    def add(self, arrays: dict[str, np.ndarray], position: int, complete: bool = False) -> None:
        """One more piece: arrays of as many rows each; none where nothing but the source's end is new."""
        rows = len(next(iter(arrays.values()))) if arrays else 0
        file = self.folder / f"{len(self.files):08d}.npz"
        aside = file.with_name(f".{file.name}")
        with aside.open("wb") as opened:
            np.savez(opened, rows=rows, position=position, complete=complete, **arrays)
        os.replace(aside, file)
        self.files.append(file)
        self.rows, self.position, self.complete = self.rows + rows, position, complete

    def read(self, wanted: int) -> dict[str, np.ndarray]:
        """The first `wanted` rows of every array."""
        parts = [part for file in self.files if (part := _read(file))["rows"]]
        return {name: np.concatenate([part[name] for part in parts])[:wanted] for name in parts[0] if name not in ABOUT}

    def each(self, name: str, start: int = 0) -> Iterator[tuple[np.ndarray, int]]:
        """The rows of an array from `start` on, a piece at a time, with the row number after them."""
        after = 0
        for file in self.files:
            piece = _read(file, "rows", name)
            before, after = after, after + int(piece["rows"])
            if after > max(start, before):
                yield piece[name][max(0, start - before) :], after


def fill(
    pieces: Pieces,
    wanted: int | None,
    batches: Callable[[int, int | None], Batches],
    make: Callable[[torch.Tensor], dict[str, np.ndarray]],
    doing: str,
) -> int:
    """Make what is missing of the first `wanted` rows (None: as many as the source has), and show the progress.

    Args:
        batches: (position, how many at most) -> images from there on.
        make: what is kept of a batch: arrays of as many rows.

    Returns:
        How many rows there are, up to `wanted`.
    """
    if not pieces.enough(wanted):  # else several processes may look at the same time
        with pieces.alone():
            _add_missing(pieces, wanted, batches, make, doing)
    return pieces.rows if wanted is None else min(pieces.rows, wanted)


def _add_missing(pieces: Pieces, wanted: int | None, batches: Callable, make: Callable, doing: str) -> None:
    if pieces.enough(wanted):  # since another process has made it
        return
    missing = None if wanted is None else wanted - pieces.rows
    waiting: list[dict[str, np.ndarray]] = []
    since, made, after = time.monotonic(), pieces.rows, pieces.position
    with tqdm(total=wanted, initial=made, unit="image", desc=doing, dynamic_ncols=True) as bar:
        for batch, after in batches(pieces.position, missing):
            waiting.append(make(batch))
            made += len(batch)
            bar.update(len(batch))
            if time.monotonic() - since >= SECONDS:
                pieces.add(_joined(waiting), after)
                waiting, since = [], time.monotonic()
    ended = wanted is None or made < wanted
    if waiting or ended:
        pieces.add(_joined(waiting), after, ended)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _read(file: Path, *names: str) -> dict[str, np.ndarray]:
    """These arrays of a piece, or all."""
    try:
        with np.load(file) as arrays:
            return {name: arrays[name] for name in names or arrays.files if name in arrays}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged ({error}); delete the folder {file.parent}") from error
