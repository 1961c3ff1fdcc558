"""train_ddpm.py at a tiny size: every objective trains, resumes, exports diffusers' format, and reports its bound."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DiffusionPipeline
from PIL import Image

import sample
import train_ddpm
from tests.support.runs import DDPM, DIGITS, EVERY_STEP, rows, run, same_weights
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainDDPM
from tinyldm.diffusion.objective import diffusion_loss
from tinyldm.diffusion.pixel_task import PixelTask
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.errors import UserError
from tinyldm.models.denoiser import make_denoiser
from tinyldm.process.discrete_vp import LossHistory
from tinyldm.randomness import Draw, Rank

pytestmark = pytest.mark.slow


LEARNED = ["--scheduler.variance_type", "learned_range"]
KINDS = {
    "simple": [],
    "hybrid": [*LEARNED, "--diffusion.loss", "hybrid", "--data.label_columns", "label"],
    "bound": [*LEARNED, "--diffusion.loss", "bound", "--scheduler.prediction_type", "v_prediction"],
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """(kind, arguments, run folder)"""
    args = [*DIGITS, *DDPM, *EVERY_STEP, *KINDS[request.param], "--train.eval_steps", 2, "--train.checkpointing_steps", 3]
    folder = tmp_path_factory.mktemp(request.param) / "run"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, train_ddpm, "--output_dir", folder, *args, "--train.max_steps", 5)
    return request.param, args, folder


def test_the_bound_is_the_sum_of_its_terms(trained):
    for row in rows(trained[2]):
        if row["eval_bits"]:
            terms = [float(row[f"eval_bits_{term}"]) for term in ("prior", "steps", "decoder")]
            assert min(terms) >= 0 and float(row["eval_bits"]) == pytest.approx(sum(terms))
    text = (trained[2] / "README.md").read_text()
    assert "| bits per dimension |" in text and "makes images of\n1 x 8 x 8" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_held_out_loss_is_also_measured_as_it_is_trained(kind):
    """With the weights of the training, from the same pass through the network."""
    args = [*DIGITS, *DDPM, *KINDS[kind], "--train.num_eval_images", "10", "--train.max_steps", "1"]
    gamma = [] if kind == "bound" else ["--diffusion.snr_gamma", "2"]
    config = parse(TrainDDPM, "", ["--output_dir", "run", *args, *gamma])
    task = PixelTask(config, Accelerator(cpu=True))
    passes: list[int] = []
    task.networks["denoiser"].register_forward_hook(lambda *args: passes.append(0))
    with torch.no_grad():
        values = task.summarize(DiffusionTask.evaluate(task))
        assert len(passes) == 2
        denoiser, loss = task.model().denoiser, config.diffusion
        by_hand = [
            diffusion_loss(denoiser, task.process, x0, noise, times, loss.snr_gamma, loss.loss, condition)
            for (x0, condition), noise, times in task.my_held_out()
        ]
    assert values["eval_loss_as_trained"] == pytest.approx(torch.cat(by_hand).mean().item(), rel=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(trained, tmp_path, monkeypatch):
    """With the loss history of the importance-sampled timesteps."""
    _, args, whole = trained
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 3)
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 5, "--resume", "latest")
    for name in ("denoiser", "ema"):
        file = f"checkpoints/step-5/{name}.safetensors"
        assert same_weights(whole / file, tmp_path / "run" / file)


def test_diffusers_loads_the_pipeline_and_draws_the_images_of_sample(trained, tmp_path, monkeypatch):
    kind, _, folder = trained
    if kind == "hybrid":  # with labels, which DDPMPipeline does not take: see test_pipeline.py
        return
    pipeline = DiffusionPipeline.from_pretrained(folder / "pipeline")
    assert type(pipeline) is DDPMPipeline
    args = ["--model", folder, "--num_images", 3, "--num_inference_steps", 20, "--output_dir", tmp_path / "drawn"]
    run(monkeypatch, sample, *args, "--guidance_scale", 1)
    for seed in range(3):
        theirs = pipeline(generator=torch.Generator().manual_seed(seed), num_inference_steps=20).images[0]
        ours = Image.open(tmp_path / "drawn" / "images" / f"seed-{seed:06d}.png")
        assert np.abs(np.asarray(theirs).astype(int) - np.asarray(ours.convert("L")).astype(int)).max() <= 1


@pytest.mark.parametrize("scheduler", ["ddim", "dpm-solver++", "euler", "unipc", "ddpm"])
def test_every_sampler_accepts_a_network_with_learned_variance(scheduler, trained, tmp_path, monkeypatch):
    folder = trained[2]
    args = ["--model", folder, "--num_images", 2, "--num_inference_steps", 4, "--scheduler", scheduler]
    run(monkeypatch, sample, *args, "--output_dir", tmp_path / "drawn")
    assert np.load(tmp_path / "drawn" / "samples.npz")["arr_0"].shape[:3] == (2, 8, 8)


def test_classes(trained, tmp_path, monkeypatch):
    kind, _, folder = trained
    args = ["--model", folder, "--num_images", 2, "--num_inference_steps", 2, "--output_dir"]
    if kind != "hybrid":
        with pytest.raises(UserError, match="labels is '3', but this model has no labels"):
            run(monkeypatch, sample, *args, tmp_path / "a", "--labels", 3)
        return
    with pytest.raises(UserError, match="label label has no value '10'"):
        run(monkeypatch, sample, *args, tmp_path / "a", "--labels", "label=10")
    for label in (3, 4):
        run(monkeypatch, sample, *args, tmp_path / str(label), "--labels", label)
    three, four = (np.load(tmp_path / label / "samples.npz")["arr_0"] for label in ("3", "4"))
    assert (three != four).any()


def test_cifar10_has_the_papers_network():
    """Ho et al. 2020, appendix B: 35.7 million parameters."""
    config = parse(TrainDDPM, "", ["--config", "configs/cifar10-ddpm.yaml"])
    assert sum(weight.numel() for weight in make_denoiser(config.unet, 32, 3).parameters()) == 35_746_307


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--diffusion.loss", "hybrid"], "needs the loss hybrid or bound"),
        (LEARNED, "needs the loss hybrid or bound"),
        ([*LEARNED, "--diffusion.loss", "bound", "--diffusion.snr_gamma", "5"], "has its own weights"),
        (["--data.label_columns", "image"], "not labels.*columns of class labels: label"),
        (["--unet.num_class_embeds", "7"], "unet.num_class_embeds is derived from data.label_columns"),
    ],
)
def test_contradictions(args, words, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=words):
        run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *DIGITS, *DDPM, "--train.max_steps", 1, *args)


def test_timesteps_are_drawn_in_proportion_to_their_losses():
    """p(t) is proportional to sqrt(E[L^2]), and the weighted mean equals that of uniform timesteps."""
    history, losses = LossHistory(4, length=2), torch.tensor([1.0, 2.0, 3.0, 10.0])
    timesteps, weights = history.draw(1000, Draw(0, 0, 0, Rank(0, 1)))
    assert (weights == 1).all() and set(timesteps.tolist()) == {0, 1, 2, 3}  # no losses yet
    for _ in range(3):
        history.update(torch.arange(4), losses)
    timesteps, weights = history.draw(40000, Draw(0, 1, 0, Rank(0, 1)))
    shares = torch.bincount(timesteps, minlength=4) / 40000
    assert torch.allclose(shares, losses / losses.sum(), atol=0.01)
    assert (weights * losses[timesteps]).mean().item() == pytest.approx(losses.mean().item(), rel=0.01)
