"""Paths, addresses and secrets among the values of a config: which are local, and what of them may be given away."""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tinyldm.errors import LOGIN, TOKEN, UserError, without_secrets

WRITTEN = ("output_dir", "resume", "data.cache_dir")  # keys of folders that a program writes to


def strings(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each string in nested dicts and lists, with its dotted key."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from strings(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from strings(value, key)
    elif isinstance(values, str):
        yield key, values


def refuse_secrets(values: dict[str, Any]) -> None:
    """Raise UserError if a value holds a token or a password: it would be written to config.yaml."""
    for key, text in strings(values):
        if TOKEN.search(text):
            raise UserError(f"{key} holds a token of the Hub, which would be written to disk: use `hf auth login` or HF_TOKEN")
        if LOGIN.search(text):
            raise UserError(f"{key} holds a password, which would be written to disk: download the files and give their path")


def shareable(value: Any) -> Any:
    """A JSON value without what says something about this machine or its user.

    Of a path that is absolute or leads out of the working folder only the last part stays. Web addresses lose logins and
    queries, which may be signatures.
    """
    if isinstance(value, dict):
        return {key: shareable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(item) for item in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    text = without_secrets(value).removeprefix("file://")
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        return re.sub(r"(?<=://)[^/?#@]*@|\?.*", "", text)
    local = PureWindowsPath(text) if re.match(r"[A-Za-z]:[\\/]|\\\\", text) else PurePosixPath(text)
    if local.is_absolute() or text.startswith("~") or ".." in local.parts:
        return "" if _is_home(text) else local.name
    return text


def _is_home(text: str) -> bool:
    """Whether the last part of a path would be the user's name."""
    try:
        return Path(text).expanduser().resolve() == Path.home().resolve()
    except (OSError, RuntimeError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------------------ local inputs


def local(text: str) -> Path | None:
    """The existing file or folder that a value names, with links resolved. Of a pattern: the folder that it begins with."""
    fixed = re.split(r"[*?\[]", text)[0]
    try:
        place = Path(fixed if fixed == text else fixed.rpartition("/")[0] or ".").expanduser()
        return place.resolve() if place.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a null byte
        return None


def inputs(values: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """The keys of a config whose values name existing files or folders, with these."""
    for key, text in strings(values):
        if key not in WRITTEN and text and (place := local(text)):
            yield key, place


def refuse_inputs_inside(values: dict[str, Any], *folders: Path) -> None:
    """Raise UserError if the config reads anything from these folders, which are about to be deleted."""
    for key, place in inputs(values):
        for folder in folders:
            if folder.resolve() in (place, *place.parents):
                raise UserError(f"{key} is {place}, which --overwrite true would delete with {folder}: move it elsewhere first")


def refuse_output_inside(output: Path, *sources: Any) -> None:
    """Raise UserError if the output lies where images are read from: its pictures would be read as images, next time.

    Args:
        sources: folders, files and patterns, also in lists and dicts, and None.
    """
    for _, text in strings(list(sources)):
        pattern = re.search(r"[*?\[]", text)
        reads_pictures = not pattern or ("**" in text and fnmatch.fnmatch("grid.png", PurePosixPath(text).name))
        place = local(text) if text and reads_pictures else None
        if place and place.is_dir() and place in (output.resolve(), *output.resolve().parents):
            raise UserError(f"output_dir {output} lies in {place}, whose images are read: choose another output_dir")
