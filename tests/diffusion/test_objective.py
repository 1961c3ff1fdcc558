import math

import pytest
import torch
from diffusers.training_utils import compute_snr

from tests.support.models import GaussianDenoiser, process, scheduler
from tinyldm.diffusion.objective import diffusion_loss, held_out_error, weight
from tinyldm.models.denoiser import Denoiser
from tinyldm.randomness import Draw, Rank

KINDS = ("epsilon", "v_prediction", "sample")
T = torch.tensor([0, 10, 500, 999])


def abar(step: int) -> float:
    """The scaled-linear schedule, in plain Python."""
    product = 1.0
    for s in range(step + 1):
        root = math.sqrt(0.0015) + (math.sqrt(0.0195) - math.sqrt(0.0015)) * s / 999
        product *= 1 - root**2
    return product


def test_the_forward_process_is_the_closed_form():
    x0, noise = torch.full((4, 1, 1, 1), 2.0), torch.full((4, 1, 1, 1), -3.0)
    a = torch.tensor([abar(t) for t in T.tolist()]).sqrt().view(4, 1, 1, 1)
    b = (1 - a.square()).sqrt()
    torch.testing.assert_close(process().noisy(x0, noise, T), a * x0 + b * noise, rtol=1e-4, atol=1e-5)
    assert torch.equal(process().noisy(x0, noise, T), scheduler().add_noise(x0, noise, T))
    torch.testing.assert_close(process().signal_to_noise(T).float(), (a**2 / b**2).flatten(), rtol=1e-3, atol=0)
    torch.testing.assert_close(process().signal_to_noise(T).float(), compute_snr(scheduler(), T), rtol=1e-4, atol=0)
    expected = {"epsilon": noise, "v_prediction": a * noise - b * x0, "sample": x0}
    for kind in KINDS:
        torch.testing.assert_close(process(prediction_type=kind).target(x0, noise, T), expected[kind], rtol=1e-4, atol=1e-4)


class FixedError:
    """Predicts x_0 with the error `error`, expressed as epsilon, v or x_0."""

    def __init__(self, kind: str, x0: torch.Tensor, noise: torch.Tensor, error: torch.Tensor):
        self.kind, self.x0, self.noise, self.error = kind, x0, noise, error

    def __call__(self, x_t: torch.Tensor, timesteps: torch.Tensor, class_labels: None) -> "FixedError":
        a = torch.tensor([abar(t) for t in timesteps.tolist()], dtype=torch.float64).sqrt().view(-1, 1, 1, 1)
        b = (1 - a.square()).sqrt()
        guess = self.x0 + self.error
        eps = (a * self.x0 + b * self.noise - a * guess) / b
        self.sample = {"epsilon": eps, "v_prediction": a * eps - b * guess, "sample": guess}[self.kind]
        return self


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 3, 4, 4, generator=random, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_the_error_of_x0_equally_for_each_prediction(kind, example):
    x0, noise, error = example
    forward, gamma = process(prediction_type=kind), 5.0
    loss = diffusion_loss(Denoiser(FixedError(kind, x0, noise, error)), forward, x0, noise, T, gamma)
    snr = torch.tensor([abar(t) / (1 - abar(t)) for t in T.tolist()], dtype=torch.float64)
    expected = snr.clamp(max=gamma) * error.square().mean((1, 2, 3))
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_losses_are_in_units_of_v(kind, example):
    x0, noise, error = example
    forward = process(prediction_type=kind)
    loss = held_out_error(Denoiser(FixedError(kind, x0, noise, error)), forward, x0, noise, T)
    snr = torch.tensor([abar(t) / (1 - abar(t)) for t in T.tolist()], dtype=torch.float64)
    torch.testing.assert_close(loss.double(), (snr + 1) * error.square().mean((1, 2, 3)), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_losses_use_the_clipped_image_if_the_sampler_clips(kind, example):
    """Otherwise, errors of epsilon at high noise would count a million times."""
    _, noise, _ = example
    forward, x0 = process(prediction_type=kind, clip_sample=True), torch.full_like(noise, 0.5)
    worst = held_out_error(Denoiser(FixedError(kind, x0, noise, torch.full_like(noise, 1e3))), forward, x0, noise, T)
    snr = forward.signal_to_noise(T)
    torch.testing.assert_close(worst.double(), (snr + 1).double() * 0.25, rtol=1e-3, atol=1e-3)  # clipped to 1


@pytest.mark.parametrize("kind", KINDS)
def test_without_gamma_the_loss_is_the_plain_squared_error(kind, example):
    x0, noise, _ = example
    forward = process(prediction_type=kind)
    nothing = lambda x_t, t, class_labels: type("Zero", (), {"sample": torch.zeros_like(x_t)})  # noqa: E731
    loss = diffusion_loss(Denoiser(nothing), forward, x0, noise, T, None)
    torch.testing.assert_close(loss, forward.target(x0, noise, T).square().mean((1, 2, 3)), check_dtype=False)
    assert torch.equal(weight(forward, T, None), torch.ones(4))


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])  # the config refuses epsilon
def test_zero_terminal_snr_is_finite(kind, example):
    x0, noise, _ = example
    forward = process(prediction_type=kind, rescale_betas_zero_snr=True)
    assert forward.signal_to_noise(torch.tensor([999])) == 0
    everywhere = torch.arange(1000)
    assert weight(forward, everywhere, 5.0).isfinite().all()
    nothing = lambda x_t, t, class_labels: type("Zero", (), {"sample": torch.zeros_like(x_t)})  # noqa: E731
    assert held_out_error(Denoiser(nothing), forward, x0, noise, torch.full((4,), 999)).isfinite().all()
    # x_t is pure noise there, so v is -x_0, and min-SNR gives the error the weight SNR = 0.
    last = torch.full((4,), 999)
    assert torch.equal(forward.noisy(x0, noise, last), noise)
    torch.testing.assert_close(forward.target(x0, noise, last), -x0 if kind == "v_prediction" else x0)
    assert torch.equal(weight(forward, last, 5.0), torch.zeros(4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimal_denoiser_of_gaussian_data_has_the_known_loss(kind):
    std, forward = 0.6, process(prediction_type=kind)
    random = torch.Generator().manual_seed(0)
    for step in (0, 100, 400, 999):
        x0 = 0.3 + std * torch.randn(50_000, 1, 1, 1, generator=random)
        noise, timesteps = torch.randn(x0.shape, generator=random), torch.full((len(x0),), step)
        loss = (
            diffusion_loss(Denoiser(GaussianDenoiser(forward.scheduler, 0.3, std)), forward, x0, noise, timesteps, None)
            .mean()
            .item()
        )
        a2 = abar(step)
        left = std**2 * (1 - a2) / (a2 * std**2 + 1 - a2)  # Var[x_0 | x_t]
        per_kind = {"sample": 1, "epsilon": a2 / (1 - a2), "v_prediction": 1 / (1 - a2)}
        assert loss == pytest.approx(left * per_kind[kind], rel=0.05)  # eight standard errors


def test_timesteps_are_spread_evenly_over_the_batches_of_all_ranks():
    forward, batch = process(), 20
    for step in range(100):
        drawn = torch.cat([forward.draw_times(batch, Draw(0, step, 0, Rank(rank, 2))) for rank in range(2)])
        assert drawn.dtype == torch.long and drawn.min() >= 0 and drawn.max() < 1000
        gaps = drawn.sort().values.diff()
        assert gaps.min() >= 24 and gaps.max() <= 26  # 40 timesteps, 1000 / 40 apart


def test_each_image_draws_its_timestep_uniformly():
    drawn = torch.stack([process(num_train_timesteps=8).draw_times(2, Draw(0, step, 0, Rank(0, 1))) for step in range(4000)])
    for column in drawn.T:
        assert (torch.bincount(column, minlength=8) - 500).abs().max() < 105  # five standard deviations of 21
