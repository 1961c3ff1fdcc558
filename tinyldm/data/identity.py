"""Names a part of a data set exactly: the key of everything that is kept about it."""

import glob
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from tinyldm.config.schema import DataConfig
from tinyldm.data.images import TRANSFORM


def hub_id(name: str) -> str | None:
    """The name of a data set, where it is one of the Hub and not a local folder."""
    return name if "/" in name and not Path(name).expanduser().exists() else None


def commit(data: DataConfig) -> str | None:
    """Which commit `data.revision` is now; None for a data set that is not on the Hub, and where the Hub cannot be asked."""
    if not hub_id(data.name):
        return None
    try:
        return HfApi().dataset_info(data.name, revision=data.revision, timeout=10).sha
    except (OSError, HTTPError):  # no network; whatever else is wrong, reading the data says it better
        return None


def local_files(data: DataConfig) -> list:
    """Name, size and time of each file of a local data set: a changed folder is another data set."""
    named = data.data_files or []  # may lie elsewhere than data.name, as for data.name parquet
    named = [named] if isinstance(named, str) else named.values() if isinstance(named, dict) else named
    files = {file for pattern in named for file in glob.glob(os.path.expanduser(pattern), recursive=True)}
    files.update(map(str, Path(data.name).expanduser().rglob("*")))
    return [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in sorted(files) if os.path.isfile(file)]


def data_key(data: DataConfig, part: str, split_seed: int) -> dict[str, Any]:
    """What the images of a part of a data set depend on, but for the files' contents.

    Args:
        part: `train` or `held_out`.
        split_seed: which images are held out depends on it where no split is for that.
    """
    return {
        "data": str(Path(data.name).resolve()) if Path(data.name).exists() else data.name,
        "revision": data.revision,
        "data_files": data.data_files,
        "splits": [data.split, data.eval_split],
        "image_column": data.image_column,
        "held out": None if data.eval_split else [data.eval_fraction, split_seed],
        "part": part,
        "resolution": data.resolution,
        "channels": data.channels,
        "transform": TRANSFORM,
    }
