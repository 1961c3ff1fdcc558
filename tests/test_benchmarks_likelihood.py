"""benchmarks/likelihood.py: its reference has the density of a mixture in closed form, as the product has."""

import math

import pytest
import torch

from benchmarks import likelihood as benchmark
from tests.drawing.test_likelihood import density_of_the_mixture, mixture, model, normal
from tests.support import models
from tinyldm.drawing.likelihood import bits_per_dimension
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model

pytestmark = pytest.mark.slow
X = torch.tensor([[-0.6, -0.5, -0.8, -0.4], [0.7, 0.4, 1.0, 0.9]], dtype=torch.float64).view(2, 1, 2, 2)


@pytest.mark.parametrize("kind", ["vp", "flow", "ve"])
def test_the_reference_finds_the_density_of_a_mixture(kind):
    torch.testing.assert_close(
        benchmark.reference(model(kind, mixture, 2), X, 80), density_of_the_mixture(X), atol=0.05, rtol=0
    )


def test_a_model_with_labels_is_measured_without_them():
    torch.manual_seed(0)
    labelled = Model(Denoiser(models.unet(8, 1, labelled=True), models.labels()), models.any_process("flow"), None)
    found = benchmark.compare(labelled, torch.rand(2, 1, 8, 8, dtype=torch.float64), 4)
    assert all(map(math.isfinite, found.values()))


def test_both_ways_are_compared():
    found = benchmark.compare(model("flow", mixture, 2), X, 80)
    expected = float(bits_per_dimension(density_of_the_mixture(X), 4).mean())
    assert found["exact"] == pytest.approx(expected, abs=0.01) and found["reference"] == pytest.approx(expected, abs=0.01)
    assert found["largest_difference"] < 0.01 and 10 < found["evaluations"] < 500


def test_the_bound_of_an_exact_network_lies_just_above_the_ode():
    pixels = torch.randn(512, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.5
    x0 = ((pixels + 1) * 127.5).round() / 127.5 - 1
    x0 = x0[x0.abs() < 0.99].view(-1, 1, 1, 1)  # the outermost bins are wider
    found = benchmark.beside_the_bound(model("vp", normal), x0)
    exact = float(bits_per_dimension(torch.distributions.Normal(0.5, 0.6).log_prob(x0.flatten()), 1).mean())
    assert exact < found["ode"] < exact + 0.3
    for (gap, error), most in zip(found["bounds_minus_ode"].values(), (0.5, 0.1), strict=True):
        assert -2 * error < gap < most  # beta_t suits normal data, the posterior's variance does not
