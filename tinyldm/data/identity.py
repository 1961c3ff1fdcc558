"""Identifies a part of a data set: the key of every cache."""

import glob
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from tinyldm.config.paths import strings
from tinyldm.config.schema import DataConfig
from tinyldm.data.images import TRANSFORM
from tinyldm.data.layout import walk
from tinyldm.data.sources import hub_id
from tinyldm.files import digest
from tinyldm.remote import from_hub


def describe_part(data: DataConfig, part: str, split_seed: int) -> dict[str, Any]:
    """The settings that choose the images of a part, as JSON.

    Args:
        part: `train` or `held_out`.
        split_seed: chooses the held-out images, unless the data set has its own split for them.
    """
    local = Path(data.name).expanduser()
    return {
        "data": str(local.resolve()) if local.exists() else data.name,
        "revision": data.revision,
        "data_files": data.data_files,
        "splits": [data.split, data.eval_split],
        "image_column": data.image_column,
        "duplicates": data.duplicates,
        "held out": None if data.eval_split else [data.eval_fraction, split_seed, data.group_column],
        "part": part,
        "resolution": data.resolution,
        "channels": data.channels,
        "transform": TRANSFORM,
    }


def cache_key(data: DataConfig, part: str, split_seed: int) -> dict[str, Any]:
    """Identifies the images of a part: its settings and the version of its files.

    `commit` is None for a local data set, and if the Hub cannot be reached. The arguments are those of `describe_part`.
    """
    return {**describe_part(data, part, split_seed), "commit": _commit(data), "files": digest(_local_files(data))}


def _commit(data: DataConfig) -> str | None:
    """The commit that `data.revision` names now."""
    if not hub_id(data.name):
        return None
    try:
        with from_hub(data.name):
            return HfApi().dataset_info(data.name, revision=data.revision, timeout=10).sha
    except Exception:  # no network; reading the data reports other errors better
        return None


def _local_files(data: DataConfig) -> list[list[Any]]:
    """Name, size and time of each file of a local data set."""
    patterns = [text for _, text in strings(data.data_files)]  # may lie outside data.name, e.g. for `data.name: parquet`
    files = {file for pattern in patterns for file in glob.glob(os.path.expanduser(pattern), recursive=True)}
    place = Path(data.name).expanduser()
    files.update(str(place / name) for names in walk(place) for name in names)
    files.add(str(place))
    return [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in sorted(files) if os.path.isfile(file)]
