"""Trainings with labels and with a guide: what is learned, kept, resumed and drawn."""

import json

import pytest
import torch
from safetensors.torch import load_file

import sample
import train_ddpm
import train_ldm
from tests.support.evaluations import FakeNetwork
from tests.support.runs import DATA, DDPM, DIGITS, EVERY_STEP, LDM, files, run, same_weights
from tinyldm.errors import UserError
from tinyldm.metrics import features
from tinyldm.models.loading import load_model

pytestmark = pytest.mark.slow

HATS = ["--data.label_columns", "[hat, glasses]"]


def pixels(path, *more) -> list:
    return ["--output_dir", path / "run", *DIGITS, *DDPM, *EVERY_STEP, "--data.label_columns", "label", *more]


def test_latents_of_several_labels(ldm_args, tmp_path, monkeypatch):
    args = ["--output_dir", tmp_path / "run", *ldm_args, *DATA, *LDM, *EVERY_STEP, *HATS, "--condition.balanced", "hat"]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 4, "--train.checkpointing_steps", 2)
    model = load_model(str(tmp_path / "run"))
    assert list(model.labels.values) == ["hat", "glasses"] and model.guide is None and model.scale == 2
    assert model.labels.rows.shape[1] == 2 and model.labels.rows.min() >= 0
    drawn = ["--model", tmp_path / "run", "--num_images", 4, "--num_inference_steps", 2, "--seed", 3]
    run(monkeypatch, sample, *drawn, "--labels", "hat=crown,glasses=round", "--output_dir", tmp_path / "crowns")
    assert len(list((tmp_path / "crowns/images").iterdir())) == 4
    for text, words in (("hat=fez", "hat has no value 'fez'"), ("beard=full", "no label 'beard'")):
        with pytest.raises(UserError, match=words):
            run(monkeypatch, sample, *drawn, "--labels", text, "--output_dir", tmp_path / "none")
    assert not (tmp_path / "none/images").exists() or not list((tmp_path / "none/images").iterdir())
    card = (tmp_path / "run/README.md").read_text()
    assert "labels={'hat': 'party hat'}, guidance_scale=2" in card and "hat (none, cap," in card
    assert "pipeline_tag: unconditional-image-generation" in card  # the Hub has no task for classes


def test_a_resumed_training_with_labels_equals_the_unbroken_one(tmp_path, monkeypatch):
    for name, steps in (("one", [4]), ("two", [2, 4])):
        for step in steps:
            resume = ["--resume", "latest"] if step != steps[0] else []
            run(monkeypatch, train_ddpm, *pixels(tmp_path / name, "--train.max_steps", step, "--train.batch_size", 4), *resume)
    paths = [tmp_path / name / "run/checkpoints/step-4" for name in ("one", "two")]
    assert all(same_weights(*(path / f"{part}.safetensors" for path in paths)) for part in ("denoiser", "ema"))
    weights = load_file(paths[0] / "denoiser.safetensors")
    assert weights["labels.vectors.0"].shape == (11, 32) and "unet.conv_in.weight" in weights


def test_the_guide_is_a_snapshot_of_the_averaged_weights(ldm_args, tmp_path, monkeypatch):
    args = ["--output_dir", tmp_path / "run", *ldm_args, *LDM, *EVERY_STEP, "--guidance.guide_steps", 2]
    more = ["--train.checkpointing_steps", 1, "--train.checkpoints_total_limit", 9]
    run(monkeypatch, train_ldm, *args, *more, "--train.max_steps", 3)
    run(monkeypatch, train_ldm, *args, *more, "--train.max_steps", 5, "--resume", "latest")
    snapshot = load_file(tmp_path / "run/checkpoints/step-2/ema.safetensors")
    model = load_model(str(tmp_path / "run"))
    assert all(torch.equal(model.guide.state_dict()[name], value) for name, value in snapshot.items())
    assert {"pipeline/guide/config.json", "pipeline/pipeline.py", "pipeline/guidance.json"} <= files(tmp_path / "run")
    assert "away from the averaged weights of step 2, scale 2." in (tmp_path / "run/README.md").read_text()
    drawn = ["--model", tmp_path / "run", "--num_images", 2, "--num_inference_steps", 2]
    grids = {}
    for name, guide in (("own", []), ("given", ["--guidance_model", tmp_path / "run/checkpoints/step-2"])):
        run(monkeypatch, sample, *drawn, *guide, "--output_dir", tmp_path / name)
        grids[name] = (tmp_path / name / "grid.png").read_bytes()
    run(monkeypatch, sample, *drawn, "--guidance_scale", 1, "--output_dir", tmp_path / "off")
    assert grids["own"] == grids["given"] != (tmp_path / "off/grid.png").read_bytes()


def test_no_guide(tmp_path, monkeypatch):
    args = [*DIGITS, *DDPM, *EVERY_STEP, "--train.max_steps", 2]
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args, "--guidance.guide_steps", 0)
    assert not any("guid" in name for name in files(tmp_path / "run/pipeline"))
    with pytest.raises(UserError, match="neither a guide nor labels"):
        run(monkeypatch, sample, "--model", tmp_path / "run", "--guidance_scale", 2, "--output_dir", tmp_path / "s")
    with pytest.raises(UserError, match=r"guide_steps is 5; the guide must be earlier than train.max_steps, 2"):
        run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "b", *args, "--guidance.guide_steps", 5)


def test_the_guidance_scale_is_chosen_on_held_out_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "NETWORKS", {"inception": FakeNetwork().load})
    chosen = ["--guidance.scale", "null", "--guidance.num_images", 40, "--guidance.scales", "[3, 1.5]"]
    run(monkeypatch, train_ddpm, *pixels(tmp_path, "--train.max_steps", 2, *chosen))
    stored = json.loads((tmp_path / "run/pipeline/guidance.json").read_text())
    message = capsys.readouterr().err
    assert stored["scale"] in (1.5, 3) and f"scale {stored['scale']:g} is stored with the model" in message
    assert "chosen by a Frechet distance on held-out images" in (tmp_path / "run/README.md").read_text()


def test_a_balanced_label_needs_random_access(tmp_path, monkeypatch):
    args = ["--data.name", "toyfaces", "--data.eval_split", "validation", "--data.resolution", 16, *DDPM, *EVERY_STEP, *HATS]
    args = ["--output_dir", tmp_path / "run", *args, "--train.max_steps", 1]
    with pytest.raises(UserError, match=r"condition.balanced needs random access"):
        run(monkeypatch, train_ddpm, *args, "--condition.balanced", "hat")
    with pytest.raises(UserError, match=r"name one of data.label_columns: hat, glasses"):
        run(monkeypatch, train_ddpm, *args, "--condition.balanced", "mouth")
