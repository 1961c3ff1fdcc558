"""Random changes of training images: what is told is what was done."""

import math

import pytest
import torch

from tinyldm.data.augment import CHANGES, SCALE, SHIFT, augment_images
from tinyldm.randomness import Draw


def blob(count: int, side: int = 32) -> torch.Tensor:
    """A soft dot in the upper half of dark images."""
    axis = torch.linspace(-1, 1, side)
    squares = (axis[None, :] - 0.0) ** 2 + (axis[:, None] + 0.4) ** 2
    return (2 * torch.exp(-squares / 0.02) - 1).expand(count, 1, side, side)


def centre(images: torch.Tensor) -> torch.Tensor:
    """(B, 2): x and y of the dot, in half sides."""
    weights = (images[:, 0] + 1).clamp(min=0)
    axis = (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1] * 2 - 1
    total = weights.sum((1, 2))
    return torch.stack([(weights * axis).sum((1, 2)) / total, (weights * axis[:, None]).sum((1, 2)) / total], 1)


def test_no_chance_changes_nothing():
    images = blob(4)
    changed, told = augment_images(images, 0.0, Draw(0, 0, 0))
    assert torch.equal(changed, images) and told.shape == (4, CHANGES) and told.abs().max() == 0


def test_images_without_a_change_stay_to_the_bit():
    images = torch.rand(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed, told = augment_images(images, 0.2, Draw(0, 0, 0))
    untouched = (told == 0).all(1)
    assert untouched.float().mean() == pytest.approx(0.8**3, abs=0.03)
    assert torch.equal(changed[untouched], images[untouched])
    assert (changed[~untouched] != images[~untouched]).flatten(1).any(1).all() and changed.abs().max() <= 1


def test_what_is_told_says_where_the_dot_went():
    """A point p of the image comes from R p / scale + shift of the original."""
    changed, told = augment_images(blob(300), 1.0, Draw(1, 0, 0))
    log_scale, sine, cosine, shift = told[:, 0], told[:, 1], 1 - told[:, 2], told[:, 3:]
    expected = (torch.tensor([0.0, -0.4]) - shift) * 2 ** log_scale[:, None]
    turned = torch.stack([cosine * expected[:, 0] + sine * expected[:, 1], -sine * expected[:, 0] + cosine * expected[:, 1]], 1)
    away = (centre(changed) - turned).norm(dim=1)
    assert away.median() < 0.02 and away.quantile(0.8) < 0.1  # some meet their mirror images at the border


def test_the_changes_have_their_spread():
    _, told = augment_images(torch.zeros(4000, 1, 4, 4), 1.0, Draw(0, 0, 0))
    assert told[:, 0].std() == pytest.approx(SCALE, rel=0.1) and told[:, 3:].std() == pytest.approx(SHIFT, rel=0.1)
    assert (
        told[:, 1].square().mean() == pytest.approx(0.5, abs=0.05)
        and torch.atan2(told[:, 1], 1 - told[:, 2]).max() > 0.9 * math.pi
    )
