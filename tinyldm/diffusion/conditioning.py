"""Conditions for sampling. data/batch.py defines a condition, and denoiser.py passes it to the network."""

import contextlib
import difflib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError

from tinyldm.data.batch import Condition
from tinyldm.data.subsets import random_rows
from tinyldm.errors import UserError, boundary
from tinyldm.files import replace_text
from tinyldm.limits import read_text
from tinyldm.randomness import derive_seed
from tinyldm.remote import from_hub


def number_of_classes(network: UNet2DModel) -> int | None:
    """Number of classes of a UNet2DModel; None if it is unconditional."""
    return getattr(network.config, "num_class_embeds", None)


def check_class_label(network: UNet2DModel, class_label: int | None) -> None:
    """Raise UserError for a class that this network does not have."""
    classes = number_of_classes(network)
    if class_label is not None and not 0 <= class_label < (classes or 0):
        raise UserError(f"class_label is {class_label}, but this model has {classes or 'no'} classes")


def condition_for(
    network: UNet2DModel, seed: int, count: int, class_label: int | None = None, shares: list[float] | None = None
) -> Condition:
    """The condition for seeds `seed`, `seed` + 1, ...: `class_label` for all, or class s mod (number of classes) for seed s.

    Args:
        shares: the probability of each class. The class of seed s is then drawn, always the same one.

    Raises:
        UserError: for a class that this network does not have.
    """
    check_class_label(network, class_label)
    classes = number_of_classes(network)
    if classes is None:
        return Condition()
    if class_label is not None:
        return Condition(torch.full((count,), class_label))
    seeds = range(seed, seed + count)
    if shares is None:
        return Condition((seed % classes + torch.arange(count)) % classes)
    places = torch.tensor([derive_seed("class", s) / 2**63 for s in seeds], dtype=torch.float64)
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    return Condition(torch.searchsorted(ends, places, right=True).clamp(max=classes - 1))


def preview_condition(network: UNet2DModel, count: int) -> Condition:
    """The condition of `count` pictures: all classes in turn, or if there are more, a random choice, always the same one."""
    classes = number_of_classes(network)
    if classes is None:
        return Condition()
    chosen = torch.from_numpy(np.sort(random_rows(classes, count)))
    return Condition(chosen[torch.arange(count) % len(chosen)])


# ------------------------------------------------------------------------------------------------------------ names of classes

CLASSES = "classes.json"  # in a pipeline's folder: the names of its classes, in the order of their numbers


def save_class_names(folder: Path, names: list[str]) -> None:
    """Write the names of the classes into the folder of a pipeline."""
    replace_text(folder / CLASSES, json.dumps(names, indent=1, ensure_ascii=False))


def load_class_names(path: str) -> list[str] | None:
    """The names of the classes of a pipeline, in a folder or on the Hub; None for a model that has none.

    Raises:
        UserError: for a damaged file.
    """
    file = Path(path) / CLASSES
    if not Path(path).is_dir():
        with contextlib.suppress(OSError, HTTPError), from_hub(path):
            file = Path(hf_hub_download(path, CLASSES))
    if not file.exists():  # the pipelines of others have no such file
        return None
    with boundary(f"{file} is not a list of class names"):
        names = json.loads(read_text(file))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("no list of texts")
    return names


def class_number(names: list[str] | None, label: str) -> int:
    """The number of a class by its name.

    Raises:
        UserError: for a name that this model does not have, with those it has.
    """
    if names is None:
        raise UserError(f"label is {label!r}, but this model has no names of classes: remove it, or give --class_label NUMBER")
    if label not in names:
        near = difflib.get_close_matches(label, names, 1)
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise UserError(f"label is {label!r}{f' (did you mean {near[0]!r}?)' if near else ''}; this model has: {listed}")
    return names.index(label)
