"""The forward process."""

import torch
from diffusers import DDPMScheduler

from tinyldm.config.networks import SchedulerConfig
from tinyldm.errors import UserError
from tinyldm.randomness import Draw


def signal_to_noise(scheduler: DDPMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """SNR(t) = abar_t / (1 - abar_t) for timesteps (B,)."""
    alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return alphas_cumprod / (1 - alphas_cumprod)


def target(scheduler: DDPMScheduler, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """What the network shall predict (B, C, H, W)."""
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return scheduler.get_velocity(x0, noise, timesteps)
        case "sample":
            return x0
    raise ValueError(f"unknown prediction_type {scheduler.config.prediction_type!r}")


def weight(scheduler: DDPMScheduler, timesteps: torch.Tensor, snr_gamma: float | None) -> torch.Tensor:
    """Weights (B,) of the squared errors. snr_gamma None: 1, the simple loss of the chosen prediction type."""
    if snr_gamma is None:
        return torch.ones_like(timesteps, dtype=torch.float32)
    snr = signal_to_noise(scheduler, timesteps)
    clipped = snr.clamp(max=snr_gamma)
    match scheduler.config.prediction_type:
        case "epsilon":
            return clipped / snr  # SNR 0 would divide by 0, but the config refuses epsilon with zero terminal SNR
        case "v_prediction":
            return clipped / (snr + 1)
        case "sample":
            return clipped
    raise ValueError(f"unknown prediction_type {scheduler.config.prediction_type!r}")


def draw_timesteps(scheduler: DDPMScheduler, count: int, draw: Draw) -> torch.Tensor:
    """Uniform timesteps (count,), spread evenly over a batch: the same expectation with less variance."""
    steps = scheduler.config.num_train_timesteps
    return (draw.stratified(count) * steps).long().clamp(max=steps - 1)


def make_scheduler(config: SchedulerConfig) -> DDPMScheduler:
    """The forward process.

    Raises:
        UserError: for a schedule that diffusers does not know.
    """
    config.check()
    try:
        return DDPMScheduler(**config.arguments())
    except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the section scheduler does not make a DDPMScheduler: {error}") from error


class LossHistory:
    """Timesteps drawn where the bound is large: p(t) as the root of E[L_t^2] over the last losses of each timestep, and
    weights that make up for it (Nichol & Dhariwal 2021, equation 18). Uniform until each timestep has `length` losses.

    Attributes:
        losses: (T, length) the last ones of each timestep, nan where there is none yet. It is to be saved with a training.
    """

    def __init__(self, timesteps: int, length: int = 10):
        self.losses = torch.full((timesteps, length), torch.nan)

    def draw(self, count: int, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps (count,) and weights (count,) of mean 1."""
        chances = self.losses.double().square().mean(1).sqrt()
        if torch.isnan(chances).any():
            chances = torch.ones_like(chances)
        chances = 0.999 * chances / chances.sum() + 0.001 / len(chances)  # none is left out for good
        timesteps = torch.searchsorted(chances.cumsum(0), draw.uniform(count).double().cpu()).clamp(max=len(chances) - 1)
        return timesteps, (1 / (len(chances) * chances[timesteps])).float()

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Remember the losses (B,) of these timesteps (B,), of all processes."""
        for t, loss in zip(timesteps.tolist(), losses.tolist(), strict=True):
            self.losses[t] = torch.cat([self.losses[t, 1:], self.losses.new_tensor([loss])])
