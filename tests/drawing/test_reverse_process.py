"""With the optimal denoiser, which is known for these distributions, sampling must reproduce the distribution."""

import math

import pytest
import torch
from torch import nn

from tests.support import models
from tests.support.models import GaussianDenoiser, MixtureDenoiser
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing.sampling import denoise
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model
from tinyldm.process.bound import posterior
from tinyldm.process.discrete_vp import DiscreteVP

pytestmark = pytest.mark.slow


COUNT = 20_000
CORRELATED = (torch.tensor([1.0]), torch.tensor([[0.5, -0.3]]), torch.tensor([[[0.30, 0.21], [0.21, 0.20]]]))
THREE = (
    torch.tensor([0.5, 0.3, 0.2]),
    torch.tensor([[-0.8, -0.8], [0.9, -0.2], [0.0, 0.9]]),
    torch.tensor([[[0.02, 0.0], [0.0, 0.04]], [[0.03, 0.02], [0.02, 0.03]], [[0.01, 0.0], [0.0, 0.01]]]),
)


def draw(distribution: tuple, name: str, steps: int, eta: float = 0.0, **process) -> torch.Tensor:
    """(COUNT, 2)"""
    forward = models.scheduler(**process)
    model = Model(Denoiser(MixtureDenoiser(forward, *distribution)), DiscreteVP(forward), None)
    random = [torch.Generator().manual_seed(0)]  # one for all images: one generator per image is slow
    settings = SamplerSettings(name, steps, eta)
    return denoise(model, torch.randn(COUNT, 2, 1, 1, generator=random[0]), settings, random).flatten(1).double()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("name", "steps", "eta"), [("ddpm", 500, 0.0), ("ddim", 500, 1.0), ("ddim", 500, 0.0), ("unipc", 250, 0.0)]
)
def test_a_normal_distribution_with_its_covariance(name, steps, eta, kind):
    x = draw(CORRELATED, name, steps, eta, prediction_type=kind)
    _, (mean,), (covariance,) = CORRELATED
    assert torch.allclose(x.mean(0), mean.double(), atol=5 * math.sqrt(0.3 / COUNT))
    assert torch.allclose(torch.cov(x.T), covariance.double(), atol=0.012)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("name", "steps"), [("ddpm", 500), ("ddim", 500), ("dpm-solver++", 250)])
def test_a_mixture_with_its_shares_means_and_covariances(name, steps, beta_schedule):
    x = draw(THREE, name, steps, beta_schedule=beta_schedule, beta_start=1e-4, beta_end=0.02)
    shares, means, covariances = (part.double() for part in THREE)
    nearest = torch.cdist(x, means).argmin(1)  # the components lie far apart
    for k in range(3):
        part = x[nearest == k]
        assert len(part) / COUNT == pytest.approx(shares[k].item(), abs=0.015)
        assert torch.allclose(part.mean(0), means[k], atol=0.015)
        assert torch.allclose(torch.cov(part.T), covariances[k], atol=0.004)


class WithVariance(nn.Module):
    """A GaussianDenoiser that also outputs the true variance of x_{t-1} given x_t, encoded as for learned_range."""

    def __init__(self, forward, mean: float, std: float):
        super().__init__()
        self.mean_only, self.forward_process, self.std = GaussianDenoiser(forward, mean, std), forward, std
        self.config = self.mean_only.config

    def forward(self, x, timestep, class_labels=None):
        t = torch.as_tensor(timestep).long().view(1)
        abar = self.forward_process.alphas_cumprod.double()[t]
        # Var[x_{t-1} | x_t] = Var[x_{t-1} | x_t, x_0] + (d mean / d x_0)^2 Var[x_0 | x_t]
        zero = torch.zeros(1, 1, 1, 1)
        given_x0 = posterior(DiscreteVP(self.forward_process), zero, zero, t)
        slope = posterior(DiscreteVP(self.forward_process), zero + 1, zero, t).mean
        true = given_x0.log_variance.exp() + slope**2 * (1 - abar) * self.std**2 / (abar * self.std**2 + 1 - abar)
        high = self.forward_process.betas.double()[t].log()
        share = (true.log() - given_x0.log_variance) / (high - given_x0.log_variance)
        return type("Output", (), {"sample": torch.cat([self.mean_only(x, t).sample, (2 * share - 1).expand_as(x).float()], 1)})


def test_the_true_variance_makes_few_steps_exact_and_fixed_ones_do_not():
    """Nichol & Dhariwal 2021, section 3.1; for normal data, reverse steps of any size are normal."""
    mean, std, actual = 0.5, 0.5, {}
    for variance in ("learned_range", "fixed_small", "fixed_large"):
        forward = models.scheduler(
            num_train_timesteps=10, beta_schedule="squaredcos_cap_v2", variance_type=variance, prediction_type="sample"
        )
        network = WithVariance(forward, mean, std) if variance == "learned_range" else GaussianDenoiser(forward, mean, std)
        random = [torch.Generator().manual_seed(0)]
        noise = torch.randn(COUNT, 1, 1, 1, generator=random[0])
        actual[variance] = (
            denoise(Model(Denoiser(network), DiscreteVP(forward), None), noise, SamplerSettings(num_inference_steps=10), random)
            .std()
            .item()
        )
    # the last step adds no noise, so Var[x_0 | x_1] is missing, as in all samplers
    abar = forward.alphas_cumprod[0].item()
    last = (1 - abar) * std**2 / (abar * std**2 + 1 - abar)
    assert actual["learned_range"] == pytest.approx(math.sqrt(std**2 - last), rel=0.015)
    assert actual["fixed_small"] < 0.9 * actual["learned_range"] and actual["fixed_large"] > 1.05 * actual["learned_range"]
