"""Files and folders: atomic replacement, locks, comparison and short names."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyldm.errors import UserError


def replace_text(file: Path, text: str) -> None:
    """Write a text file atomically. A kill leaves the old file or the new one; of two writers, one wins."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, newline="")
    os.replace(aside, file)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name of a file, or where the file system has no links a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete what a killed `replace_text` of these files in `folder` left behind. Nobody else may write them now."""
    known = set(names)
    for aside in folder.glob(".*"):
        written = re.fullmatch(r"\.(.+)\.\d+", aside.name)
        if written and written[1] in known:
            aside.unlink(missing_ok=True)


def replace_folder(new: Path, final: Path) -> None:
    """Replace an old folder by a finished one. A kill in between leaves the old one as `.old-...`.

    Raises:
        UserError: if the old one is a symbolic link, since what it leads to is not ours.
    """
    refuse_links(final)
    old = final.with_name(f".old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def refuse_links(*paths: Path) -> None:
    """Raise UserError for the first path that is a symbolic link."""
    for path in paths:
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link, which is not followed: put a real folder or file in its place")


def refuse_existing(out: Path, overwrite: bool, *inputs: Path) -> None:
    """Raise UserError if something is at `out` already: an input, or in an input; or anything without `overwrite`."""
    for place in inputs:
        if os.path.lexists(out) and place.resolve() in (out.resolve(), *out.resolve().parents):
            raise UserError(f"{out} is one of the inputs, or in one of them ({place}): choose another file")
    if os.path.lexists(out) and not overwrite:
        raise UserError(f"{out} exists already: choose another file, or use --overwrite true")


def open_to_others(path: Path) -> None:
    """Give a file, or the files below a folder, the permissions that the umask allows.

    safetensors lets only their owner read what it writes.
    """
    umask = os.umask(0o077)  # there is no other way to read it
    os.umask(umask)
    for file in [path, *path.rglob("*")]:
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~umask)


@contextlib.contextmanager
def one_at_a_time(folder: Path, does: str) -> Iterator[None]:
    """Lock a folder. Another run that holds the lock makes this one wait, with a message.

    Args:
        does: what the other run does, for the message: `writes the same features`.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another run, which {does}, in {folder}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def difference(before: Any, now: Any, path: str = "") -> str:
    """The first place where two JSON values differ, as text; empty if they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *before]:
            if text := difference(before.get(key), now.get(key), f"{path} {key}".strip()):
                return text
        return ""
    if before == now:
        return ""
    old, new = (text if len(text := json.dumps(value)) <= 60 else text[:57] + "..." for value in (before, now))
    return f"{path}: {old} there, {new} now" if old != new else path


def digest(value: Any) -> str:
    """A hash of a JSON value, 16 hex digits, used as a folder name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
