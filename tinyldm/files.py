"""Files and folders: replaced so that a kill leaves the old or the new one, locked, compared."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def replace_text(file: Path, text: str) -> None:
    """Write a text file so that a kill at any moment leaves the old or the new one, and two processes at once leave one of
    theirs."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, newline="")
    os.replace(aside, file)


def replace_folder(new: Path, final: Path) -> None:
    """Put a finished folder in the place of an old one; a kill in between leaves the old one as `.old-...`."""
    old = final.with_name(f".old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def one_at_a_time(folder: Path, does: str) -> Iterator[None]:
    """Keeps other processes out of a folder; they wait, and say for whom.

    Args:
        does: what the process that is waited for does: `makes the same`.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process, which {does}, in {folder}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def difference(before: Any, now: Any, path: str = "") -> str:
    """The first place where two JSON values differ, in words; empty where they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *before]:
            if found := difference(before.get(key), now.get(key), f"{path} {key}".strip()):
                return found
        return ""
    if before == now:
        return ""
    old, new = (text if len(text := json.dumps(value)) <= 60 else text[:57] + "..." for value in (before, now))
    return f"{path}: {old} there, {new} now" if old != new else path


def digest(made_of: Any) -> str:
    """A short name for a JSON value."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:16]
