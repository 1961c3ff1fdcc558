"""Held-out errors of x_0 in three units, for the same images, times and noise, to compare prediction types.

In units of v they are the `eval_loss` of a training. In units of the noise they are the loss of Ho et al. 2020. Weighted by the
decrease of the SNR they are the terms of the variational bound (Kingma et al. 2021, equation 11), without timestep 0.
"""

import math

import torch

from benchmarks.measure import TimedLatents, TimedPixels
from tinyldm.data.batch import Batch
from tinyldm.diffusion.objective import held_out_error
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.models.denoiser import Denoiser
from tinyldm.process.discrete_vp import DiscreteVP


def noise_and_bits(
    denoiser: Denoiser, process: DiscreteVP, batch: Batch, noise: torch.Tensor, times: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared errors (B,) in units of the noise, and T times the terms of the bound (B,) in bits per dimension.

    Args:
        batch: x_0 (B, C, S, S) with its condition.
    """
    errors = held_out_error(denoiser, process, batch.x, noise, times, batch.condition)
    snr = process.signal_to_noise(times).float()
    before = process.signal_to_noise((times - 1).clamp(min=0)).float()
    return errors * snr / (snr + 1), errors * (before - snr) / (snr + 1) * process.steps / 2 / math.log(2)


class Compared(DiffusionTask):
    """Adds `eval_eps` and `eval_bits` to `eval_loss`, and skips everything else that a subclass evaluates."""

    def evaluate(self) -> dict[str, torch.Tensor]:
        """See DiffusionTask.evaluate."""
        sums = DiffusionTask.evaluate(self)
        eps, bits = torch.zeros(2, device=self.accelerator.device)
        denoiser = self.model().denoiser
        for batch, noise, times in self.my_held_out():
            in_noise, in_bits = noise_and_bits(denoiser, self.process, batch, noise, times)
            eps += in_noise.sum()
            bits += in_bits.sum()
        return {**sums, "eps": eps, "bits": bits}

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """See DiffusionTask.summarize."""
        count = sums["count"].sum()
        figures = {"eval_eps": float(sums["eps"] / count), "eval_bits": float(sums["bits"] / count)}
        return {**DiffusionTask.summarize(self, sums), **figures}


class ComparedLatents(Compared, TimedLatents):
    """LatentTask with these figures and a clock."""


class ComparedPixels(Compared, TimedPixels):
    """PixelTask with these figures and a clock, without its own bound, which takes ten times as long."""
