"""What a diffusion model learns, on one page: noise an image, predict what was done to it, weigh the error.

Forward process (Ho et al. 2020, equation 4), with abar_t = prod_{s <= t} (1 - beta_s):

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,        SNR(t) = abar_t / (1 - abar_t)

The network sees x_t and t and predicts one of (`scheduler.prediction_type`)

    epsilon        eps                                              (Ho et al. 2020)
    v_prediction   v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0      (Salimans & Ho 2022, appendix D)
    sample         x_0

An error e of x_0 is an error of eps of sqrt(SNR) e and of v of sqrt(SNR + 1) e, so that a loss of any of the three is a
weighted loss of x_0; min-SNR (Hang et al. 2023, equation 8) gives the x_0 loss the weight min(SNR, gamma) for each.
"""

import torch
from diffusers import DDPMScheduler
from torch import nn

from tinyldm.diffusion.bound import reverse_step, step_bits
from tinyldm.diffusion.process import signal_to_noise, target, weight


def diffusion_loss(
    network: nn.Module,
    scheduler: DDPMScheduler,
    x0: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float | None,
    kind: str = "simple",
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Losses (B,), each the mean over the elements of its image.

    Args:
        network: (x_t (B, C, H, W), timesteps (B,), class_labels (B,) or None) -> object with `.sample` (B, C, H, W), or
            (B, 2 C, H, W) where it also says the variance.
        x0: images or latents (B, C, H, W) of about unit variance, in fp32 like `noise`.
        timesteps: (B,) in 0..T-1.
        kind: simple, weighted squared errors; hybrid, 0.001 of the bound beside them, which teaches the variance alone
            (Nichol & Dhariwal 2021, equation 16); bound, T L_t in bits per dimension.
        labels: classes (B,) of a network that knows them.
    """
    x_t = scheduler.add_noise(x0, noise, timesteps)
    predicted = network(x_t, timesteps, class_labels=labels).sample.float()
    steps = scheduler.config.num_train_timesteps
    if kind == "bound":
        return steps * step_bits(scheduler, predicted, x0, x_t, timesteps)
    mean, variance = predicted[:, : x0.shape[1]], predicted[:, x0.shape[1] :]
    error = (mean - target(scheduler, x0, noise, timesteps)).square().mean((1, 2, 3))
    loss = weight(scheduler, timesteps, snr_gamma) * error
    if kind == "hybrid":
        loss = loss + 0.001 * steps * step_bits(scheduler, torch.cat([mean.detach(), variance], 1), x0, x_t, timesteps)
    return loss


def held_out_error(
    network: nn.Module,
    scheduler: DDPMScheduler,
    x0: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared errors (B,) of the x_0 that a sampler would use (clipped where it clips), in units of v: SNR + 1 times
    that of x_0. So held-out losses compare between runs, whatever they were trained to predict. See diffusion_loss."""
    x_t = scheduler.add_noise(x0, noise, timesteps)
    predicted = network(x_t, timesteps, class_labels=labels).sample.float()
    _, expected = reverse_step(scheduler, predicted, x_t, timesteps)
    return (signal_to_noise(scheduler, timesteps) + 1) * (expected - x0).square().mean((1, 2, 3))
