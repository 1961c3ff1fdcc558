"""benchmarks/editing.py: its figures of fillings that are known, and of an untrained model."""

import numpy as np
import torch

from benchmarks import editing as benchmark
from tests.support import models
from tinyldm.drawing import editing
from tinyldm.metrics.features import FeatureNetwork
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model

SIDE, COUNT = 16, 32


def network() -> FeatureNetwork:
    """Its features are the means of the quarters of an image."""

    def embed(images: torch.Tensor) -> dict[str, np.ndarray]:
        return {"features": images.float().unfold(2, 8, 8).unfold(3, 8, 8).mean((1, 4, 5)).flatten(1).numpy()}

    return FeatureNetwork("means", "FD", "KID", {}, embed)


def found(monkeypatch, fill) -> dict:
    torch.manual_seed(0)
    model = Model(Denoiser(models.unet(SIDE)), models.process(), None)
    held_out = torch.randint(0, 200, (2 * COUNT, 3, SIDE, SIDE), dtype=torch.uint8)
    if fill:
        monkeypatch.setattr(editing, "fill", fill)
    return benchmark.fill(model, held_out, COUNT, 2, network())


def test_images_that_come_back_as_they_were(monkeypatch):
    figures = found(monkeypatch, lambda model, images, *_: images)
    assert figures["seam"] == 1 and figures["changed_outside"] == 0
    assert figures["fd"]["filled"] == figures["fd"]["as they were"] and np.isfinite(figures["fd"]["samples"]["value"])


def test_a_visible_box_and_a_changed_pixel_are_found(monkeypatch):
    def fill(model, images, mask, *_):
        drawn = torch.where(mask > 0, torch.tensor(255, dtype=torch.uint8), images)
        drawn[0, 0, 0, 0] = images[0, 0, 0, 0] + 7
        return drawn

    figures = found(monkeypatch, fill)
    assert figures["seam"] > 1.5 and figures["changed_outside"] == figures["changed_beyond_the_edge"] == 7


def test_known_pixels_stay(monkeypatch):
    assert found(monkeypatch, None)["changed_outside"] == 0
