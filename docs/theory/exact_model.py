"""The product's processes with a network that makes no error, for the labs that measure the product's own code."""

from types import SimpleNamespace

import torch
from labkit import Mixture
from torch import nn

from tinyldm.config.networks import ProcessConfig, SchedulerConfig
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model
from tinyldm.process.process import Process
from tinyldm.process.processes import make_process

KINDS = ("vp", "vp-continuous", "subvp", "ve", "edm", "flow")
SIGMA_MAX = 25.0  # of VE, as in lab 6
LINEAR = SchedulerConfig(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)  # of VP in timesteps: Ho et al. 2020


def exact_process(kind: str, **settings: str) -> Process:
    """With the settings of its paper but for these."""
    process = make_process(ProcessConfig(kind=kind, sigma_max=SIGMA_MAX if kind == "ve" else None, **settings), LINEAR)
    process.inputs = lambda x_t, times: (x_t, times)  # a formula, unlike a network, wants them as they are
    return process


class ExactNetwork(nn.Module):
    """Predicts what the process asks for from the estimates of the mixture, in float64. Images are (B, D, 1, 1)."""

    def __init__(self, process: Process, mixture: Mixture):
        super().__init__()
        self.process, self.mixture = process, mixture
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # gives device and type
        self.config = SimpleNamespace(sample_size=1, in_channels=mixture.means.shape[1])

    def forward(self, x_t: torch.Tensor, times: torch.Tensor, class_labels: None = None) -> SimpleNamespace:
        alpha, sigma = self.process.levels(times.reshape(-1), torch.float64)
        x_0, eps = (part.view_as(x_t) for part in self.mixture.estimates(x_t.flatten(1), alpha, sigma))
        a, b = self.process.prediction_of(alpha, sigma)
        return SimpleNamespace(sample=a * x_0 + b * eps)


def exact_model(kind: str, mixture: Mixture) -> Model:
    """A model as `sample.py` and `evaluate.py` load one."""
    process = exact_process(kind)
    return Model(Denoiser(ExactNetwork(process, mixture)), process, None)
