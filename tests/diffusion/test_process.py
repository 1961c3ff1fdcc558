"""The algebra of every process and prediction. A new process only defines its two levels."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.support import models
from tinyldm.config.schema import SamplerSettings
from tinyldm.diffusion.denoiser import Denoiser
from tinyldm.diffusion.model import Model
from tinyldm.diffusion.objective import diffusion_loss, held_out_error, weight
from tinyldm.diffusion.process import PREDICTIONS, Process, discrete, process_of
from tinyldm.diffusion.sampling import denoise
from tinyldm.errors import UserError
from tinyldm.randomness import Draw


class Continuous(Process):
    """A process in continuous time [0, 1). A subclass defines the levels alpha and sigma."""

    samplers = {"euler": FlowMatchEulerDiscreteScheduler}  # noqa: RUF012
    deterministic = "euler"

    def __init__(self, prediction="flow"):
        self.prediction = prediction

    def times(self, fractions):
        return fractions

    def fraction(self, times):
        return times

    def network_times(self, times):
        return 1000 * times

    def sampler(self, name=None):
        return self.samplers[name or self.deterministic]()

    def describe(self):
        return type(self).__name__


class Flow(Continuous):
    """Rectified flow: the straight path from image to noise."""

    def levels(self, times, dtype=torch.float32):
        t = times.to(dtype).view(-1, 1, 1, 1)
        return 1 - t, t


class VarianceExploding(Continuous):
    """Song et al. 2021: the image stays, the noise grows from 0.01 to 50."""

    def levels(self, times, dtype=torch.float32):
        t = times.to(dtype).view(-1, 1, 1, 1)
        return torch.ones_like(t), 0.01 * 5000**t


def processes(prediction):
    kinds = [Flow(prediction), VarianceExploding(prediction)]
    return kinds if prediction == "flow" else [*kinds, models.process(prediction_type=prediction)]


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
    there = Flow().noisy(x0, noise, t)
    torch.testing.assert_close(there, x0 + t.view(-1, 1, 1, 1) * (noise - x0), check_dtype=False)
    torch.testing.assert_close(Flow().target(x0, noise, t), noise - x0)
    assert Flow().draw_times(1000, Draw(0, 0, 0)).mean() == pytest.approx(0.5, abs=0.001)


def test_our_samplers_loop_reverses_a_flow():
    """N(0.5, 0.6^2) has a closed form; Euler's error is proportional to 1 / steps."""
    mean, std = 0.5, 0.6

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))  # has the device and dtype
            self.config = SimpleNamespace()

        def forward(self, x, time, class_labels=None):
            t = torch.as_tensor(time).double().view(-1, 1, 1, 1) / 1000
            expected = mean + (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2) * (x.double() - (1 - t) * mean)
            return type("Out", (), {"sample": ((x - expected) / t).float()})  # eps - x_0, with x_t = x_0 + t (eps - x_0)

    z = torch.tensor([-1.0, 0.0, 2.0]).view(-1, 1, 1, 1)
    model = Model(Denoiser(Exact()), Flow(), None)
    errors = [
        (denoise(model, z, SamplerSettings(num_inference_steps=steps)) - (mean + std * z)).abs().max().item()
        for steps in (25, 100, 400)
    ]
    assert errors[2] < 0.01 and all(one > 2.5 * two for one, two in itertools.pairwise(errors))


def test_the_bound_is_refused_without_a_discrete_process(example):
    with pytest.raises(UserError, match="needs the discrete process of DDPM, not Flow"):
        discrete(Flow())
    with pytest.raises(UserError, match="a process that this project does not support"):
        process_of(FlowMatchEulerDiscreteScheduler())
