"""Random numbers as a function of (seed, step, rank), after EDM2.

There is no state to save: a resumed run draws the same numbers as an uninterrupted one.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Rank:
    """One of `count` processes that train together, in the sense of torch.distributed."""

    index: int = 0
    count: int = 1


ALONE = Rank()


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any integers and strings, the same on each platform and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Draw:
    """The random numbers of one micro-batch.

    Every rank draws the numbers for all ranks and takes its own share. So the numbers for an image do not depend on the
    world size.

    Args:
        seed: the run's seed.
        step: the optimizer step.
        micro: the accumulation step within it.
        rank: the rank that takes its share.
        device: the device to draw on.
    """

    def __init__(self, seed: int, step: int, micro: int, rank: Rank = ALONE, device: torch.device | str = "cpu"):
        self.rank, self.device = rank, device
        self.generator = torch.Generator(device).manual_seed(derive_seed("step", seed, step, micro))

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers (B, ...) in float32."""
        return self._mine(torch.randn((shape[0] * self.rank.count, *shape[1:]), **self._where), shape[0])

    def uniform(self, count: int) -> torch.Tensor:
        """`count` numbers in [0, 1)."""
        return self._mine(torch.rand(count * self.rank.count, **self._where), count)

    def common(self, count: int) -> torch.Tensor:
        """`count` numbers in [0, 1), the same on all ranks."""
        return torch.rand(count, **self._where)

    def stratified(self, count: int) -> torch.Tensor:
        """`count` uniform numbers in [0, 1) that together cover the interval evenly.

        The numbers of all ranks are equally spaced, with one random offset (Kingma et al. 2021, appendix I.1).
        """
        total = count * self.rank.count
        offset = torch.rand(1, **self._where)
        spread = (offset + torch.randperm(total, **self._where) / total) % 1
        return self._mine(spread, count)

    @property
    def _where(self) -> dict[str, Any]:
        return {"generator": self.generator, "device": self.device}

    def _mine(self, numbers: torch.Tensor, count: int) -> torch.Tensor:
        return numbers[self.rank.index * count : (self.rank.index + 1) * count]
