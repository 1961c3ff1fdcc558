"""The processes in continuous time: what levels.py defines, as a Process. Their samplers are in solvers.py."""

import math
from dataclasses import asdict
from typing import Any

import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tinyldm.config.networks import Kind
from tinyldm.portable.levels import EDM, KINDS, Flow, ProcessScheduler, grid
from tinyldm.process.process import Process, exact
from tinyldm.randomness import Draw


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
        self.kind, self.law = kind, KINDS[kind](**settings)
        self.prediction = prediction or self.law.prediction
        self.sigma_data = self.law.sigma_data
        self.training_times = times or ("uniform" if self.law.uniform else "normal")
        self.normal = normal or self.law.normal
        if normal is None and isinstance(self.law, Flow):  # a shift divides alpha / sigma
            self.normal = -2 * math.log(self.law.shift), self.law.normal[1]
        if (kind, self.prediction) == ("flow", "epsilon"):
            raise ValueError("a flow cannot predict epsilon, which says nothing about the image at pure noise")

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
