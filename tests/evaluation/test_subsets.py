"""What evaluate.py compares are random subsets, and classes in their own shares, where the data are sorted by class."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from PIL import Image

import evaluate
from tests.support import models
from tests.support.evaluations import FakeNetwork
from tests.support.runs import run
from tinyldm.metrics import features

pytestmark = pytest.mark.slow


@pytest.fixture
def sorted_data(tmp_path) -> list[str]:
    """90 dark pictures, then 30 bright ones; half of them are held out."""
    random = np.random.default_rng(0)
    for name, count, level in (("a-dark", 90, 40), ("b-bright", 30, 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            pixels = (level + random.integers(-30, 30, (8, 8, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i:03d}.png")
    data = ["--data.name", tmp_path / "data", "--data.resolution", 8, "--data.eval_fraction", 0.5]
    return [*map(str, data), "--data.cache_dir", str(tmp_path / "cache"), "--metrics", "fid"]


@pytest.fixture
def go(monkeypatch, tmp_path):
    torch.set_num_threads(1)
    network = FakeNetwork()
    monkeypatch.setattr(features, "NETWORKS", {"inception": network.load})

    def go(*args, output: str = "out") -> dict:
        run(monkeypatch, evaluate, *args, "--output_dir", tmp_path / output)
        return json.loads((tmp_path / output / "evaluation.json").read_text())["results"][0]

    return go


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_the_reference_and_its_anchor_are_of_all_classes(sorted_data, go, tmp_path, streaming):
    some = ["--num_images", 20, "--num_reference", 24, "--data.streaming", streaming]
    result = go("--images", tmp_path / "data", *some, *sorted_data)
    assert result["reference"]["images"] == 24 and result["reference"]["order"] == "random"
    figures = result["figures"]["FID"]
    assert figures["real images"]["images"] == 20
    assert max(figures["real images"]["value"], figures["samples"]["value"]) < 3  # one class alone: above 10
    reference = np.load(tmp_path / "out/reference-inception-held_out.npz")["features"]
    bright = (reference.mean(1) > 2.4).mean()  # features are pixels / 50
    assert 0.05 < bright < 0.55


def test_a_reference_that_was_saved_is_known_as_a_subset(sorted_data, go, tmp_path):
    first = go("--images", tmp_path / "data", "--num_images", 20, "--num_reference", 24, *sorted_data)
    saved = shutil.copy(tmp_path / "out/reference-inception-held_out.npz", tmp_path / "reference.npz")
    again = go("--images", tmp_path / "data", "--num_images", 20, "--reference", saved, *sorted_data, output="again")
    assert again["reference"] == first["reference"] and again["figures"] == first["figures"]


@pytest.fixture
def conditional(tmp_path) -> Path:
    torch.manual_seed(0)
    network = UNet2DModel(**{**models.unet().config, "num_class_embeds": 2})
    DDPMPipeline(network, DDIMScheduler.from_config(models.scheduler().config)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_classes_are_drawn_by_their_shares(sorted_data, go, conditional, tmp_path):
    args = ["--model", conditional, "--num_inference_steps", 2, "--num_images", 24, "--anchors", "false", *sorted_data]
    result = go(*args, "--data.label_columns", "label")
    key = json.loads((tmp_path / "out/drawn/made_of.json").read_text())
    assert 0.6 < key["class_shares"][0] < 0.9 and sum(key["class_shares"]) == pytest.approx(1)
    assert "the classes are drawn by their shares in the held-out part" in result["notes"]
    evenly = go(*args, output="evenly")
    assert any("2 classes are drawn evenly" in note for note in evenly["notes"])
    go(*args, "--data.label_columns", "label", "--class_label", 1, output="one")
    assert "class_shares" not in json.loads((tmp_path / "one/drawn/made_of.json").read_text())
