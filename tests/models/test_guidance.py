"""Guided samples against closed forms, and what a guide must have in common with its model."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from tests.support import models
from tinyldm.config.schema import SamplerSettings
from tinyldm.data.batch import UNKNOWN, Condition
from tinyldm.drawing.sampling import denoise
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.guidance import Guidance
from tinyldm.models.loading import check_guide
from tinyldm.models.model import Model
from tinyldm.portable.pipeline import extrapolate

COUNT = 4000
NOISE = torch.randn(COUNT, 1, 1, 1, generator=torch.Generator().manual_seed(0))


def gaussian(forward, mean: float, std: float) -> Denoiser:
    return Denoiser(models.GaussianDenoiser(forward.scheduler, mean, std))


def guided(kind: str, scale: float) -> tuple[float, float]:
    """Mean and standard deviation of samples of N(1, 0.3^2), guided by N(0, 1)."""
    forward = models.process(prediction_type=kind)
    model = Model(gaussian(forward, 1.0, 0.3), forward, None, guide=gaussian(forward, 0.0, 1.0), scale=scale)
    x0 = denoise(model, NOISE, SamplerSettings("ddim", 1000))
    return x0.mean().item(), x0.std().item()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_guided_normals_have_the_moments_of_the_guided_ode(kind):
    """With y = x / alpha and s = sigma / alpha the ODE is dy / ds = (y - D) / s, and D = m + v / (v + s^2) (y - m) of N(m, v).

    So y = A(s) eps + M(s) with A ~ (v + s^2)^(w / 2) (v_guide + s^2)^((1 - w) / 2), and M / A is an integral.
    """
    scale, abar = 2.0, float(models.process().abar[-1])
    start, initial = math.sqrt((1 - abar) / abar), 1 / math.sqrt(abar)

    def spread(s: float) -> float:
        return (0.09 + s**2) ** (scale / 2) * (1 + s**2) ** ((1 - scale) / 2)

    std = initial * spread(0) / spread(start)
    mean = spread(0) * quad(lambda s: scale * 1.0 * s / (0.09 + s**2) / spread(s), 0, start)[0]
    found = guided(kind, scale)
    assert found[1] == pytest.approx(std * float(NOISE.std()), rel=0.04)  # the last step starts at s = 0.04
    assert found[0] == pytest.approx(mean + std * float(NOISE.mean()), abs=0.01)
    assert mean > 1.05  # away from the guide, whose mean is 0


def test_a_scale_of_1_is_no_guidance():
    forward = models.process()
    plain = denoise(Model(gaussian(forward, 1.0, 0.3), forward, None), NOISE, SamplerSettings("ddim", 10))
    assert plain.isfinite().all()
    model = Model(gaussian(forward, 1.0, 0.3), forward, None, guide=gaussian(forward, 0.0, 1.0), scale=3.0)
    assert torch.equal(denoise(model, NOISE, SamplerSettings("ddim", 10, guidance_scale=1.0)), plain)
    assert not torch.equal(denoise(model, NOISE, SamplerSettings("ddim", 10)), plain)  # the model's own scale


class ByLabel(nn.Module):
    """A network that predicts the sum of its label's vector, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, times, class_labels):
        self.calls.append(len(x))
        return SimpleNamespace(sample=class_labels.sum(1).view(-1, 1, 1, 1) * torch.ones_like(x))


class Numbers(nn.Module):
    """An embedding whose vector is the label's number, 10 for an unknown one."""

    def forward(self, labels):
        return torch.where(labels == UNKNOWN, 10, labels).float()


def test_classifier_free_guidance_takes_one_pass_of_twice_the_batch():
    network = Denoiser(ByLabel(), Numbers())
    guidance = Guidance(network, models.process(), scale=3.0)
    condition = Condition(torch.tensor([[1], [4]]))
    predicted = guidance(torch.zeros(2, 1, 1, 1), torch.tensor(500), condition)
    assert predicted.flatten().tolist() == [1 + 2 * (1 - 10), 4 + 2 * (4 - 10)] and network.unet.calls == [4]


def test_guidance_only_in_an_interval():
    network = Denoiser(ByLabel(), Numbers())
    guidance = Guidance(network, models.process(), scale=3.0, interval=(0.25, 0.5))
    condition = Condition(torch.tensor([[1]]))
    results = [guidance(torch.zeros(1, 1, 1, 1), torch.tensor(t), condition).item() for t in (900, 700, 500, 499, 100)]
    assert results == [1, -17, -17, 1, 1]


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_a_sampler_that_clips_goes_away_from_the_guide(name):
    """x_0 are -1 or 1, at the borders. DDIM went to -1: x_0 was clipped, and the noise moved the other way all the same."""
    forward = models.process(clip_sample=True, beta_schedule="squaredcos_cap_v2")
    ends = torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1)
    upper, both = (models.MixtureDenoiser(forward.scheduler, *(part[k:] for part in ends)) for k in (1, 0))
    model = Model(Denoiser(upper), forward, None, guide=Denoiser(both), scale=2.0)
    x0 = denoise(model, NOISE[:500], SamplerSettings(name, 50), [torch.Generator().manual_seed(0)])
    assert (x0 > 0).float().mean() > 0.99 and x0.abs().max() <= 1


def test_rescaling_gives_back_the_spread():
    random = torch.Generator().manual_seed(0)
    better, weaker = torch.randn(2, 5, 3, 8, 8, generator=random).unbind(0)
    guided = extrapolate(better, weaker, 4.0)
    assert guided.std() > 2 * better.std()
    whole = extrapolate(better, weaker, 4.0, 1.0)
    assert torch.allclose(whole.std((1, 2, 3)), better.std((1, 2, 3)))
    half = extrapolate(better, weaker, 4.0, 0.5)
    assert torch.allclose(half, (guided + whole) / 2, atol=1e-5)
    assert torch.equal(extrapolate(better, weaker, 1.0), better)


def test_a_learned_variance_is_not_guided():
    def twice(value):
        network = nn.Module()
        network.forward = lambda x, times, class_labels=None: SimpleNamespace(
            sample=torch.cat([0 * x + value, 0 * x + value], 1)
        )
        return Denoiser(network)

    predicted = Guidance(twice(2.0), models.process(), 3.0, twice(1.0))(torch.zeros(1, 3, 2, 2), torch.tensor(5), Condition())
    assert (predicted[:, :3] == 4).all() and (predicted[:, 3:] == 2).all()


def test_a_guidance_scale_needs_a_guide_or_labels():
    forward = models.process()
    with pytest.raises(UserError, match="guidance_scale is 2, but this model has neither a guide nor labels"):
        Model(gaussian(forward, 0, 1), forward, None).sampler(SamplerSettings(guidance_scale=2.0))


def test_guides_that_do_not_fit_are_refused():
    stage = models.vq_model(scaling_factor=0.5)
    model = Model(Denoiser(models.unet()), models.process(), stage)
    check_guide(model, Model(Denoiser(models.unet()), models.process(), models.vq_model(scaling_factor=0.5)), "g")
    plain = Denoiser(models.unet())
    wrong = {
        "other latents": Model(plain, models.process(), models.vq_model(scaling_factor=0.6)),
        "other latents or images": Model(plain, models.process(), None),
        "both need the same first stage": Model(Denoiser(models.unet(16)), models.process(), stage),
        "another noise schedule": Model(plain, models.process(beta_end=0.01), stage),
        "prediction type": Model(plain, models.process(prediction_type="epsilon"), stage),
        "other labels": Model(Denoiser(models.unet(), models.labels()), models.process(), stage),
    }
    for words, guide in wrong.items():
        with pytest.raises(UserError, match=words):
            check_guide(model, guide, "g")
