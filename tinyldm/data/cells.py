"""The encoded image in a cell of a data set. A path in a cell is data, so it may only point into the data set itself."""

import os
import stat
from typing import Any

from datasets.utils.file_utils import xopen

MAX_FILE = 2**30  # bytes of an encoded image


def image_bytes(value: dict[str, Any] | None, roots: list[str] | None = None) -> bytes:
    """The encoded file in an undecoded Image cell. Parquet has `bytes`, folders have a `path`, WebDataset has both.

    Args:
        roots: folders or addresses that a path may point into, the first one for relative paths. None: any regular file.

    Raises:
        OSError: for an empty cell, a path to somewhere else, or what is no regular file.
    """
    if not value:
        raise OSError("empty cell")
    if value.get("bytes") is not None:
        return value["bytes"]
    path = str(value["path"])
    if "://" in path:
        if roots is not None and not any(_within(path.split("::")[-1], root) for root in roots if "://" in root):
            raise OSError(f"the path {path!r} is outside the data set")
        with xopen(path, "rb") as file:
            return file.read(MAX_FILE)
    if roots is not None:
        path = os.path.realpath(os.path.join(roots[0] if roots else "", path))
        if not any(_within(path, os.path.realpath(root)) for root in roots if "://" not in root):
            raise OSError(f"the path {value['path']!r} is outside the data set's folder")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
        raise OSError(f"{path} is no regular file, or has more than {MAX_FILE:,} bytes")
    with open(path, "rb") as file:
        return file.read()


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith((root.rstrip("/") + "/", root + "@"))
