"""Conditions for sampling. data/batch.py defines a condition, and denoiser.py passes it to the network."""

import numpy as np
import torch
from diffusers import UNet2DModel

from tinyldm.data.batch import Condition
from tinyldm.data.subsets import random_rows
from tinyldm.errors import UserError
from tinyldm.randomness import derive_seed


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
        return Condition(torch.tensor(seeds) % classes)
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
