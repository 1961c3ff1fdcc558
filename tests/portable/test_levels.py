"""The levels of each process in continuous time, against their papers and against diffusers' schedulers."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from scipy.integrate import quad

from tests.support import models
from tinyldm.config.networks import ProcessConfig, SchedulerConfig
from tinyldm.diffusion.objective import diffusion_loss, likelihood_weight, weight
from tinyldm.errors import UserError
from tinyldm.portable.levels import EDM, KINDS, VE, ContinuousVP, Flow, SubVP, grid
from tinyldm.process.continuous import ContinuousProcess
from tinyldm.process.process import same_noise
from tinyldm.process.processes import make_process, process_from, process_of, scheduler_config
from tinyldm.randomness import Draw

F = torch.tensor([0.002, 0.1, 0.5, 0.8, 1.0], dtype=torch.float64)


def test_vp_integrates_beta_and_subvp_squares_what_is_left():
    vp, subvp = ContinuousVP(), SubVP()
    for f in F.tolist():
        integral = quad(lambda t: 0.1 + t * 19.9, 0, f)[0]
        alpha, sigma = (float(part) for part in vp.levels(torch.tensor(f, dtype=torch.float64)))
        assert (alpha, sigma) == pytest.approx((math.exp(-integral / 2), math.sqrt(1 - math.exp(-integral))), rel=1e-9)
        alpha, sigma = (float(part) for part in subvp.levels(torch.tensor(f, dtype=torch.float64)))
        assert (alpha, sigma) == pytest.approx((math.exp(-integral / 2), 1 - math.exp(-integral)), rel=1e-9)


def test_ve_is_geometric_from_the_least_noise_to_the_most():
    _, sigma = VE(sigma_min=0.02, sigma_max=30.0).levels(torch.tensor([0.0, 0.5, 1.0]))
    assert sigma.tolist() == pytest.approx([0.02, math.sqrt(0.02 * 30), 30], rel=1e-5)
    assert VE(conditioned=False).network_time(F).abs().max() == 0


def test_edm_visits_the_levels_of_diffusers_scheduler():
    scheduler = EDMEulerScheduler(sigma_data=0.5, prediction_type="v_prediction")
    scheduler.set_timesteps(18)
    visited = grid(EDM(), 18)
    torch.testing.assert_close(EDM().levels(visited)[1].float(), scheduler.sigmas[:-1])
    torch.testing.assert_close(EDM().network_time(visited).float(), scheduler.timesteps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_visits_the_levels_of_diffusers_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    visited, flow = grid(Flow(shift=shift), 10), Flow(shift=shift)
    torch.testing.assert_close(flow.levels(visited)[1].float(), scheduler.sigmas[:-1])
    torch.testing.assert_close(flow.network_time(visited).float(), scheduler.timesteps)


@pytest.mark.parametrize("kind", [*KINDS, "vp"])
def test_a_time_is_found_again_by_its_ratio(kind):
    process = models.any_process(kind)
    times = process.times(F if kind != "vp" else F * 0.999)
    alpha, sigma = (part.flatten() for part in process.levels(times, torch.float64))
    torch.testing.assert_close(process.time_of(sigma / alpha), times.double(), rtol=1e-9, atol=1e-9)
    assert (sigma / alpha).diff().min() > 0
    low, high = process.ratio_ends()
    assert 0 < low < 0.1 and 10 < high <= 1000


def test_the_prediction_of_edm_is_its_preconditioning():
    """D = c_skip x + c_out F (Karras et al. 2022, table 1) with F = -v, and c_in scales the input."""
    process, random = ContinuousProcess("edm"), torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(5, 1, 2, 2, generator=random, dtype=torch.float64) for _ in range(2))
    _, sigma = process.levels(F, torch.float64)
    x_t, data = x0 + sigma * noise, 0.5
    root = (sigma**2 + data**2).sqrt()
    v = process.target(x0, noise, F)
    torch.testing.assert_close(data**2 / root**2 * x_t - sigma * data / root * v, x0, rtol=1e-6, atol=1e-6)
    inputs, times = process.inputs(x_t, F)
    torch.testing.assert_close(inputs, x_t / root)
    torch.testing.assert_close(times, (sigma.log() / 4).float().flatten())
    torch.testing.assert_close(weight(process, F, None), torch.ones(5))  # their weight 1 / c_out^2 of D is 1 of F


@pytest.mark.parametrize(
    ("kind", "changes", "mean", "deviation"),
    [
        ("edm", {}, 2.4, 2.4),
        ("flow", {"times": "normal"}, 0.0, 2.0),
        ("flow", {"times": "normal", "shift": 3.0}, -2 * math.log(3), 2.0),  # times before the shift are logit-normal
        ("flow", {"times": "normal", "normal": (1.0, 0.5)}, 1.0, 0.5),
    ],
)
def test_log_snr_is_drawn_from_its_normal_distribution(kind, changes, mean, deviation):
    process = ContinuousProcess(kind, **changes)
    times = process.draw_times(20_000, Draw(0, 0, 0))
    log_snr = process.signal_to_noise(times).log()
    assert log_snr.mean() == pytest.approx(mean, abs=0.02) and log_snr.std() == pytest.approx(deviation, rel=0.01)
    if kind == "flow" and not changes.get("normal"):  # the logit-normal distribution of Esser et al. 2024
        assert times.logit().std() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_times_uniform_in_log_snr(kind):
    process = ContinuousProcess(kind, times="log-snr")
    log_snr = process.signal_to_noise(process.draw_times(1000, Draw(0, 0, 0))).log()
    low, high = (-2 * math.log(ratio) for ratio in process.ratio_ends())
    counts = torch.histc(log_snr, 10, high, low)
    assert counts.min() >= 99 and counts.max() <= 101


@pytest.mark.parametrize("kind", ["vp-continuous", "ve", "flow"])
def test_the_likelihood_loss_is_a_divergence(kind):
    """With the denoiser of N(0, r^2) on data of N(0, s^2), it exceeds the best loss by KL(N(0, s^2) || N(0, r^2))."""
    process, s, r = ContinuousProcess(kind, times="log-snr"), 0.7, 1.1
    random = torch.Generator().manual_seed(0)
    times = process.draw_times(400_000, Draw(0, 0, 0))
    x0, noise = s * torch.randn(len(times), 1, 1, 1, generator=random), torch.randn(len(times), 1, 1, 1, generator=random)
    alpha, sigma = process.levels(times)

    def loss(spread: float) -> float:
        def denoiser(inputs, network_times, condition):
            x_t = process.noisy(x0, noise, times)
            expected = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * x_t
            return process.target(expected, (x_t - alpha * expected) / sigma, times)

        return float(diffusion_loss(denoiser, process, x0, noise, times, None, "likelihood").mean())

    divergence = (s**2 / r**2 - 1 - math.log(s**2 / r**2)) / 2
    assert loss(r) - loss(s) == pytest.approx(divergence, rel=0.03)
    assert likelihood_weight(process, times[:5]).shape == (5,)


@pytest.mark.parametrize("kind", [*KINDS, "vp"])
def test_a_process_survives_its_scheduler_as_json(kind):
    process = models.any_process(kind)
    again = process_from(scheduler_config(process))
    assert again.kind == kind and again.prediction == process.prediction and same_noise(process, again)
    others = [models.any_process(other) for other in [*KINDS, "vp"] if other != kind]
    assert not any(same_noise(process, other) for other in others)


def test_predictions_and_schedulers_that_no_process_has():
    with pytest.raises(ValueError, match="a flow cannot predict epsilon"):
        make_process(ProcessConfig("flow", "epsilon"), SchedulerConfig())
    for scheduler in (EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)):
        with pytest.raises(UserError, match="a process that this project does not support"):
            process_of(scheduler)
    assert process_of(FlowMatchEulerDiscreteScheduler(shift=2.0)).law == Flow(shift=2.0)
