"""pretrained/: the model that comes with the repository draws by our tools and by plain diffusers, and is small."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

import sample
from tests.support.runs import ROOT, run
from tinyldm.config.schema import Sample
from tinyldm.errors import UserError
from tinyldm.models.loading import load_model

FOLDER = ROOT / "pretrained" / "toyfaces64"


def test_it_is_what_sample_draws_from_and_small_enough_for_a_clone():
    assert ROOT / Sample.model == FOLDER
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 12e6


def test_the_code_that_travels_with_it_is_ours():
    for name in ("pipeline.py", "labels/label_embedding.py"):
        assert (FOLDER / name).read_text() == (ROOT / "tinyldm/portable" / Path(name).name).read_text()


def test_without_the_folder_one_line_says_what_to_do_and_the_hub_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="pretrained/toyfaces64 does not exist: start in tinyldm's folder, or give a run"):
        load_model(Sample.model)


def test_its_card_says_licence_labels_and_guidance():
    card = ModelCard.load(FOLDER / "README.md")
    assert card.data.license == "apache-2.0" and "crown" in card.text
    model = load_model(str(FOLDER))
    assert model.scale > 1 and model.labels is not None and f"scale {model.scale:g}" in card.text


@pytest.mark.slow
def test_sample_without_a_model_draws_the_labels_that_were_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    args = ["--num_images", 4, "--num_inference_steps", 10, "--labels", "background=plain,background_color=navy"]
    run(monkeypatch, sample, *args, "--output_dir", tmp_path)
    corners = np.load(tmp_path / "samples.npz")["arr_0"][:, :6, :6].reshape(-1, 3).astype(float)
    red, _, blue = np.median(corners, 0)
    assert blue > red + 20 and corners.std(0).max() < 25, "not a plain navy background"


@pytest.mark.slow
def test_plain_diffusers_draws_the_same(monkeypatch, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=str(FOLDER), trust_remote_code=True)
    run(monkeypatch, sample, "--model", FOLDER, "--num_images", 1, "--num_inference_steps", 10, "--output_dir", tmp_path)
    [drawn] = pipeline(num_images=1, num_inference_steps=10, seed=0).images
    assert np.array_equal(np.asarray(drawn), np.load(tmp_path / "samples.npz")["arr_0"][0])
