"""What a network gets at each step: images or latents, and the condition that belongs to them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

UNKNOWN = -1  # the number of a label that is missing


@dataclass(frozen=True)
class Condition:
    """What a network is given besides x_t and the time. An unconditional network gets an empty one.

    A new kind of condition is a new field: everything that moves, splits or gathers a condition goes through `map`.

    Attributes:
        labels: (B, A), int64: for each of A label columns the number of a value, or UNKNOWN.
        low_resolution: (B, C, S, S), a smaller version of the image, enlarged, in the units of x_0.
        augmentation: (B,), the level of the noise in `low_resolution`, from 0 to 1.
        changes: (B, K), what was done to a training image; see data/augment.py. None: nothing.
        other_labels: (B, A), as `labels`, and
        share: (B,): the embedding is that of `labels`, and by this share that of `other_labels`. To interpolate.
    """

    labels: torch.Tensor | None = None
    low_resolution: torch.Tensor | None = None
    augmentation: torch.Tensor | None = None
    changes: torch.Tensor | None = None
    other_labels: torch.Tensor | None = None
    share: torch.Tensor | None = None

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Condition":
        """The same condition with `function` applied to each of its tensors."""
        present = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: function(value) for name, value in present.items()})

    def join(self, other: "Condition") -> "Condition":
        """The conditions of two batches, one after the other. Both have the same fields."""
        return replace(self, **{n: torch.cat([v, getattr(other, n)]) for n, v in vars(self).items() if v is not None})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Condition":
        """The same condition on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


UNCONDITIONAL = Condition()


class Batch(NamedTuple):
    """Images uint8 (B, C, H, W) as they are read, or latents float32 (B, C, h, w), with their condition."""

    x: torch.Tensor
    condition: Condition = UNCONDITIONAL

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return Batch(self.x.to(device, non_blocking=non_blocking), self.condition.to(device, non_blocking))

    def pinned(self) -> "Batch":
        """The same batch in memory that a GPU reads without the CPU's help."""
        return Batch(self.x.pin_memory(), self.condition.map(torch.Tensor.pin_memory))

    def take(self, rows: torch.Tensor) -> "Batch":
        """The images of these numbers, with their conditions."""
        return Batch(self.x[rows], self.condition.map(lambda tensor: tensor[rows]))
