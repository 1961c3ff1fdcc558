"""Guidance by a classifier against closed forms, with the exact classifier of a mixture of normals."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from tests.support import models
from tests.support.models import GaussianDenoiser, MixtureClassifier, MixtureDenoiser
from tinyldm.config.schema import SamplerSettings
from tinyldm.data.batch import UNCONDITIONAL
from tinyldm.drawing.sampling import denoise
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.guidance import ClassifierGuidance
from tinyldm.models.model import Model
from tinyldm.process.discrete_vp import DiscreteVP

COUNT = 4000
KINDS = ["epsilon", "v_prediction", "sample"]
TWO = (
    torch.tensor([0.7, 0.3]),
    torch.tensor([[-0.6, 0.2], [0.5, -0.1]]),
    torch.tensor([[[0.10, 0.05], [0.05, 0.20]], [[0.30, -0.10], [-0.10, 0.08]]]),
)
SECOND = tuple(part[1:] for part in TWO)


def mixture(**changes) -> Model:
    """A denoiser of TWO and its classifier, both without error."""
    forward = models.scheduler(**changes)
    denoiser = Denoiser(MixtureDenoiser(forward, *TWO))
    return Model(denoiser, DiscreteVP(forward), None, classifier=MixtureClassifier(forward, *TWO))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0, 100, 500, 999])
def test_a_scale_of_1_is_bayes_rule(kind, t):
    """The guided denoiser of the mixture is the denoiser of the component."""
    model = mixture(prediction_type=kind)
    x_t, time = torch.randn(200, 2, 1, 1, generator=torch.Generator().manual_seed(t)), torch.tensor(t)
    guided = model.guided(SamplerSettings(labels="component=1"))(x_t, time, UNCONDITIONAL)
    alone = Denoiser(MixtureDenoiser(model.process.scheduler, *SECOND))(x_t, time)
    torch.testing.assert_close(guided, alone, rtol=1e-4, atol=1e-4)
    assert (model.denoiser(x_t, time) - guided).abs().max() > 0.005


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("ddim", 500), ("ddpm", 500), ("dpm-solver++", 100)])
def test_samples_are_those_of_the_chosen_component(name, steps):
    random = [torch.Generator().manual_seed(0)]  # one for all: one generator per image is slow
    noise = torch.randn(COUNT, 2, 1, 1, generator=random[0])
    x = denoise(mixture(), noise, SamplerSettings(name, steps, labels="component=1"), random).flatten(1).double()
    _, (mean,), (covariance,) = SECOND
    assert torch.allclose(x.mean(0), mean.double(), atol=5 * math.sqrt(0.3 / COUNT))
    assert torch.allclose(torch.cov(x.T), covariance.double(), atol=0.03)


# Lab 4 (docs/theory/lab4_guidance.py): p(x) = N(0, 1), p(x | c) = N(m, s^2), guided with the scale w
m, s, w = 0.6, 0.5, 3.0


class RareClass(nn.Module):
    """p(c | x_t) is proportional to N(x_t; a m, a^2 s^2 + b^2) / N(x_t; 0, 1), and so small that c is rare."""

    def __init__(self, forward):
        super().__init__()
        self.alphas_cumprod, self.values = forward.alphas_cumprod.double(), {"class": ["other", "c"]}

    def forward(self, x, timestep):
        abar, x = self.alphas_cumprod[int(timestep)], x.double().flatten()
        ratio = x**2 / 2 - (x - abar.sqrt() * m) ** 2 / (2 * (abar * s**2 + 1 - abar))
        return {"class": torch.stack([torch.zeros_like(x), ratio - 60], 1)}


def lab(name: str) -> torch.Tensor:
    forward = models.scheduler()
    guidance = ClassifierGuidance(
        Denoiser(GaussianDenoiser(forward, 0.0, 1.0)), DiscreteVP(forward), RareClass(forward), {"class": 1}, scale=w
    )
    model = Model(guidance.denoiser, guidance.process, None)
    model.guided = lambda settings: guidance
    random = [torch.Generator().manual_seed(1)]
    return denoise(model, torch.randn(COUNT, 1, 1, 1, generator=random[0]), SamplerSettings(name, 1000), random)


@pytest.mark.slow
def test_a_larger_scale_gives_what_the_guided_ode_gives():
    """Not p(x) p(c | x)^w, whose standard deviation is 0.32: noising and sharpening do not commute."""
    integral = quad(lambda v: 2 * (1 + v**2) ** ((w - 1) / 2), 0, math.sqrt(1 / s**2 - 1))[0]
    mean, std = m * w / (2 * math.sqrt(1 - s**2)) * s**w * integral, s**w
    x = lab("ddim")
    assert x.std() == pytest.approx(std, rel=0.05) and std == 0.125
    assert x.mean() == pytest.approx(mean, abs=0.012)


@pytest.mark.slow
def test_a_larger_scale_gives_what_the_guided_sde_gives():
    ratio = 1 / s**2
    variance = s**4 * (ratio - ratio ** (-2 * (w - 1))) / ((2 * w - 1) * (1 - s**2))
    x = lab("ddpm")
    assert x.std() == pytest.approx(math.sqrt(variance), rel=0.06)
    assert x.mean() == pytest.approx(m * (ratio - ratio ** (1 - w)) / (ratio - 1), abs=0.025)


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_changes_the_noise_of_a_prediction_too(kind):
    process, time = models.process(prediction_type=kind, clip_sample=True), torch.tensor([300])
    x_t, predicted = torch.randn(2, 50, 1, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    clipped = process.clipped(x_t, predicted, time)
    before, after = (process.to_x0(x_t, y, time) for y in (predicted, clipped))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
    inside, (alpha, sigma) = before.abs() < 1, process.levels(time)
    assert 10 < inside.sum() < 190
    torch.testing.assert_close(clipped[inside], predicted[inside])
    eps = {"epsilon": clipped, "v_prediction": alpha * clipped + sigma * x_t, "sample": (x_t - alpha * clipped) / sigma}[kind]
    torch.testing.assert_close((alpha * after + sigma * eps).float(), x_t, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_a_sampler_that_clips_still_goes_to_the_label(name):
    """At the border of [-1, 1] clipping takes back how x_0 moves. Then the noise must not move the other way."""
    ends = (torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[[0.1]], [[0.1]]]))
    forward = models.scheduler(clip_sample=True, beta_schedule="squaredcos_cap_v2")
    model = Model(Denoiser(MixtureDenoiser(forward, *ends)), DiscreteVP(forward), None)
    model.classifier = MixtureClassifier(forward, *ends)
    random = [torch.Generator().manual_seed(0)]
    noise = torch.randn(1000, 1, 1, 1, generator=random[0])
    shares = []
    for scale in (1.0, 5.0):
        settings = SamplerSettings(name, 50, labels="component=1", guidance_scale=scale)
        shares.append((denoise(model, noise, settings, random) > 0).float().mean())
    assert shares[0] > 0.9 and shares[1] > 0.99


# ---------------------------------------------------------------------------------------------------- what is guided


class Ramp(nn.Module):
    """log p(a = 1) has the gradient `slope`, and so has log p(b = 0); the times are kept."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope, self.times, self.values = slope, [], {"a": ["no", "yes"], "b": ["no", "yes"]}

    def forward(self, x, times):
        self.times.append(float(times))
        ramp = self.slope * x.sum((1, 2, 3)) - 60
        return {"a": torch.stack([0 * ramp, ramp], 1), "b": torch.stack([ramp, 0 * ramp], 1)}


def shift(wanted: dict[str, int], t: float, **options) -> torch.Tensor:
    """What guidance adds to a prediction of eps, in units of -sigma."""
    process = models.process(prediction_type="epsilon", **options.pop("process", {}))
    denoiser = Denoiser(GaussianDenoiser(process.scheduler, 0.0, 1.0))
    x, time = torch.ones(2, 1, 2, 2), torch.tensor(t)
    guidance = ClassifierGuidance(denoiser, process, Ramp(0.25), wanted, **options)
    with torch.no_grad():
        added = guidance(x, time, UNCONDITIONAL) - denoiser(x, time)
    return added.flatten()[0] / -process.levels(time.reshape(1))[1].item()


def test_the_gradients_of_all_wanted_labels_add_up():
    assert shift({"a": 1}, 500).item() == pytest.approx(0.25, rel=1e-4)
    assert shift({"a": 1, "b": 0}, 500, scale=3.0).item() == pytest.approx(3 * 0.5, rel=1e-4)


def test_only_in_the_interval_and_not_where_x_t_shows_nothing():
    times = (900, 700, 500, 499)
    assert [shift({"a": 1}, t, interval=(0.25, 0.5)).item() != 0 for t in times] == [False, True, True, False]
    last = {"rescale_betas_zero_snr": True}  # alpha is 0, by which the formula divides
    assert shift({"a": 1}, 999, process=last).item() == 0 and shift({"a": 1}, 900, process=last).item() != 0


def test_samplers_that_go_in_between_two_timesteps():
    assert shift({"a": 1}, 499.7).item() == pytest.approx(0.25, rel=1e-3)


def test_a_learned_variance_is_not_guided():
    process = models.process()
    network = nn.Module()
    network.forward = lambda x, times, class_labels=None: type("Out", (), {"sample": torch.cat([0 * x, 0 * x + 2], 1)})
    guided = ClassifierGuidance(Denoiser(network), process, Ramp(0.25), {"a": 1})
    predicted = guided(torch.ones(1, 3, 2, 2), torch.tensor(500), UNCONDITIONAL)
    assert (predicted[:, :3] != 0).all() and (predicted[:, 3:] == 2).all()


def test_half_precision_meets_a_classifier_in_float32():
    process = models.process()
    denoiser = Denoiser(models.unet(channels=3)).to(torch.bfloat16)
    seen = []
    classifier = Ramp(0.25)
    classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    guidance = ClassifierGuidance(denoiser, process, classifier, {"a": 1})
    predicted = guidance(torch.ones(1, 3, 8, 8, dtype=torch.bfloat16), torch.tensor(500), UNCONDITIONAL)
    assert predicted.dtype == torch.bfloat16 and seen == [torch.float32]


# ---------------------------------------------------------------------------------------------- what is said in --labels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "a classifier needs to know what to draw: give --labels NAME=VALUE; it tells component"),
        ("component=unknown", "needs to know what to draw"),
        ("kind=1", "this model has no label 'kind'; it has: component"),
        ("component=2", "label component has no value '2'; it has: 0, 1"),
    ],
)
def test_labels_that_the_classifier_does_not_know(labels, words):
    with pytest.raises(UserError, match=words):
        mixture().sampler(SamplerSettings(labels=labels))
