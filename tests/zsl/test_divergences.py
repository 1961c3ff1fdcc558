import math

import numpy as np
import pytest
import torch

from benchmarks.zero_shot_plain import corrected_creativity, faithful_creativity, sharma_mittal_limits
from zsl import divergences, losses
from zsl.config import DIVERGENCES, parse_method

ORDERS = torch.tensor([0.35, 0.62], dtype=torch.float64)
SMOOTH = [name for name in DIVERGENCES if name != "k+1"]


def logits(rows: int = 7, count: int = 6, spread: float = 1.5) -> torch.Tensor:
    return spread * torch.randn(rows, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("faithful", [False, True])
def test_the_loss_equals_the_one_computed_sample_by_sample(divergence, faithful):
    method, plain = parse_method(f"cizsl-{divergence}"), faithful_creativity if faithful else corrected_creativity
    if faithful and divergence == "renyi":
        pytest.skip("NaN: see test_the_published_renyi_underflows")
    z = logits().requires_grad_(True)
    orders = ORDERS.clone().requires_grad_(True)
    actual = losses.creativity(method, z, orders, 0.7, faithful)
    actual.backward()
    z2, orders2 = z.detach().clone().requires_grad_(True), ORDERS.clone().requires_grad_(True)
    expected = plain(method, z2, orders2, 0.7)
    expected.backward()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(z.grad, z2.grad, rtol=1e-7, atol=1e-12)
    if orders2.grad is not None:
        torch.testing.assert_close(orders.grad, orders2.grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("divergence", SMOOTH)
def test_a_corrected_divergence_is_0_only_for_uniform_and_its_gradient_leads_there(divergence):
    z = logits().requires_grad_(True)
    values = divergences.corrected(divergence, z, ORDERS)
    assert (values > 1e-3).all()
    torch.testing.assert_close(divergences.corrected(divergence, z.detach() * 0 + 3, ORDERS), torch.zeros(7).double())
    values.sum().backward()
    nearer = divergences.corrected("kl", z.detach() - 0.05 * z.grad, ORDERS)
    assert (nearer < divergences.corrected("kl", z.detach(), ORDERS)).all()


def test_limits_of_sharma_mittal():
    z, almost = logits(1), 1 - 1e-7
    p = torch.softmax(z, 1)[0].numpy()
    limits = sharma_mittal_limits(p)
    half = divergences.corrected("sharma-mittal", z, torch.tensor([0.5, almost], dtype=torch.float64))
    assert half.item() == pytest.approx(limits["renyi half"], rel=1e-5)
    one = divergences.corrected("sharma-mittal", z, torch.tensor([1 - 1e-6, almost], dtype=torch.float64))
    assert one.item() == pytest.approx(limits["kl"], rel=1e-4)
    equal = torch.tensor([0.4, 0.4], dtype=torch.float64)
    tsallis, sharma = (divergences.corrected(name, z, equal) for name in ("tsallis", "sharma-mittal"))
    torch.testing.assert_close(tsallis, sharma)
    assert divergences.corrected("bhattacharyya", z, equal).item() == pytest.approx(limits["renyi half"] / 2, rel=1e-9)


@pytest.mark.parametrize("divergence", SMOOTH)
def test_a_corrected_divergence_is_finite_if_the_critic_is_certain(divergence):
    z = torch.zeros(2, 500)
    z[:, 3] = 200.0
    z.requires_grad_(True)
    value = divergences.corrected(divergence, z, ORDERS.float()).mean()
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


@pytest.mark.parametrize(("divergence", "towards"), [("sharma-mittal", 1), ("kl", 1), ("bhattacharyya", -1), ("tsallis", -1)])
def test_the_direction_in_which_the_published_losses_push(divergence, towards):
    """Compare the mean entropy after a gradient step: towards uniform, or away from it (the defect)."""
    z = logits(rows=60).requires_grad_(True)
    divergences.faithful(divergence, z, ORDERS).backward()
    after = z.detach() - 1e-3 * z.grad / z.grad.abs().max()

    def entropy(values):
        return torch.distributions.Categorical(logits=values).entropy().mean().item()

    assert np.sign(entropy(after) - entropy(z.detach())) == towards


def test_the_published_losses_are_scaled_by_their_batch():
    """The minimum becomes 0 and the maximum 1. If all rows are equal, the result is NaN."""
    one = divergences.faithful("sharma-mittal", logits(rows=2), ORDERS)
    assert one.item() == pytest.approx(0.5)
    assert divergences.faithful("sharma-mittal", logits(rows=1).repeat(3, 1), ORDERS).isnan()


def test_the_published_renyi_underflows():
    """Its exponent (1 - a) / 1e-4 makes all rows equal."""
    assert divergences.faithful("renyi", logits(count=150, spread=2).float(), ORDERS.float()).isnan()


def test_the_published_kl_has_an_extra_k_and_its_constant():
    z, count = logits(), 6
    kl = divergences.corrected("kl", z, ORDERS).mean()
    actual = divergences.faithful("kl", z, ORDERS)
    assert actual.item() == pytest.approx((kl.item() + math.log(count)) / count, rel=1e-9)


def test_the_published_k_plus_1_omits_its_weight():
    method = parse_method("cizsl-k+1")
    assert losses.creativity(method, logits(), ORDERS, 0.1, True) == losses.creativity(method, logits(), ORDERS, 1.0, True)
    assert losses.creativity(method, logits(), ORDERS, 0.1, False) < losses.creativity(method, logits(), ORDERS, 1.0, False)
