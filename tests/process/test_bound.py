"""The bound compared with closed forms, with the steps of diffusers' DDPMScheduler, and on data with known entropy."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from tinyldm.process.bound import Normal, divergence, log_likelihood, posterior, prior_bits, reverse_step, step_bits
from tinyldm.process.discrete_vp import DiscreteVP

T = 50
KINDS = [("linear", "epsilon"), ("squaredcos_cap_v2", "v_prediction"), ("scaled_linear", "sample")]


def scheduler(beta_schedule="linear", prediction_type="epsilon", variance_type="fixed_small", steps=T, **more) -> DDPMScheduler:
    ends = {"beta_start": 1e-4 * 1000 / steps, "beta_end": 0.02 * 1000 / steps} if beta_schedule != "squaredcos_cap_v2" else {}
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        variance_type=variance_type,
        clip_sample=False,
        **ends,
        **more,
    )


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_posterior_is_bayes_rule():
    """The product of the normals q(x_t | x_{t-1}) and q(x_{t-1} | x_0), in natural parameters."""
    schedule = scheduler()
    x0, x_t, t = normal(4, 1, 2, 2), normal(4, 1, 2, 2, seed=1), torch.tensor([1, 7, 20, T - 1])
    betas, abar = schedule.betas.double()[t].view(-1, 1, 1, 1), schedule.alphas_cumprod.double()[t - 1].view(-1, 1, 1, 1)
    precision = (1 - betas) / betas + 1 / (1 - abar)
    mean = ((1 - betas).sqrt() * x_t / betas + abar.sqrt() * x0 / (1 - abar)) / precision
    actual = posterior(DiscreteVP(schedule), x0, x_t, t)
    assert torch.allclose(actual.mean, mean.float(), atol=1e-5)
    assert torch.allclose(actual.log_variance, -precision.log().float(), atol=1e-4)


@pytest.mark.parametrize(("beta_schedule", "prediction_type"), KINDS)
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_the_reverse_step_is_the_one_that_diffusers_samples(beta_schedule, prediction_type, variance_type, monkeypatch):
    schedule = scheduler(beta_schedule, prediction_type, variance_type)
    channels = 4 if variance_type == "learned_range" else 2
    for t in (1, 2, 25, T - 1):
        predicted, x_t = normal(3, channels, 2, 2, seed=t), normal(3, 2, 2, 2, seed=100 + t)
        ours = reverse_step(DiscreteVP(schedule), predicted, x_t, torch.full((3,), t))
        drawn = []
        for noise in (0.0, 1.0):  # the mean, and one standard deviation above it
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor",
                lambda shape, noise=noise, **_: torch.full(tuple(shape), noise),
            )
            drawn.append(schedule.step(predicted, t, x_t).prev_sample)
        assert torch.allclose(ours.mean, drawn[0], atol=1e-5)
        assert torch.allclose((0.5 * ours.log_variance).exp().expand_as(x_t), drawn[1] - drawn[0], atol=1e-5)


def test_divergence_equals_torchs():
    from torch.distributions import Normal as TorchNormal
    from torch.distributions import kl_divergence

    a, b = (Normal(normal(2, 3, 4, 4, seed=s), normal(2, 3, 4, 4, seed=s + 9)) for s in (0, 1))
    theirs = kl_divergence(*(TorchNormal(part.mean, (0.5 * part.log_variance).exp()) for part in (a, b)))
    assert torch.allclose(divergence(a, b), theirs, atol=1e-5)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (0.3, -9.0), (-1.5, -3.0), (2.0, -12.0), (0.013, -14.0)])
def test_the_bins_of_a_pixel_sum_to_one(mean, log_variance):
    values = (torch.arange(256.0) / 127.5 - 1).view(256, 1, 1, 1)
    model = Normal(torch.full_like(values, mean), torch.full_like(values, log_variance))
    log_probability = log_likelihood(values, model).double()
    assert torch.isfinite(log_probability).all()
    assert log_probability.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_far_from_the_mean_the_likelihood_is_that_of_the_density():
    """Ten standard deviations away, the difference of the two probabilities is 0 in fp32, but its logarithm is finite."""
    x0, model = torch.zeros(1, 1, 1, 1), Normal(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), -6.0))
    from torch.distributions import Normal as TorchNormal

    grid = torch.linspace(-1 / 255, 1 / 255, 2001, dtype=torch.float64)
    density = TorchNormal(torch.tensor(0.5, dtype=torch.float64), math.exp(-3)).log_prob(grid)
    expected = torch.logsumexp(density, 0) + math.log(2 / 255 / 2001)
    assert log_likelihood(x0, model).item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_prior_term_by_hand():
    schedule = scheduler()
    abar = schedule.alphas_cumprod[-1].item()
    x0 = torch.full((1, 1, 2, 2), 0.8)
    nats = 0.5 * ((1 - abar) + abar * 0.64 - 1 - math.log(1 - abar))
    assert prior_bits(DiscreteVP(schedule), x0).item() == pytest.approx(nats / math.log(2), rel=1e-3)


@pytest.mark.parametrize(("variance_type", "limit"), [("fixed_small", 0.9), ("fixed_large", 0.25)])
def test_with_the_optimal_denoiser_the_bound_meets_the_entropy_of_normal_data(variance_type, limit):
    """Pixels drawn from N(0, s^2) and rounded to 256 values: no model needs fewer bits than their entropy.

    With more steps, the bound of the optimal denoiser approaches it. The large variance, which is right for broad data, is
    nearer."""
    deviation, gaps = 0.25, []
    images = ((normal(64, 1, 8, 8) * deviation * 127.5).round() / 127.5).clamp(-1, 1)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * deviation**2) - math.log2(2 / 255)
    entropy += 0.5 * (images.var().item() / deviation**2 - 1) / math.log(2)  # bits of this sample under the true density
    for steps in (50, 400):
        schedule = scheduler("squaredcos_cap_v2", "sample", variance_type, steps)
        bits = prior_bits(DiscreteVP(schedule), images).mean().item()
        for t in range(steps):
            timesteps = torch.full((64,), t)
            x_t = schedule.add_noise(images, normal(64, 1, 8, 8, seed=t + 1), timesteps)
            abar = schedule.alphas_cumprod[t]
            expected = abar.sqrt() * deviation**2 / (abar * deviation**2 + 1 - abar) * x_t  # E[x_0 | x_t]
            bits += step_bits(DiscreteVP(schedule), expected, images, x_t, timesteps).mean().item()
        gaps.append(bits - entropy)
    assert -0.02 < gaps[1] < gaps[0]
    assert gaps[1] < limit
