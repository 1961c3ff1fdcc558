"""The forward process: how an image becomes noise, what a network predicts, and the way back.

In every process here x_t is a mixture of the image and standard normal noise (Ho et al. 2020, equation 4, for example):

    x_t = alpha_t x_0 + sigma_t eps                        SNR(t) = (alpha_t / sigma_t)^2

A network predicts a combination y = a x_0 + b eps, named by `prediction`:

    epsilon        a = 0, b = 1              Ho et al. 2020
    sample         a = 1, b = 0
    v_prediction   a = -sigma, b = alpha     Salimans & Ho 2022, appendix D
    flow           a = -1, b = 1             Lipman et al. 2023

These are two linear equations for x_0 and eps. With d = alpha b - sigma a:

    x_0 = (b x_t - sigma y) / d              an error e of y is an error sigma e / d of x_0

So a new process only defines alpha_t and sigma_t, and a new prediction only a and b. Targets and the way back follow.
`DiscreteVP` is the process of DDPM. What applies only to it is in bound.py; the loss and its weights are in objective.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

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

from tinyldm.config.networks import SchedulerConfig
from tinyldm.config.schema import Sampler
from tinyldm.diffusion.pipeline import clip_prediction
from tinyldm.errors import UserError
from tinyldm.randomness import Draw

Level = torch.Tensor | float
PREDICTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[Level, Level]]] = {  # (alpha, sigma) -> (a, b)
    "epsilon": lambda alpha, sigma: (0.0, 1.0),
    "sample": lambda alpha, sigma: (1.0, 0.0),
    "v_prediction": lambda alpha, sigma: (-sigma, alpha),
    "flow": lambda alpha, sigma: (-1.0, 1.0),
}


class Process(ABC):
    """A forward process and what its network predicts.

    Attributes:
        prediction: a key of PREDICTIONS.
        samplers: diffusers' scheduler classes that can reverse this process, keyed by the names of `--scheduler`.
        deterministic: the key of the one for previews and interpolations. The same noise always gives the same image.
        clip: samplers clip x_0 to [-clip, clip]. None: they do not.
        learns_variance: the network has twice the channels, and the second half sets the variance of its steps.
    """

    prediction: str
    samplers: ClassVar[dict[str, type[SchedulerMixin]]]
    deterministic: ClassVar[Sampler]
    clip: float | None = None
    learns_variance: bool = False

    # ------------------------------------------------------------------------------ what a new process must define

    @abstractmethod
    def levels(self, times: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha_t and sigma_t, (B, 1, 1, 1) each, of times (B,)."""

    @abstractmethod
    def times(self, fractions: torch.Tensor) -> torch.Tensor:
        """Times (B,) from fractions (B,) in [0, 1) of the way from image to noise."""

    @abstractmethod
    def fraction(self, times: torch.Tensor) -> torch.Tensor:
        """The inverse of `times`: (B,) in [0, 1)."""

    @abstractmethod
    def network_times(self, times: torch.Tensor) -> torch.Tensor:
        """The input of the network's time embedding for times (B,). Samplers call the network in the same units."""

    @abstractmethod
    def sampler(self, name: str | None = None) -> SchedulerMixin:
        """A diffusers scheduler that reverses this process.

        Args:
            name: a key of `samplers`. None: the one that this process was made with.

        Raises:
            UserError: for a sampler that cannot reverse this process.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line about this process, for the model card."""

    # ----------------------------------------------------------------------------------------- derived from those

    def draw_times(self, count: int, draw: Draw) -> torch.Tensor:
        """Uniform times (count,), spread evenly over a batch: the same expectation with less variance."""
        return self.times(draw.stratified(count))

    def noisy(self, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, H, W)."""
        alpha, sigma = self.levels(times)
        return alpha * x0 + sigma * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The training target: a x_0 + b eps (B, C, H, W)."""
        a, b = PREDICTIONS[self.prediction](*self.levels(times))
        return a * x0 + b * noise

    def to_x0(self, x_t: torch.Tensor, predicted: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The x_0 that a sampler uses, in float64: (b x_t - sigma y) / d, clipped if it clips.

        Args:
            predicted: the network's output (B, C, H, W).
        """
        alpha, sigma, a, b = self._coefficients(times)
        x0 = (b * x_t - sigma * predicted) / (alpha * b - sigma * a)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def clipped(self, x_t: torch.Tensor, predicted: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The prediction (B, C, H, W) with its x_0 clipped as the samplers do: see clip_prediction."""
        if self.clip is None:
            return predicted
        return clip_prediction(x_t, predicted, *self._coefficients(times), self.clip)

    def signal_to_noise(self, times: torch.Tensor) -> torch.Tensor:
        """SNR(t), (B,) in float64."""
        alpha, sigma = self.levels(times, torch.float64)
        return (alpha / sigma).square().flatten()

    def x0_error(self, times: torch.Tensor) -> torch.Tensor:
        """(sigma / d)^2, (B,) in float64: the squared error of x_0 for a squared error of 1 in y."""
        alpha, sigma, a, b = self._coefficients(times)
        return (sigma / (alpha * b - sigma * a)).square().flatten()

    def _coefficients(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Level, Level]:
        """alpha, sigma, a and b in float64, because callers subtract numbers near 1."""
        alpha, sigma = self.levels(times, torch.float64)
        return alpha, sigma, *PREDICTIONS[self.prediction](alpha, sigma)


class DiscreteVP(Process):
    """DDPM's process in T steps: alpha_t^2 = abar_t = prod_{s <= t} (1 - beta_s), alpha_t^2 + sigma_t^2 = 1.

    Times are timesteps 0 .. T-1 (int64), as in diffusers. Some samplers go in between; `levels` takes the nearest one.

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
    deterministic = "ddim"

    def __init__(self, scheduler: SchedulerMixin):
        self.scheduler, config = scheduler, scheduler.config
        self.prediction = config.prediction_type
        self.abar: torch.Tensor = scheduler.alphas_cumprod  # (T,)
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
        if self.abar.device != times.device:
            self.abar = self.abar.to(times.device)
        abar = self.abar[times.round().long()].to(dtype).view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def times(self, fractions: torch.Tensor) -> torch.Tensor:
        """See Process.times."""
        return (fractions * self.steps).long().clamp(max=self.steps - 1)

    def fraction(self, times: torch.Tensor) -> torch.Tensor:
        """See Process.fraction."""
        return times / self.steps

    def network_times(self, times: torch.Tensor) -> torch.Tensor:
        """The timesteps themselves."""
        return times

    def describe(self) -> str:
        """See Process.describe."""
        schedule = f"{self.scheduler.config.beta_schedule}, {self.steps} timesteps"
        return f"{schedule}; variance of the reverse steps: {self.variance}"

    def sampler(self, name: str | None = None) -> SchedulerMixin:
        """See Process.sampler."""
        if name is None:
            return self.scheduler
        if name not in self.samplers:
            raise UserError(f"unknown scheduler {name!r}; choose one of {', '.join(self.samplers)}")
        if self.scheduler.config.get("rescale_betas_zero_snr") and name == "heun":  # it would use the betas without rescaling
            raise UserError("heun cannot start from zero terminal SNR; this model needs another scheduler, e.g. dpm-solver++")
        # from_config drops values that are defaults of the current class, but other classes have other defaults.
        config = {key: value for key, value in self.scheduler.config.items() if key != "_use_default_values"}
        try:
            return self.samplers[name].from_config({"timestep_spacing": "leading", **config})
        except NotImplementedError as error:
            raise UserError(f"{name} cannot be used with this model: {error}") from error


def make_process(config: SchedulerConfig) -> Process:
    """The process of a recipe.

    Raises:
        UserError: for a schedule that diffusers does not know.
    """
    config.check()
    try:
        return DiscreteVP(DDPMScheduler(**config.arguments()))
    except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"cannot build a DDPMScheduler from the section scheduler: {error}") from error


def discrete(process: Process) -> DiscreteVP:
    """Return the process if it is a DiscreteVP. The bound and learned variances are only defined for that one.

    Raises:
        UserError: for another process.
    """
    if not isinstance(process, DiscreteVP):
        raise UserError(f"the variational bound needs the discrete process of DDPM, not {type(process).__name__}")
    return process


def process_of(scheduler: SchedulerMixin) -> Process:
    """The process that the scheduler of a loaded model reverses.

    Raises:
        UserError: for a scheduler of a process that is not implemented here.
    """
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("prediction_type") not in PREDICTIONS:
        raise UserError(f"the model's {type(scheduler).__name__} belongs to a process that this project does not support")
    return DiscreteVP(scheduler)


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
        timesteps = torch.searchsorted(chances.cumsum(0), draw.uniform(count).double().cpu()).clamp(max=len(chances) - 1)
        return timesteps, (1 / (len(chances) * chances[timesteps])).float()

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Add the losses (B,) of these timesteps (B,), gathered from all ranks."""
        for t, loss in zip(timesteps.tolist(), losses.tolist(), strict=True):
            self.losses[t] = torch.cat([self.losses[t, 1:], self.losses.new_tensor([loss])])
