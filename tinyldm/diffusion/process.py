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
`DiscreteVP` is the process of DDPM; what applies only to it is in bound.py. `ContinuousProcess` is any of levels.py: flow, edm
and others. The loss and its weights are in objective.py, the samplers of continuous processes in solvers.py.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tinyldm.config.networks import Kind, ProcessConfig, SchedulerConfig
from tinyldm.config.schema import Sampler
from tinyldm.diffusion.levels import EDM, KINDS, Flow, ProcessScheduler, coefficients, grid
from tinyldm.diffusion.pipeline import clip_prediction
from tinyldm.errors import UserError
from tinyldm.randomness import Draw

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
        self, x_t: torch.Tensor, predicted: torch.Tensor, time: torch.Tensor, clip: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_0, clipped if the samplers clip, and eps that fits it, in the precision of x_t.

        Args:
            time: one for all, ().
            clip: false: never clip.
        """
        alpha, sigma, a, b = (float(part) for part in self._coefficients(time.reshape(1)))
        d = alpha * b - sigma * a
        x0, noise = (b * x_t - sigma * predicted) / d, (alpha * predicted - a * x_t) / d
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
        a, b = coefficients(self.prediction, alpha * self.sigma_data, sigma)
        return a / self.sigma_data, b

    def ratio_ends(self) -> tuple[float, float]:
        """The smallest and the largest sigma / alpha that the network is trained at. Pure noise counts as 1000."""
        alpha, sigma = self.levels(self.times(torch.tensor([0.0, 1.0], dtype=torch.float64)), torch.float64)
        low, high = (sigma / alpha).flatten().tolist()
        return low, min(high, 1000.0)


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
        if times.is_floating_point():
            abar = self._between(times).to(dtype).view(-1, 1, 1, 1)
        else:
            abar = self.abar[times].to(dtype).view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def _between(self, times: torch.Tensor) -> torch.Tensor:
        """abar (B,) at any times (B,), in float64."""
        below = times.floor().long().clamp(0, self.steps - 1)
        log_snr = self.abar.to(exact(times)).clamp(min=1e-12).logit()
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
        table = self.abar.double().cpu().clamp(min=1e-12).logit().numpy()
        found = np.interp((-2 * ratio.double().cpu().log()).numpy(), table[::-1], np.arange(self.steps)[::-1])
        return torch.from_numpy(found).to(ratio.device)

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


class ContinuousProcess(Process):
    """A process of levels.py. Times are fractions in [0, 1].

    Args:
        kind: a key of KINDS.
        settings: arguments of that class.
        prediction: null: the kind's own.
        times: uniform in time; normal: log SNR has the normal distribution `normal`; log-snr: uniform in log SNR.
            None: the kind's own.
        normal: mean and standard deviation of log SNR. None: the kind's own.
    """

    deterministic = "euler"

    def __init__(
        self,
        kind: Kind,
        prediction: str | None = None,
        times: str | None = None,
        normal: tuple[float, float] | None = None,
        **settings: Any,
    ):
        self.kind, self.settings, self.law = kind, settings, KINDS[kind](**settings)
        self.prediction = prediction or self.law.prediction
        self.sigma_data = self.law.sigma_data
        self.training_times = times or ("uniform" if self.law.uniform else "normal")
        self.normal = normal or self.law.normal
        if kind == "flow" and self.prediction == "epsilon":
            raise UserError(
                "process.prediction epsilon does not work with process.kind flow: at pure noise, the noise carries no "
                "information about the image; use flow, v_prediction or sample"
            )

    def levels(self, times: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """See Process.levels."""
        alpha, sigma = self.law.levels(times.to(exact(times)).view(-1, 1, 1, 1))
        return alpha.to(dtype), sigma.to(dtype)

    def times(self, fractions: torch.Tensor) -> torch.Tensor:
        """See Process.times."""
        first, last = self.law.ends
        return first + fractions * (last - first)

    def fraction(self, times: torch.Tensor) -> torch.Tensor:
        """See Process.fraction."""
        first, last = self.law.ends
        return ((times - first) / (last - first)).clamp(0, 1 - 1e-6)

    def grid(self, count: int) -> torch.Tensor:
        """See Process.grid."""
        return grid(self.law, count)

    def time_of(self, ratio: torch.Tensor) -> torch.Tensor:
        """See Process.time_of."""
        return self.law.fraction(ratio.to(exact(ratio))).clamp(*self.law.ends)

    def inputs(self, x_t: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Process.inputs."""
        _, sigma = self.levels(times)
        return x_t * self.law.input_scale(sigma), self.law.network_time(times.to(exact(times))).float()

    def draw_times(self, count: int, draw: Draw) -> torch.Tensor:
        """See Process.draw_times. Spread evenly over the distribution `training_times`."""
        uniform = draw.stratified(count)
        if self.training_times == "uniform":
            return self.times(uniform)
        if self.training_times == "normal":
            mean, deviation = self.normal
            log_snr = mean + deviation * torch.special.ndtri(uniform.to(exact(uniform)).clamp(1e-7, 1 - 1e-7))
        else:
            low, high = (-2 * math.log(ratio) for ratio in self.ratio_ends())
            log_snr = low + (high - low) * uniform
        return self.time_of((-log_snr / 2).exp()).float()

    def describe(self) -> str:
        """See Process.describe."""
        settings = "".join(f", {key} {value:.4g}" for key, value in vars(self.law).items() if key != "sigma_data")
        spread = "log SNR from N({:g}, {:g}^2)".format(*self.normal)
        times = {"uniform": "uniform", "normal": spread, "log-snr": "uniform in log SNR"}[self.training_times]
        return f"{self.kind}{settings}; training times: {times}"

    def sampler(self, name: str | None = None) -> SchedulerMixin:
        """See Process.sampler: diffusers' own scheduler of this process where it has one, which steps by Euler's method."""
        if isinstance(self.law, Flow) and self.prediction == "flow":
            return FlowMatchEulerDiscreteScheduler(shift=self.law.shift)
        if isinstance(self.law, EDM) and self.prediction == "v_prediction":
            law = self.law
            return EDMEulerScheduler(law.sigma_min, law.sigma_max, law.sigma_data, prediction_type="v_prediction")
        return ProcessScheduler(self.kind, self.prediction, asdict(self.law))


def make_process(config: ProcessConfig, scheduler: SchedulerConfig, **measured: float) -> Process:
    """The process of a recipe.

    Args:
        measured: settings of a continuous process that follow from the data, where the recipe gives none.

    Raises:
        UserError: for a schedule that diffusers does not know, or a prediction that the process cannot have.
    """
    if config.kind != "vp":
        return ContinuousProcess(config.kind, config.prediction, config.times, config.log_snr, **config.settings(measured))
    scheduler.check()
    try:
        return DiscreteVP(DDPMScheduler(**scheduler.arguments()))
    except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"cannot build a DDPMScheduler from the section scheduler: {error}") from error


def discrete(process: Process) -> DiscreteVP:
    """Return the process if it is a DiscreteVP. The bound and learned variances are only defined for that one.

    Raises:
        UserError: for another process.
    """
    if not isinstance(process, DiscreteVP):
        raise UserError(f"the variational bound needs the discrete process of DDPM, not {process.kind}")
    return process


def process_of(scheduler: SchedulerMixin) -> Process:
    """The process that the scheduler of a loaded model reverses.

    Raises:
        UserError: for a scheduler of a process that is not implemented here.
    """
    config = scheduler.config
    if isinstance(scheduler, ProcessScheduler):
        return ContinuousProcess(config.kind, config.prediction_type, **config.settings)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not config.use_dynamic_shifting:
        return ContinuousProcess("flow", shift=config.shift)
    if isinstance(scheduler, EDMEulerScheduler) and config.prediction_type == "v_prediction":
        settings = {key: config[key] for key in ("sigma_min", "sigma_max", "sigma_data")}
        return ContinuousProcess("edm", **settings)
    if not hasattr(scheduler, "alphas_cumprod") or config.get("prediction_type") not in PREDICTIONS:
        raise UserError(f"the model's {type(scheduler).__name__} belongs to a process that this project does not support")
    return DiscreteVP(scheduler)


def scheduler_config(process: Process) -> dict[str, Any]:
    """The process as JSON: the class and the arguments of its scheduler."""
    scheduler = process.sampler()
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"_class_name": type(scheduler).__name__, **config}


def process_from(config: dict[str, Any]) -> Process:
    """The inverse of scheduler_config.

    Raises:
        UserError: see process_of.
    """
    return process_of(scheduler_class(config.get("_class_name", "DDPMScheduler")).from_config(config))


def scheduler_class(name: str) -> Any:
    """The scheduler class of this name.

    Raises:
        ValueError: where neither diffusers nor levels.py has it.
    """
    found: Any = ProcessScheduler if name == ProcessScheduler.__name__ else getattr(diffusers, name, object)
    if not issubclass(found, SchedulerMixin):
        raise ValueError(f"diffusers has no scheduler {name}")
    return found


def same_noise(a: Process, b: Process) -> bool:
    """Whether two networks see the same x_t, and the same times, for the same image and noise."""
    seen = []
    for process in (a, b):
        times = process.times(torch.linspace(0, 1, 11))
        levels = torch.cat(process.levels(times)).flatten()
        seen.append(torch.cat([levels, *(part.flatten() for part in process.inputs(levels.new_ones(11, 1, 1, 1), times))]))
    return torch.allclose(seen[0], seen[1], rtol=1e-5)


def exact(tensor: torch.Tensor) -> torch.dtype:
    """float64 where the device of this tensor has it: all but Apple's."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


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
