"""The process of DDPM, in timesteps. What applies only to it is in bound.py; its samplers are those of diffusers."""

import math
from typing import ClassVar

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tinyldm.config.networks import Kind
from tinyldm.errors import UserError
from tinyldm.process.process import Process, exact
from tinyldm.randomness import Draw


class DiscreteVP(Process):
    """DDPM's process in T steps: alpha_t^2 = abar_t = prod_{s <= t} (1 - beta_s), alpha_t^2 + sigma_t^2 = 1.

    Times are timesteps 0 .. T-1 (int64), as in diffusers. Some samplers go in between (float), where log SNR is linear.

    Args:
        scheduler: any diffusers scheduler of this process: it holds the betas and the prediction type.
    """

    samplers: ClassVar[dict[str, type[SchedulerMixin]]] = {
        "ddim": DDIMScheduler,
        "ddpm": DDPMScheduler,
        "dpm-solver++": DPMSolverMultistepScheduler,
        "euler": EulerDiscreteScheduler,
        "heun": HeunDiscreteScheduler,
        "unipc": UniPCMultistepScheduler,
    }
    kind: Kind = "vp"
    deterministic = "ddim"

    def __init__(self, scheduler: SchedulerMixin):
        self.scheduler, config = scheduler, scheduler.config
        self.prediction = config.prediction_type
        self.abar: torch.Tensor = scheduler.alphas_cumprod  # (T,)
        self._tables: dict[torch.device, torch.Tensor] = {}  # it on each device
        self.steps: int = config.num_train_timesteps
        self.variance: str = config.get("variance_type") or "fixed_small"
        self.clip = config.clip_sample_range if config.get("clip_sample") else None
        self.learns_variance = self.variance == "learned_range"
        falls = (self.abar.diff() < 0).all() and 0 < self.abar[0] < 1 and self.abar[-1] >= 0  # false for nan too
        if not falls or self.steps < 2:
            raise UserError("the scheduler's noise must grow at each of at least two timesteps: each beta lies between 0 and 1")
        if self.clip is not None and not (isinstance(self.clip, int | float) and 0 < self.clip < math.inf):
            raise UserError(f"the scheduler's clip_sample_range is {self.clip}; give a number above 0")

    def levels(self, times: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """See Process.levels."""
        if times.device not in self._tables:
            self._tables[times.device] = self.abar.to(times.device)
        table = self._tables[times.device]
        abar = self._between(times, table) if times.is_floating_point() else table[times]
        abar = abar.to(dtype).view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def _between(self, times: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """abar (B,) at any times (B,), in float64."""
        below = times.floor().long().clamp(0, self.steps - 1)
        log_snr = table.to(exact(times)).clamp(min=1e-12).logit()
        low, high = log_snr[below], log_snr[(below + 1).clamp(max=self.steps - 1)]
        return (low + (times - below) * (high - low)).sigmoid()

    def times(self, fractions: torch.Tensor) -> torch.Tensor:
        """See Process.times."""
        return (fractions * self.steps).long().clamp(max=self.steps - 1)

    def fraction(self, times: torch.Tensor) -> torch.Tensor:
        """See Process.fraction."""
        return times / self.steps

    def grid(self, count: int) -> torch.Tensor:
        """See Process.grid: evenly from the last timestep on."""
        return torch.linspace(self.steps, 0, count + 1, dtype=torch.float64)[:count] - 1

    def time_of(self, ratio: torch.Tensor) -> torch.Tensor:
        """See Process.time_of: the inverse of `levels`, between timesteps."""
        table = self.abar.cpu().double().clamp(min=1e-12).logit().numpy()
        found = np.interp((-2 * ratio.cpu().double().log()).numpy(), table[::-1], np.arange(self.steps)[::-1])
        return torch.from_numpy(found).to(exact(ratio)).to(ratio.device)

    def inputs(self, x_t: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Process.inputs: as they are."""
        return x_t, times.float() if times.is_floating_point() else times

    def describe(self) -> str:
        """See Process.describe."""
        schedule = f"{self.scheduler.config.beta_schedule}, {self.steps} timesteps"
        return f"{schedule}; variance of the reverse steps: {self.variance}"

    def sampler(self, name: str | None = None) -> SchedulerMixin:
        """See Process.sampler."""
        if name is None:
            return self.scheduler
        if name not in self.samplers:
            raise UserError(
                f"{name} does not know the process vp; choose one of {', '.join(self.samplers)}, or add --process ve"
            )
        if self.scheduler.config.get("rescale_betas_zero_snr") and name == "heun":  # it would use the betas without rescaling
            raise UserError("heun cannot start from zero terminal SNR; this model needs another scheduler, e.g. dpm-solver++")
        # from_config drops values that are defaults of the current class, but other classes have other defaults.
        config = {key: value for key, value in self.scheduler.config.items() if key != "_use_default_values"}
        try:
            return self.samplers[name].from_config({"timestep_spacing": "leading", **config})
        except NotImplementedError as error:
            raise UserError(f"{name} cannot be used with this model: {error}") from error


def discrete(process: Process) -> DiscreteVP:
    """Return the process if it is a DiscreteVP. The bound and learned variances are only defined for that one.

    Raises:
        UserError: for another process.
    """
    if not isinstance(process, DiscreteVP):
        raise UserError(f"the variational bound needs the discrete process of DDPM, not {process.kind}")
    return process


class LossHistory:
    """Draws timesteps where the bound is large (Nichol & Dhariwal 2021, equation 18).

    p(t) is proportional to the root of E[L_t^2] over the last losses of each timestep; weights correct for it. Timesteps are
    uniform until each has `length` losses.

    Attributes:
        losses: (T, length) the last losses of each timestep, nan until there are any. Checkpoints include them.
    """

    def __init__(self, timesteps: int, length: int = 10):
        self.losses = torch.full((timesteps, length), torch.nan)

    def draw(self, count: int, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps (count,) and weights (count,) of mean 1."""
        chances = self.losses.double().square().mean(1).sqrt()
        if torch.isnan(chances).any():
            chances = torch.ones_like(chances)
        chances = 0.999 * chances / chances.sum() + 0.001 / len(chances)  # every timestep keeps some probability
        timesteps = torch.searchsorted(chances.cumsum(0), draw.uniform(count).cpu().double()).clamp(max=len(chances) - 1)
        return timesteps, (1 / (len(chances) * chances[timesteps])).float()

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Add the losses (B,) of these timesteps (B,), gathered from all ranks."""
        for t, loss in zip(timesteps.tolist(), losses.tolist(), strict=True):
            self.losses[t] = torch.cat([self.losses[t, 1:], self.losses.new_tensor([loss])])
