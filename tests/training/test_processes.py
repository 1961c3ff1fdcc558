"""Every process through the whole program: training, previews, the model folder, plain diffusers, evaluation."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import evaluate
import sample
import train_ddpm
import train_ldm
from tests.support.evaluations import FakeNetwork
from tests.support.runs import DATA, DDPM, DIGITS, EVERY_STEP, LDM, rows, run
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing import sampling
from tinyldm.errors import UserError
from tinyldm.metrics import features
from tinyldm.models.conditioning import condition_for
from tinyldm.models.loading import load_model
from tinyldm.portable.levels import KINDS
from tinyldm.training import checkpoint

pytestmark = pytest.mark.slow

STOCK = ("flow", "edm")  # diffusers has a scheduler for these


@pytest.fixture(scope="module")
def trained(ldm_args, tmp_path_factory):
    """(kind, space, labelled) -> the folder of a run of three steps, each trained once."""
    made = {}

    def train(kind, space, labelled):
        if (kind, space, labelled) not in made:
            folder = tmp_path_factory.mktemp("run") / "run"
            data = [*ldm_args, *LDM] if space == "latents" else [*DIGITS, *DDPM]
            labels = ["--data.label_columns", "label"]
            if labelled and space == "latents":
                data, labels = [*ldm_args, *DATA, *LDM], ["--data.label_columns", "[hat, glasses]"]
            with pytest.MonkeyPatch.context() as patch:
                run(
                    patch,
                    train_ldm if space == "latents" else train_ddpm,
                    *("--output_dir", folder, *data, *EVERY_STEP, *(labels if labelled else ["--guidance.guide_steps", 1])),
                    *("--process.kind", kind, "--train.max_steps", 3, "--train.checkpointing_steps", 1),
                    *("--train.checkpoints_total_limit", 3),
                )
            made[kind, space, labelled] = folder
        return made[kind, space, labelled]

    return train


def images(model, **settings) -> np.ndarray:
    """Two images (2, S, S, C)."""
    drawn = next(sampling.sample(model, 2, 2, 5, SamplerSettings(num_inference_steps=4, **settings)))
    return drawn.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("space", ["latents", "pixels"])
@pytest.mark.parametrize("kind", [*KINDS, "vp"])
def test_a_process_is_trained_drawn_and_opened_by_diffusers(kind, space, labelled, trained, tmp_path, monkeypatch):
    folder = trained(kind, space, labelled)
    model = load_model(str(folder))
    assert model.process.kind == kind and model.scale == 2 and float(rows(folder)[-1]["eval_loss"]) > 0
    assert f"| forward process | {model.process.describe()}" in (folder / "README.md").read_text()
    condition = condition_for(model.labels, range(2), {})
    noise = sampling.initial_noise(model, sampling.generators(0, 2))
    plain, guided = (
        sampling.denoise(model, noise, SamplerSettings(num_inference_steps=4, guidance_scale=scale), condition=condition)
        for scale in (1, None)
    )
    assert plain.isfinite().all() and not torch.allclose(plain, guided, rtol=1e-3)

    pipeline = folder / "pipeline"
    if kind != "vp":  # which test_pipeline.py compares
        opened = DiffusionPipeline.from_pretrained(pipeline, custom_pipeline=str(pipeline), trust_remote_code=True)
        theirs = np.stack([np.asarray(image) for image in opened(num_images=2, seed=5, num_inference_steps=4).images])
        away = np.abs(theirs.reshape(images(model).shape).astype(int) - images(model))
        assert away.max() <= 1  # the same steps, rounded in another order
        assert (json.loads((pipeline / "model_index.json").read_text())["scheduler"][0] == "diffusers") == (kind in STOCK)

    guide = ["--guidance_scale", 3] if labelled else ["--guidance_model", folder / "checkpoints/step-1"]
    arguments = ["--model", folder, "--num_images", 2, "--num_inference_steps", 3, "--scheduler", "heun", *guide]
    run(monkeypatch, sample, *arguments, "--strip", "true", "--interpolate", "[0,1]", "--output_dir", tmp_path / "drawn")
    assert {"grid.png", "denoising.png", "interpolation.png"} <= {file.name for file in (tmp_path / "drawn").iterdir()}


@pytest.mark.parametrize("kind", ["ve", "flow"])
def test_a_run_is_evaluated(kind, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "NETWORKS", {"inception": FakeNetwork().load})
    arguments = ["--model", trained(kind, "pixels", True), "--num_inference_steps", 2, "--batch_size", 8]
    more = ["--num_images", 24, "--metrics", "fid,labels", "--sweep", "guidance_scale=1,2", "--output_dir", tmp_path / "out"]
    run(monkeypatch, evaluate, *arguments, *more)
    result = json.loads((tmp_path / "out/evaluation.json").read_text())["results"][0]
    assert len(result["sweep"]) == 2 and "(euler, 2 steps" in capsys.readouterr().out


def test_the_largest_noise_of_ve_is_the_distance_of_two_images(trained, monkeypatch):
    folder = trained("ve", "pixels", False)
    measured = load_model(str(folder)).process.law.sigma_max
    assert 3 < measured < 16  # images of 64 pixels in [-1, 1] are at most 16 apart
    assert checkpoint.load_state(folder / "checkpoints/step-3")["kept"]["sigma_max"] == pytest.approx(measured)


def test_a_guide_of_another_process_is_refused(trained, tmp_path, monkeypatch):
    arguments = ["--model", trained("flow", "pixels", False), "--guidance_model", trained("subvp", "pixels", False)]
    with pytest.raises(UserError, match="has another noise schedule or prediction type"):
        run(monkeypatch, sample, *arguments, "--output_dir", tmp_path / "drawn")


def test_changes_of_training_images_are_not_in_the_exported_model(tmp_path, monkeypatch):
    arguments = ["--output_dir", tmp_path / "run", *DIGITS, *DDPM, *EVERY_STEP, "--data.augment", 0.5, "--train.max_steps", 3]
    run(monkeypatch, train_ddpm, *arguments, "--train.checkpointing_steps", 1, "--train.checkpoints_total_limit", 3)
    assert "changes.weight" in load_file(tmp_path / "run/checkpoints/step-3/denoiser.safetensors")
    model = load_model(str(tmp_path / "run"))
    assert model.unet.config.class_embed_type is None and model.denoiser.changes is None
    plain = DiffusionPipeline.from_pretrained(tmp_path / "run/pipeline")
    assert type(plain).__name__ == "DDPMPipeline" and plain(num_inference_steps=2).images
    earlier = load_model(str(tmp_path / "run/checkpoints/step-1"))
    assert not torch.equal(earlier.unet.conv_in.weight, model.unet.conv_in.weight)
