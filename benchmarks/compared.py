"""Held-out errors that compare between prediction types: those of x_0, at the same timesteps and noise, in three units.

In units of v they are what a training logs as `eval_loss`. In units of the noise they are the loss of Ho et al. 2020. Weighted
by the fall of the SNR they are the steps' terms of the variational bound (Kingma et al. 2021, equation 11), without timestep 0.
"""

import math

import torch
from diffusers import DDPMScheduler
from torch import nn

from benchmarks.measure import TimedLatents, TimedPixels
from tinyldm.diffusion.objective import held_out_error
from tinyldm.diffusion.process import signal_to_noise
from tinyldm.diffusion.task import DiffusionTask


def noise_and_bits(
    network: nn.Module, scheduler: DDPMScheduler, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared errors (B,) in units of the noise, and T times the bound's terms (B,) in bits per dimension."""
    errors = held_out_error(network, scheduler, x0, noise, timesteps)
    snr = signal_to_noise(scheduler, timesteps)
    before = signal_to_noise(scheduler, (timesteps - 1).clamp(min=0))
    steps = scheduler.config.num_train_timesteps
    return errors * snr / (snr + 1), errors * (before - snr) / (snr + 1) * steps / 2 / math.log(2)


class Compared:
    """Mixed into a DiffusionTask: `eval_eps` and `eval_bits` beside `eval_loss`; nothing else of its evaluation."""

    def evaluate(self, process: tuple[int, int]) -> dict[str, torch.Tensor]:
        """See DiffusionTask."""
        sums = DiffusionTask.evaluate(self, process)
        eps, bits = torch.zeros(2, device=self.accelerator.device)
        network = self.accelerator.unwrap_model(self.networks["unet"])
        for part in self.my_held_out(process):
            in_noise, in_bits = noise_and_bits(network, self.scheduler, *part)
            eps += in_noise.sum()
            bits += in_bits.sum()
        return {**sums, "eps": eps, "bits": bits}

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """See DiffusionTask."""
        count = sums["count"].sum()
        figures = {"eval_eps": float(sums["eps"] / count), "eval_bits": float(sums["bits"] / count)}
        return {**DiffusionTask.summarize(self, sums), **figures}


class ComparedLatents(Compared, TimedLatents):
    """LatentTask."""


class ComparedPixels(Compared, TimedPixels):
    """PixelTask, without its own bound, which takes ten times as long."""
