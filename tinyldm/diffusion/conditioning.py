"""What a network is told beside x_t and the time."""

import torch
from torch import nn

from tinyldm.errors import UserError


def cycle_labels(unet: nn.Module, seed: int, count: int, class_label: int | None = None) -> torch.Tensor | None:
    """Classes (count,) of the images of seeds seed, seed + 1, ...: all `class_label`, or that of seed s is s mod their number.
    None for a network without classes.

    Raises:
        UserError: for a class that this network does not know.
    """
    classes = unet.config.get("num_class_embeds")
    if class_label is not None and not 0 <= class_label < (classes or 0):
        raise UserError(f"class_label is {class_label}, but this model knows {classes or 'no'} classes")
    if classes is None:
        return None
    return torch.arange(seed, seed + count) % classes if class_label is None else torch.full((count,), class_label)
