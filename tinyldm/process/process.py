"""The forward process: how an image becomes noise, what a network predicts, and the way back.

In every process here x_t is a mixture of the image and standard normal noise (Ho et al. 2020, equation 4, for example):

    x_t = alpha_t x_0 + sigma_t eps                        SNR(t) = (alpha_t / sigma_t)^2

A network predicts a combination y = a x_0 + b eps, named by `prediction`:

    epsilon        a = 0, b = 1              Ho et al. 2020
    sample         a = 1, b = 0
    v_prediction   a = -sigma, b = alpha     Salimans & Ho 2022, appendix D; divided by sqrt(alpha^2 + sigma^2)
    flow           a = -1, b = 1             Lipman et al. 2023

These are two linear equations for x_0 and eps. With d = alpha b - sigma a:

    x_0 = (b x_t - sigma y) / d              an error e of y is an error sigma e / d of x_0
    eps = (alpha y - a x_t) / d

So a new process only defines alpha_t and sigma_t, and a new prediction only a and b. Targets and the way back follow.
discrete_vp.py has the process of DDPM, continuous.py those of levels.py: flow, edm and others. processes.py makes the one
that a recipe or a saved scheduler names. The loss and its weights are in objective.py.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tinyldm.config.networks import Kind
from tinyldm.config.schema import Sampler
from tinyldm.portable.levels import coefficients, solve
from tinyldm.portable.pipeline import clip_prediction
from tinyldm.randomness import Draw

WITHOUT_FLOAT64 = {"mps"}  # Apple's GPUs

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")


class Process(ABC):
    """A forward process and what its network predicts.

    Attributes:
        prediction: a key of PREDICTIONS.
        kind: its name in `--process`.
        deterministic: the sampler for previews and interpolations. The same noise always gives the same image.
        clip: samplers clip x_0 to [-clip, clip]. None: they do not.
        learns_variance: the network has twice the channels, and the second half sets the variance of its steps.
        sigma_data: the standard deviation of x_0 that v is normalised by.
    """

    prediction: str
    kind: Kind
    deterministic: ClassVar[Sampler]
    sigma_data: float = 1.0
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
    def grid(self, count: int) -> torch.Tensor:
        """The `count` times that a sampler visits, from noise to image, in float64."""

    @abstractmethod
    def time_of(self, ratio: torch.Tensor) -> torch.Tensor:
        """Times (B,) of ratios sigma / alpha (B,), in float64, of the nearest level where there is none."""

    @abstractmethod
    def inputs(self, x_t: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is called with for x_t (B, C, H, W) and times (B,) or ()."""

    @abstractmethod
    def sampler(self, name: str | None = None) -> SchedulerMixin:
        """A diffusers scheduler that reverses this process, for the pipeline folder.

        Args:
            name: a sampler that diffusers has for this process. None: the one that this process was made with.

        Raises:
            UserError: for a sampler that cannot reverse this process.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line about this process, for the model card."""

    # ----------------------------------------------------------------------------------------- derived from those

    def draw_times(self, count: int, draw: Draw) -> torch.Tensor:
        """Random times (count,) to train at, uniform and spread evenly over a batch: the same mean with less variance."""
        return self.times(draw.stratified(count))

    def noisy(self, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, H, W)."""
        alpha, sigma = self.levels(times)
        return alpha * x0 + sigma * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The training target: a x_0 + b eps (B, C, H, W)."""
        a, b = self.prediction_of(*self.levels(times))
        return a * x0 + b * noise

    def to_x0(self, x_t: torch.Tensor, predicted: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The x_0 that a sampler uses, in float64: (b x_t - sigma y) / d, clipped if it clips.

        Args:
            predicted: the network's output (B, C, H, W).
        """
        alpha, sigma, a, b = self._coefficients(times)
        x0 = (b * x_t - sigma * predicted) / (alpha * b - sigma * a)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def to_x0_and_noise(
        self, x_t: torch.Tensor, predicted: torch.Tensor, time: float, clip: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_0, clipped if the samplers clip, and eps that fits it, in the precision of x_t.

        Args:
            time: one for all. The levels are computed on the CPU, so that no step of a sampler waits for the device.
            clip: false: never clip.
        """
        alpha, sigma = (float(part) for part in self.levels(torch.tensor([float(time)], dtype=torch.float64), torch.float64))
        x0, noise = solve(self.prediction, alpha, sigma, self.sigma_data, x_t, predicted)
        if self.clip is None or not clip:
            return x0, noise
        x0 = x0.clamp(-self.clip, self.clip)
        return x0, (x_t - alpha * x0) / sigma

    def clipped(self, x_t: torch.Tensor, predicted: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The prediction (B, C, H, W) with its x_0 clipped as the samplers do: see clip_prediction."""
        if self.clip is None:
            return predicted
        return clip_prediction(x_t, predicted, *self._coefficients(times), self.clip)

    def signal_to_noise(self, times: torch.Tensor) -> torch.Tensor:
        """SNR(t), (B,) in float64."""
        alpha, sigma = self.levels(times, exact(times))
        return (alpha / sigma).square().flatten()

    def x0_error(self, times: torch.Tensor) -> torch.Tensor:
        """(sigma / d)^2, (B,) in float64: the squared error of x_0 for a squared error of 1 in y."""
        alpha, sigma, a, b = self._coefficients(times)
        return (sigma / (alpha * b - sigma * a)).square().flatten()

    def _coefficients(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any, Any]:
        """alpha, sigma, a and b in float64, because callers subtract numbers near 1."""
        alpha, sigma = self.levels(times, exact(times))
        return alpha, sigma, *self.prediction_of(alpha, sigma)

    def prediction_of(self, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        """a and b of these levels."""
        return coefficients(self.prediction, alpha, sigma, self.sigma_data)

    def ratio_ends(self) -> tuple[float, float]:
        """The smallest and the largest sigma / alpha that the network is trained at. Pure noise counts as 1000."""
        alpha, sigma = self.levels(self.times(torch.tensor([0.0, 1.0], dtype=torch.float64)), torch.float64)
        low, high = (sigma / alpha).flatten().tolist()
        return low, min(high, 1000.0)


def same_noise(a: Process, b: Process) -> bool:
    """Whether two networks see the same x_t, and the same times, for the same image and noise."""
    seen = []
    for process in (a, b):
        times = process.times(torch.linspace(0, 1, 11))
        levels = torch.cat(process.levels(times)).flatten()
        seen.append(torch.cat([levels, *(part.flatten() for part in process.inputs(levels.new_ones(11, 1, 1, 1), times))]))
    return torch.allclose(seen[0], seen[1], rtol=1e-5)


def exact(tensor: torch.Tensor) -> torch.dtype:
    """float64 where the device of this tensor has it."""
    return torch.float32 if tensor.device.type in WITHOUT_FLOAT64 else torch.float64
