"""The likelihood by the probability-flow ODE, against densities in closed form."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from tests.support import models
from tinyldm.drawing import likelihood
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model
from tinyldm.portable.levels import KINDS

MEANS, SPREADS, SHARES = (
    torch.tensor([-0.6, 0.7]).double(),
    torch.tensor([0.2, 0.3]).double(),
    torch.tensor([0.3, 0.7]).double(),
)


def normal(x_t, alpha, sigma):
    """E[x_0 | x_t] for N(0.5, 0.6^2)."""
    return 0.5 + alpha * 0.36 / (alpha**2 * 0.36 + sigma**2) * (x_t - alpha * 0.5)


def mixture(x_t, alpha, sigma):
    """E[x_0 | x_t] where all 4 values of an image come from the same component."""
    flat, alpha, sigma = x_t.flatten(1)[:, None], alpha.view(-1, 1, 1), sigma.view(-1, 1, 1)  # (B, 1, D)
    means, spreads = MEANS.view(1, 2, 1), SPREADS.view(1, 2, 1)
    variance = (alpha * spreads) ** 2 + sigma**2
    each = means + alpha * spreads**2 / variance * (flat - alpha * means)
    logits = SHARES.log() - 0.5 * ((flat - alpha * means) ** 2 / variance + variance.log()).sum(2)
    return (logits.softmax(1)[..., None] * each).sum(1).view_as(x_t)


def density_of_the_mixture(x: torch.Tensor) -> torch.Tensor:
    components = Independent(Normal(MEANS[:, None].expand(2, 4), SPREADS[:, None].expand(2, 4)), 1)
    return MixtureSameFamily(Categorical(SHARES), components).log_prob(x.flatten(1))


def model(kind, estimate, side=1):
    process = models.any_process(kind)
    return Model(Denoiser(models.ExactNetwork(process, estimate, side=side)), process, None)


@pytest.mark.parametrize("kind", [*KINDS, "vp"])
def test_the_density_of_a_normal_distribution(kind):
    x = torch.tensor([-0.9, 0.1, 0.5, 1.3], dtype=torch.float64).view(-1, 1, 1, 1)
    found, evaluations = likelihood.log_density(model(kind, normal), x, 1e-6, likelihood.exact_divergence)
    low, high = models.any_process(kind).ratio_ends()  # x stands for an image with the least noise
    expected = Normal(0.5, math.hypot(0.6, low)).log_prob(x.flatten())
    end = Normal(0.5 / math.hypot(1, high), math.hypot(0.6, high) / math.hypot(1, high))  # of z, instead of N(0, 1)
    z = end.loc + end.scale * (x.flatten() - 0.5) / math.hypot(0.6, low)
    expected += Normal(0.0, 1.0).log_prob(z) - end.log_prob(z)
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)
    assert 10 < evaluations < 500


@pytest.mark.parametrize("kind", ["vp-continuous", "flow", "edm"])
def test_the_density_of_a_mixture(kind):
    x = torch.tensor([[-0.6, -0.5, -0.8, -0.4], [0.7, 0.4, 1.0, 0.9], [0.1, 0.0, -0.1, 0.2]], dtype=torch.float64).view(
        3, 1, 2, 2
    )
    found, _ = likelihood.log_density(model(kind, mixture, 2), x, 1e-6, likelihood.exact_divergence)
    torch.testing.assert_close(found, density_of_the_mixture(x), atol=1e-2, rtol=0)


def test_hutchinsons_estimator_has_the_trace_as_its_mean():
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    v = (z.flatten(1) @ matrix.T).view_as(z)
    torch.testing.assert_close(likelihood.exact_divergence(v, z), matrix.trace().expand(6))
    probes = 2.0 * torch.randint(0, 2, (2000, 6, 1, 2, 2), generator=torch.Generator().manual_seed(2)).double() - 1
    found = likelihood.estimated_divergence(probes)(v, z)
    torch.testing.assert_close(found, matrix.trace().expand(6), atol=0.2, rtol=0)


@pytest.mark.parametrize("kind", ["ve", "flow", "vp"])
def test_an_image_becomes_noise_and_an_image_again(kind):
    made = model(kind, mixture, 2)
    labels = (torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.7).long()
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (MEANS[labels][:, None] + SPREADS[labels][:, None] * noise).view(200, 1, 2, 2)
    z = likelihood.encode(made, x, 1e-6)
    assert z.std() == pytest.approx(1, abs=0.05) and abs(z.mean()) < 0.1
    torch.testing.assert_close(likelihood.decode(made, z, 1e-6), x, atol=5e-3, rtol=0)


def test_bits_of_a_uniform_distribution_are_8():
    assert likelihood.bits_per_dimension(torch.tensor([-64 * math.log(2.0)]), 64).item() == pytest.approx(
        math.log2(255), abs=1e-6
    )


def test_a_tolerance_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(likelihood, "MOST_EVALUATIONS", 50)
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    with pytest.raises(UserError, match="needs over 50 evaluations at tolerance 1e-12: use a larger one"):
        likelihood.log_density(model("flow", normal), x, 1e-12, likelihood.exact_divergence)
