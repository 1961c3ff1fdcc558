"""Samplers in continuous time, with exact denoisers: orders of convergence, distributions, and diffusers' own schedulers."""

import itertools
import math

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchHeunDiscreteScheduler

from tests.support import models
from tinyldm.config.schema import SamplerSettings
from tinyldm.errors import UserError
from tinyldm.portable.levels import KINDS
from tinyldm.process.continuous import ContinuousProcess
from tinyldm.process.solvers import IMAGE, LANGEVIN_STEPS, SOLVERS, Level, Path, langevin_size, make_solver

MEAN, STD = 0.5, 0.6
ALL = [*KINDS, "vp"]


def normal(x, level):
    """x_0 and eps as a network without error estimates them for data of N(MEAN, STD^2)."""
    x0 = MEAN + level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2) * (x - level.alpha * MEAN)
    return x0, (x - level.alpha * x0) / level.sigma


def two_points(x, level):
    """The same for data of -1 and 1, blurred by 0.1."""
    variance = level.alpha**2 * 0.01 + level.sigma**2
    sign = torch.tanh(level.alpha * x / variance)
    x0 = sign + level.alpha * 0.01 / variance * (x - level.alpha * sign)
    return x0, (x - level.alpha * x0) / level.sigma


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def smooth_path(process, count):
    """`count` steps, equal in log SNR. It ends before the image, where the exact solution is known."""
    low, high = process.ratio_ends()
    path = Path(process, process, 2)
    ratios = torch.linspace(math.log(min(0.9 * high, 20)), math.log(max(1.1 * low, 0.05)), count + 1).exp()
    path.levels = [path.at(ratio) for ratio in ratios.tolist()]
    return path


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpm-solver++", 2), ("unipc", 3)])
def test_the_error_falls_with_the_order_of_the_method(name, order, kind):
    """Along the flow (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2) does not change, for N(m, s^2)."""
    process, z, errors = models.any_process(kind), torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64).view(-1, 1, 1, 1), []
    for count in (16, 32, 64):
        path = smooth_path(process, count)
        first, last = (level.alpha * MEAN + math.hypot(level.alpha * STD, level.sigma) * z for level in path.levels[::count])
        x = SOLVERS[name](normal, path, first, lambda: None, SamplerSettings())
        errors.append(float((x - last).abs().max()))
    found = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert found[-1] == pytest.approx(order, abs=0.12), (errors, found)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("name", "count", "settings"),
    [
        ("ddim", 300, {"eta": 0.5}),
        ("ddpm", 300, {}),
        ("dpm-solver++", 60, {}),
        ("euler", 300, {}),
        ("heun", 60, {"churn": 20.0}),
        ("langevin", 1000, {"process": "ve"}),
        ("predictor-corrector", 300, {}),
        ("unipc", 60, {}),
    ],
)
def test_every_sampler_draws_the_distribution(name, count, settings, kind):
    solver = make_solver(models.any_process(kind), SamplerSettings(scheduler=name, num_inference_steps=count, **settings))
    random, calls = torch.Generator().manual_seed(1), []

    def predict(x, level):
        calls.append(level)
        return normal(x, level)

    x = solver(
        predict, solver.start(randn(5000, 1, 1, 1)), lambda: torch.randn(5000, 1, 1, 1, generator=random, dtype=torch.float64)
    )
    assert x.mean() == pytest.approx(MEAN, abs=0.04)
    assert x.std() == pytest.approx(STD, rel=0.05)
    assert len(calls) == solver.evaluations


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "unipc"])
def test_the_samplers_are_those_of_diffusers_for_vp(name):
    process, noise = models.process(), randn(4, 1, 3, 3)
    scheduler, x = process.sampler(name), noise
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps:
        alpha, sigma = (float(part) for part in process.levels(t.reshape(1), torch.float64))
        x0, eps = two_points(x, Level(alpha, sigma))
        x = scheduler.step(alpha * eps - sigma * x0, t, x).prev_sample
    ours = make_solver(process, SamplerSettings(scheduler=name, num_inference_steps=10, process="vp"))
    torch.testing.assert_close(ours(two_points, ours.start(noise), lambda: None), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "theirs"), [("euler", EDMEulerScheduler), ("dpm-solver++", EDMDPMSolverMultistepScheduler)])
def test_the_samplers_are_those_of_diffusers_for_edm(name, theirs):
    process, noise, scheduler = ContinuousProcess("edm"), randn(4, 1, 3, 3), theirs(prediction_type="v_prediction")
    scheduler.set_timesteps(12)
    x = noise * scheduler.init_noise_sigma
    for number, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[number])
        scheduler.scale_model_input(x, t)
        x0, eps = two_points(x, Level(1.0, sigma))
        v = (0.5 * eps - sigma * x0 / 0.5) / math.hypot(0.5, sigma)
        x = scheduler.step(v.float(), t, x.float()).prev_sample.double()
    ours = make_solver(process, SamplerSettings(scheduler=name, num_inference_steps=12))
    torch.testing.assert_close(ours(two_points, ours.start(noise), lambda: None), x, rtol=1e-3, atol=1e-3)


def test_heuns_method_is_that_of_diffusers_for_flow():
    noise, scheduler = randn(4, 1, 3, 3), FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    x = noise.float()
    for t in scheduler.timesteps:
        x0, eps = two_points(x.double(), Level(1 - float(t) / 1000, float(t) / 1000))
        x = scheduler.step((eps - x0).float(), t, x).prev_sample
    ours = make_solver(ContinuousProcess("flow"), SamplerSettings(scheduler="heun"))
    times = [*scheduler.timesteps[::2].tolist()]
    ours.path.levels = [*(Level(1 - t / 1000, t / 1000) for t in times), IMAGE]
    torch.testing.assert_close(ours(two_points, ours.start(noise), lambda: None).float(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("other", ALL)
def test_a_network_is_sampled_as_one_of_another_process(kind, other):
    """What is visited are the levels of the other process. At each of them the network sees x_t at its own scale."""
    process, noise = models.any_process(kind), randn(3, 1, 2, 2)
    solver = make_solver(process, SamplerSettings(num_inference_steps=12, process=other))
    seen = []

    def network(x, level):  # knows only its own process
        alpha, sigma = (float(part) for part in process.levels(torch.tensor([level.time], dtype=torch.float64), torch.float64))
        seen.append(level)
        return two_points(level.scale * x, Level(alpha, sigma))

    low, high = process.ratio_ends()
    ends = models.any_process(other).ratio_ends()
    low, high = max(low, ends[0]), min(high, ends[1])
    solver.path.levels = [level for level in solver.path.levels if low * 1.001 < level.ratio < high * 0.999] + [IMAGE]
    assert len(solver.path.levels) > 4
    torch.testing.assert_close(
        solver(network, solver.start(noise), lambda: None),
        solver(two_points, solver.start(noise), lambda: None),
        rtol=1e-6,
        atol=1e-6,
    )
    assert all(level.alpha * level.scale <= 1 + 1e-9 for level in seen) or kind in ("ve", "edm")


def test_eulers_method_is_the_same_in_every_process():
    """On the same signal-to-noise ratios, since x_s = alpha x_0 + sigma eps for each."""
    drawn = []
    for kind in ALL:
        path = Path(models.any_process("flow"), models.any_process(kind), 2)
        path.levels = [*(path.at(ratio) for ratio in (9.0, 3.0, 1.0, 0.3, 0.1)), IMAGE]
        first = path.levels[0]
        start = math.hypot(first.alpha, first.sigma) * randn(3, 1, 2, 2)
        drawn.append(SOLVERS["euler"](two_points, path, start, lambda: None, SamplerSettings()))
    assert all(torch.allclose(drawn[0], x, rtol=1e-9) for x in drawn[1:])


def test_levels_beyond_those_of_the_network_are_not_visited():
    process = models.process()
    low, high = process.ratio_ends()
    for other in KINDS:
        levels = Path(process, ContinuousProcess(other), 50).levels[:-1]
        assert all(low * 0.999999 <= level.ratio <= high * 1.000001 for level in levels)


def test_the_step_of_langevin_keeps_the_spread():
    """At one level, the variance of a normal distribution with the noise of the last level becomes that of this one."""
    span, levels = 100.0, 300
    size, growth = langevin_size(span, levels), span ** (1 / 299)
    variance = growth**2
    for _ in range(LANGEVIN_STEPS):
        variance = (1 - size) ** 2 * variance + 2 * size
    assert 1 < variance < 1.04
    assert size < langevin_size(span, 100) < langevin_size(span, 20)  # fewer levels need larger steps


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheduler": "langevin"}, "langevin does not know the process flow: add --process ve"),
        ({"scheduler": "euler", "churn": 5.0}, "churn only applies to heun, not euler"),
    ],
)
def test_settings_that_a_sampler_does_not_have(settings, words):
    with pytest.raises(UserError, match=words):
        make_solver(ContinuousProcess("flow"), SamplerSettings(**settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dpm-solver++", "unipc"])
def test_levels_beyond_those_of_the_network_are_visited_once(kind, name):
    """The last levels of edm and others have less noise than a model in timesteps knows."""
    settings = SamplerSettings(scheduler=name, process=kind, num_inference_steps=20)
    solver = make_solver(models.any_process("vp"), settings)
    ratios = [level.sigma / level.alpha for level in solver.path.levels[:-1]]
    assert ratios == sorted(set(ratios), reverse=True)
    assert torch.isfinite(solver(lambda x, level: normal(x, level), randn(2, 1, 4, 4), lambda: randn(2, 1, 4, 4))).all()
