"""Conditions for sampling. data/batch.py defines a condition, and denoiser.py passes it to the network."""

import torch
from diffusers import UNet2DModel

from tinyldm.data.batch import Condition
from tinyldm.errors import UserError


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

    Raises:
        UserError: for a class that this network does not have.
    """
    check_class_label(network, class_label)
    classes = number_of_classes(network)
    if classes is None:
        return Condition()
    return Condition(torch.arange(seed, seed + count) % classes if class_label is None else torch.full((count,), class_label))
