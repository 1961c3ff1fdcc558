"""The noise levels of the processes in continuous time, on one page. A copy of this file travels with models; it imports
nothing of tinyldm. process.py has the algebra that all processes share.

    x_t = alpha x_0 + sigma eps

Times are fractions f of the way from image (0) to noise (1). The ratio sigma / alpha grows with f.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

Pair = tuple[torch.Tensor, torch.Tensor]


def coefficients(prediction: str, alpha: Any, sigma: Any, sigma_data: float = 1.0) -> tuple[Any, Any]:
    """a and b of the prediction y = a x_0 + b eps: see process.py. v has the variance 1 for x_0 of deviation sigma_data."""
    if prediction == "v_prediction":
        alpha = alpha * sigma_data
        size = (alpha * alpha + sigma * sigma) ** 0.5
        return -sigma / size / sigma_data, alpha / size
    a, b = {"epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "flow": (-1.0, 1.0)}[prediction]
    return a / sigma_data, b


@dataclass(frozen=True)
class Levels(ABC):
    """What a process defines.

    Attributes:
        prediction: what its network predicts, unless the recipe says otherwise.
        uniform: training times are uniform in f; else log SNR is drawn from a normal distribution.
        normal: mean and standard deviation of that distribution.
        ends: the range of f in training.
        visits_end: samplers visit the least noise before the image.
        sigma_data: the standard deviation of x_0 that v is normalised by.
    """

    prediction: ClassVar[str] = "epsilon"
    uniform: ClassVar[bool] = True
    normal: ClassVar[tuple[float, float]] = (0.0, 2.0)
    ends: ClassVar[tuple[float, float]] = (0.0, 1.0)
    visits_end: ClassVar[bool] = True
    sigma_data: float = 1.0

    @abstractmethod
    def levels(self, f: torch.Tensor) -> Pair:
        """alpha and sigma, of the shape of f."""

    @abstractmethod
    def fraction(self, ratio: torch.Tensor) -> torch.Tensor:
        """f of a ratio sigma / alpha: the inverse of `levels`."""

    def network_time(self, f: torch.Tensor) -> torch.Tensor:
        """The input of the network's time embedding."""
        return 1000 * f

    def input_scale(self, sigma: torch.Tensor) -> torch.Tensor:
        """The network's input is x_t times this."""
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class Flow(Levels):
    """Rectified flow: the straight path (Liu et al. 2022; Lipman et al. 2023).

    Attributes:
        shift: a larger one spends more of the way at high noise, as large images need (Esser et al. 2024, equation 23).
    """

    prediction: ClassVar[str] = "flow"
    ends: ClassVar[tuple[float, float]] = (1e-3, 1.0)
    visits_end: ClassVar[bool] = False
    shift: float = 1.0

    def levels(self, f: torch.Tensor) -> Pair:
        """See Levels.levels."""
        t = self.shift * f / (1 + (self.shift - 1) * f)
        return 1 - t, t

    def fraction(self, ratio: torch.Tensor) -> torch.Tensor:
        """See Levels.fraction."""
        return 1 / (1 + self.shift / ratio)

    def network_time(self, f: torch.Tensor) -> torch.Tensor:
        """See Levels.network_time."""
        return 1000 * self.levels(f)[1]


@dataclass(frozen=True)
class ContinuousVP(Levels):
    """Variance preserving, beta linear in time (Song et al. 2021, "Score-Based Generative Modeling through SDEs", eq. 11)."""

    ends: ClassVar[tuple[float, float]] = (1e-5, 1.0)
    visits_end: ClassVar[bool] = False
    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_abar(self, f: torch.Tensor) -> torch.Tensor:
        """Minus the integral of beta up to f."""
        return -f * (self.beta_min + f * (self.beta_max - self.beta_min) / 2)

    def levels(self, f: torch.Tensor) -> Pair:
        """See Levels.levels."""
        log_abar = self.log_abar(f)
        return (log_abar / 2).exp(), (-log_abar.expm1()).sqrt()

    def fraction(self, ratio: torch.Tensor) -> torch.Tensor:
        """See Levels.fraction."""
        return self.at(-(ratio * ratio).log1p())

    def at(self, log_abar: torch.Tensor) -> torch.Tensor:
        """The inverse of log_abar: the positive root of a quadratic equation, in a form that does not cancel."""
        root = (self.beta_min**2 - 2 * (self.beta_max - self.beta_min) * log_abar).sqrt()
        return -2 * log_abar / (self.beta_min + root)


@dataclass(frozen=True)
class SubVP(ContinuousVP):
    """Song et al. 2021, equation 13: less variance than VP at each time."""

    def levels(self, f: torch.Tensor) -> Pair:
        """See Levels.levels."""
        log_abar = self.log_abar(f)
        return (log_abar / 2).exp(), -log_abar.expm1()

    def fraction(self, ratio: torch.Tensor) -> torch.Tensor:
        """See Levels.fraction. ratio = (1 - alpha^2) / alpha."""
        return self.at(-2 * (ratio / 2).asinh())


@dataclass(frozen=True)
class VE(Levels):
    """Variance exploding, geometric levels (Song & Ermon 2019; Song et al. 2021, equation 9).

    Attributes:
        conditioned: false: the network does not know the time (Song & Ermon 2020, technique 3).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    conditioned: bool = True

    def levels(self, f: torch.Tensor) -> Pair:
        """See Levels.levels."""
        return torch.ones_like(f), self.sigma_min * (self.sigma_max / self.sigma_min) ** f

    def fraction(self, ratio: torch.Tensor) -> torch.Tensor:
        """See Levels.fraction."""
        return (ratio / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)

    def network_time(self, f: torch.Tensor) -> torch.Tensor:
        """See Levels.network_time."""
        return 1000 * f if self.conditioned else torch.zeros_like(f)


@dataclass(frozen=True)
class EDM(Levels):
    """Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1.

    Their network F is -v, since v is normalised by `sigma_data`: predicting v is their preconditioning, and its plain squared
    error their loss weight.
    """

    prediction: ClassVar[str] = "v_prediction"
    uniform: ClassVar[bool] = False
    normal: ClassVar[tuple[float, float]] = (2.4, 2.4)  # log SNR = -2 log sigma, and log sigma has mean -1.2 and deviation 1.2
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: ClassVar[float] = 7.0

    def levels(self, f: torch.Tensor) -> Pair:
        """See Levels.levels."""
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        return torch.ones_like(f), (low + f * (high - low)) ** self.rho

    def fraction(self, ratio: torch.Tensor) -> torch.Tensor:
        """See Levels.fraction."""
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        return (ratio ** (1 / self.rho) - low) / (high - low)

    def network_time(self, f: torch.Tensor) -> torch.Tensor:
        """See Levels.network_time."""
        return self.levels(f)[1].log() / 4

    def input_scale(self, sigma: torch.Tensor) -> torch.Tensor:
        """See Levels.input_scale."""
        return (sigma * sigma + self.sigma_data**2) ** -0.5


KINDS: dict[str, type[Levels]] = {"vp-continuous": ContinuousVP, "subvp": SubVP, "ve": VE, "edm": EDM, "flow": Flow}


class ProcessScheduler(SchedulerMixin, ConfigMixin):
    """Euler's method as a diffusers scheduler, for the processes that diffusers has none for.

    Args:
        kind: a key of KINDS.
        prediction_type: what the network predicts.
        settings: arguments of that class.
    """

    @register_to_config
    def __init__(self, kind: str = "flow", prediction_type: str = "flow", settings: dict[str, Any] | None = None):
        self.levels = KINDS[kind](**(settings or {}))
        self.set_timesteps(50)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the times to visit. `timesteps` are in the network's units."""
        self.fractions = grid(self.levels, num_inference_steps)
        self.timesteps = self.levels.network_time(self.fractions).float().to(device)
        alpha, sigma = (part.tolist() for part in self.levels.levels(self.fractions))
        self.pairs = [*zip(alpha, sigma, strict=True), (1.0, 0.0)]
        self.set_begin_index(0)

    def set_begin_index(self, begin_index: int) -> None:
        """Go to a step: the next call of `step` is that one."""
        self.done = begin_index

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise to start from."""
        return math.hypot(*self.pairs[0])

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The network's input for x_t (B, C, H, W)."""
        return sample * float(self.levels.input_scale(torch.tensor(self.pairs[self.done][1])))

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> SchedulerOutput:
        """From x_t to the next, less noisy one."""
        (alpha, sigma), (alpha_after, sigma_after) = self.pairs[self.done : self.done + 2]
        x0, noise = solve(self.config.prediction_type, alpha, sigma, self.levels.sigma_data, sample, model_output)
        self.done += 1
        return SchedulerOutput(prev_sample=alpha_after * x0 + sigma_after * noise)


def grid(levels: Levels, count: int) -> torch.Tensor:
    """The `count` fractions that a sampler visits, from noise to image, in float64. The image itself follows them."""
    points = torch.linspace(1, 0, count if levels.visits_end and count > 1 else count + 1, dtype=torch.float64)
    return points[:count]


def solve(
    prediction: str, alpha: Any, sigma: Any, sigma_data: float, x_t: torch.Tensor, predicted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 and eps (B, C, H, W) from x_t and the prediction: two linear equations, see process.py."""
    a, b = coefficients(prediction, alpha, sigma, sigma_data)
    d = alpha * b - sigma * a
    return (b * x_t - sigma * predicted) / d, (alpha * predicted - a * x_t) / d
