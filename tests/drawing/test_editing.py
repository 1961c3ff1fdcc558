"""Variations, inpainting and inversion, with denoisers whose answers are known in closed form."""

import itertools

import pytest
import torch

from tests.support import models
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing import editing
from tinyldm.drawing.sampling import generators
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model, to_images
from tinyldm.portable.levels import KINDS

CORRELATION = 0.9
COVARIANCE = 0.25 * torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64)
COUNT = 4000
ONE = [torch.Generator()]  # for all images: a generator per image is slow


def pair(x_t, alpha, sigma):
    """E[x_0 | x_t] for two values in a row, normal with COVARIANCE and mean 0."""
    noised = alpha.view(-1, 1, 1) ** 2 * COVARIANCE + sigma.view(-1, 1, 1) ** 2 * torch.eye(2)
    gain = alpha.view(-1, 1, 1) * COVARIANCE @ noised.inverse()
    return (x_t.flatten(1) @ gain[0].T).view_as(x_t)


def model(kind: str, estimate=pair) -> Model:
    process = models.any_process(kind)
    return Model(Denoiser(models.ExactNetwork(process, estimate)), process, None)


def pairs(count: int = COUNT) -> torch.Tensor:
    """x_0 (count, 1, 1, 2) of this distribution."""
    normal = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (normal @ torch.linalg.cholesky(COVARIANCE).T).view(count, 1, 1, 2)


@pytest.mark.parametrize("kind", [*KINDS, "vp"])
def test_a_variation_keeps_the_distribution_and_less_of_the_image_with_more_strength(kind):
    """Noising samples of the distribution and drawing them again gives samples of the distribution, at any strength."""
    x0, correlations = pairs(), []
    for strength in (0.1, 0.5, 0.9, 1.0):
        settings = SamplerSettings(scheduler="ddpm", num_inference_steps=60)
        made = editing.vary(model(kind), x0, strength, settings, [ONE[0].manual_seed(1)])
        torch.testing.assert_close(torch.cov(made.flatten(1).T), COVARIANCE, rtol=0.12, atol=0.02)
        correlations.append(float(torch.corrcoef(torch.stack([x0[:, 0, 0, 0], made[:, 0, 0, 0]]))[0, 1]))
    assert correlations[0] > 0.7 and abs(correlations[3]) < 0.15
    assert all(more > less - 0.02 for more, less in itertools.pairwise(correlations))


@pytest.mark.parametrize(("kind", "off"), [("vp", 0.12), ("flow", 0.05)])
def test_a_filled_part_nearly_has_its_conditional_distribution(kind, off):
    """Given the first value a, the second is normal with mean 0.9 a and variance 0.25 (1 - 0.9^2). RePaint is close."""
    x0, mask = torch.full((COUNT, 1, 1, 2), 0.6, dtype=torch.float64), torch.tensor([[[[0.0, 1.0]]]]).double()
    means = {}
    for repeats in (1, 8):
        settings = SamplerSettings(num_inference_steps=60)
        made = editing.inpaint(model(kind), x0, mask, settings, [ONE[0].manual_seed(1)], jump=5, repeats=repeats)
        assert torch.equal(made[..., 0], x0[..., 0])
        means[repeats] = float(made[..., 1].mean())
    spread = float(made[..., 1].std())
    assert means[8] == pytest.approx(CORRELATION * 0.6, abs=off) and spread == pytest.approx(0.5 * (1 - 0.81) ** 0.5, rel=0.2)
    assert abs(means[1] - CORRELATION * 0.6) > abs(means[8] - CORRELATION * 0.6)  # what the repeats are for


def images(count: int = 2, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def pixel_model(kind: str = "vp") -> Model:
    return Model(Denoiser(models.unet()), models.any_process(kind), None)


def latent_model() -> Model:
    return Model(Denoiser(models.unet()), models.process(), models.vq_model(scaling_factor=0.7))


@pytest.mark.parametrize("kind", ["vp", "edm"])
def test_known_pixels_stay_to_the_bit(kind):
    given, mask = images(), editing.box_mask((2, 3, 6, 7), 8).expand(2, -1, -1, -1)
    made = editing.fill(pixel_model(kind), given, mask, SamplerSettings(num_inference_steps=4), generators(0, 2))
    changed = (made != given).any(1)
    assert not changed[:, mask[0, 0] == 0].any() and changed[:, mask[0, 0] == 1].float().mean() > 0.9


def test_over_a_first_stage_only_a_feathered_edge_changes():
    given, mask = images(side=16), editing.box_mask((4, 4, 8, 8), 16).expand(2, -1, -1, -1)
    made = editing.fill(latent_model(), given, mask, SamplerSettings(num_inference_steps=4), generators(0, 2))
    changed = (made != given).any(1).any(0)
    assert changed[4:8, 4:8].all() and not changed[:, 12:].any() and not changed[12:].any()
    reached = changed.nonzero()
    assert reached.min() >= 4 - 4 and reached.max() <= 7 + 4  # twice the factor of the first stage


def test_images_become_x0_and_images_again():
    given = images()
    assert torch.equal(to_images(pixel_model(), editing.to_x0(pixel_model(), given)), given)
    latents = editing.to_x0(latent_model(), images(side=16))
    assert latents.shape == (2, 3, 8, 8)


def test_inversion_leads_back():
    given, tiny = images(), pixel_model()
    with torch.no_grad():
        for weight in tiny.denoiser.parameters():
            weight.mul_(0.3)  # an untrained network folds space
    noise, back = editing.invert(tiny, given)
    assert noise.shape == given.shape and editing.psnr(given, back) > 35
    frames = editing.between(tiny, noise, 5)
    assert torch.equal(frames[[0, -1]], back)


def test_each_level_is_watched_once():
    tiny, settings, seen = pixel_model(), SamplerSettings(num_inference_steps=6), []

    def watch(drawing, step, x):
        assert drawing is tiny and x.shape == (2, 3, 8, 8)
        seen.append(step)

    x0, random = editing.to_x0(tiny, images()), generators(0, 2)
    editing.vary(tiny, x0, 0.5, settings, random, watch=watch)
    assert seen == [0, 1, 2]
    mask = editing.box_mask((2, 3, 6, 7), 8).expand(2, -1, -1, -1)
    editing.fill(tiny, images(), mask, settings, random, jump=2, repeats=3, watch=watch)
    assert seen[3:] == [0, 1, 2, 3, 4, 5]


def test_boxes_outside_the_image_are_refused():
    for box in ((4, 0, 4, 8), (0, 0, 9, 8), (5, 0, 3, 8)):
        with pytest.raises(UserError, match=r"give left, top, right, bottom in pixels, from 0 to 8"):
            editing.box_mask(box, 8)
