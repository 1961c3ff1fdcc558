"""Random numbers as a function of (seed, step, process): nothing to save, and a resumed run draws what an unbroken one
would have drawn (the idea is EDM2's)."""

import hashlib
from typing import NamedTuple

import torch


class Rank(NamedTuple):
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

    They are drawn for the micro-batches of all processes at once and each takes its part, so that the numbers belonging
    to an image do not depend on how many processes share the work.

    Args:
        seed, step, micro: of the run, the optimizer step, and the accumulation step in it.
        rank: whose part of the numbers is drawn.
        device: where the numbers are drawn.
    """

    def __init__(
        self, seed: int, step: int, micro: int, rank: Rank | tuple[int, int] = ALONE, device: torch.device | str = "cpu"
    ):
        self.rank, self.count = rank
        self.device = device
        self.generator = torch.Generator(device).manual_seed(derive_seed("step", seed, step, micro))

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers (B, ...) in float32."""
        return self._mine(torch.randn((shape[0] * self.count, *shape[1:]), **self._where), shape[0])

    def uniform(self, count: int) -> torch.Tensor:
        """`count` numbers in [0, 1)."""
        return self._mine(torch.rand(count * self.count, **self._where), count)

    def common(self, count: int) -> torch.Tensor:
        """`count` numbers in [0, 1), the same in all processes."""
        return torch.rand(count, **self._where)

    def stratified(self, count: int) -> torch.Tensor:
        """`count` numbers in [0, 1), each uniform, that together cover the interval evenly: one common offset and equal
        distances over the batches of all processes (Kingma et al. 2021, appendix I.1)."""
        total = count * self.count
        offset = torch.rand(1, **self._where)
        spread = (offset + torch.randperm(total, **self._where) / total) % 1
        return self._mine(spread, count)

    @property
    def _where(self) -> dict:
        return {"generator": self.generator, "device": self.device}

    def _mine(self, numbers: torch.Tensor, count: int) -> torch.Tensor:
        return numbers[self.rank * count : (self.rank + 1) * count]
