"""The algebra of every process and prediction. A new process only defines its two levels."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from tests.support import models
from tinyldm.diffusion.objective import diffusion_loss, held_out_error, weight
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser
from tinyldm.portable.levels import KINDS
from tinyldm.process.continuous import ContinuousProcess
from tinyldm.process.discrete_vp import discrete
from tinyldm.process.process import PREDICTIONS
from tinyldm.process.processes import process_of
from tinyldm.randomness import Draw


def processes(prediction):
    """Every process that can have this prediction."""
    continuous = [ContinuousProcess(kind, prediction) for kind in KINDS if (kind, prediction) != ("flow", "epsilon")]
    return continuous if prediction == "flow" else [*continuous, models.process(prediction_type=prediction)]


@pytest.fixture
def example():
    random = torch.Generator().manual_seed(0)
    fractions = torch.tensor([0.1, 0.35, 0.7, 0.95])
    return fractions, *(torch.randn(4, 3, 4, 4, generator=random, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_to_x0_inverts_the_forward_process(prediction, example):
    fractions, x0, noise, _ = example
    for process in processes(prediction):
        t = process.times(fractions)
        back = process.to_x0(process.noisy(x0, noise, t), process.target(x0, noise, t), t)
        torch.testing.assert_close(back, x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0_equally_in_every_process(prediction, example):
    """A loss of any prediction is min(SNR, gamma) times the squared error of x_0."""
    fractions, x0, noise, error = example
    for process in processes(prediction):
        t = process.times(fractions)
        off = process.target(x0, noise, t) + error
        loss = weight(process, t, 5.0) * error.square().mean((1, 2, 3))
        wrong = process.to_x0(process.noisy(x0, noise, t), off, t) - process.to_x0(
            process.noisy(x0, noise, t), process.target(x0, noise, t), t
        )
        wanted = process.signal_to_noise(t).clamp(max=5.0) * wrong.square().mean((1, 2, 3))
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-9, check_dtype=False)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_loss_in_any_process(prediction, example):
    fractions, x0, noise, _ = example
    for process in processes(prediction):
        t = process.times(fractions)
        network = lambda x_t, times, class_labels: type("Out", (), {"sample": process.target(x0, noise, t)})  # noqa: B023, E731
        assert diffusion_loss(Denoiser(network), process, x0, noise, t, 5.0).max() < 1e-12
        assert held_out_error(Denoiser(network), process, x0, noise, t).max() < 1e-3


def test_flow_is_the_straight_path_with_its_velocity(example):
    t, x0, noise, _ = example
    flow = ContinuousProcess("flow")
    torch.testing.assert_close(flow.noisy(x0, noise, t), x0 + t.view(-1, 1, 1, 1) * (noise - x0))
    torch.testing.assert_close(flow.target(x0, noise, t), noise - x0)
    assert flow.draw_times(1000, Draw(0, 0, 0)).mean() == pytest.approx(0.5, abs=0.001)


def test_v_has_the_variance_of_the_data_in_every_process(example):
    fractions = example[0]
    for process in processes("v_prediction"):
        alpha, sigma = process.levels(process.times(fractions), torch.float64)
        a, b = process.prediction_of(alpha, sigma)
        torch.testing.assert_close(process.sigma_data**2 * a.square() + b.square(), torch.ones_like(a))


@pytest.mark.parametrize("kind", KINDS)
def test_x0_and_noise_are_both_found_from_a_prediction(kind, example):
    fractions, x0, noise, _ = example
    process = ContinuousProcess(kind)
    for t in process.times(fractions.double()):
        times = t.expand(4)
        found = process.to_x0_and_noise(process.noisy(x0, noise, times), process.target(x0, noise, times), t)
        torch.testing.assert_close(found[0], x0, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found[1], noise, rtol=1e-3, atol=1e-3)


def test_the_bound_is_refused_without_a_discrete_process():
    with pytest.raises(UserError, match="needs the discrete process of DDPM, not flow"):
        discrete(ContinuousProcess("flow"))
    with pytest.raises(UserError, match="a process that this project does not support"):
        process_of(EulerDiscreteScheduler(prediction_type="flow_prediction"))
