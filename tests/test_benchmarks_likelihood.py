"""benchmarks/likelihood.py: its reference has the density of a mixture in closed form, as the product has."""

import pytest
import torch

from benchmarks import likelihood as benchmark
from tests.drawing.test_likelihood import density_of_the_mixture, mixture, model
from tinyldm.drawing.likelihood import bits_per_dimension

pytestmark = pytest.mark.slow
X = torch.tensor([[-0.6, -0.5, -0.8, -0.4], [0.7, 0.4, 1.0, 0.9]], dtype=torch.float64).view(2, 1, 2, 2)


@pytest.mark.parametrize("kind", ["vp", "flow", "ve"])
def test_the_reference_finds_the_density_of_a_mixture(kind):
    torch.testing.assert_close(
        benchmark.reference(model(kind, mixture, 2), X, 80), density_of_the_mixture(X), atol=0.05, rtol=0
    )


def test_both_ways_are_compared():
    found = benchmark.compare(model("flow", mixture, 2), X, 80)
    expected = float(bits_per_dimension(density_of_the_mixture(X), 4).mean())
    assert found["exact"] == pytest.approx(expected, abs=0.01) and found["reference"] == pytest.approx(expected, abs=0.01)
    assert found["largest_difference"] < 0.01 and 10 < found["evaluations"] < 500
