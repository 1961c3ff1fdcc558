"""What evaluate.py compares are random subsets, where the data are sorted by class."""

import json
import shutil

import numpy as np
import pytest
import torch

import evaluate
from tests.support.evaluations import FakeNetwork, dark_and_bright
from tests.support.runs import run
from tinyldm.metrics import features

pytestmark = pytest.mark.slow


@pytest.fixture
def sorted_data(tmp_path) -> list[str]:
    return [*dark_and_bright(tmp_path), "--metrics", "fid"]


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
