"""Super-resolution stages through the whole program: training, chains, plain diffusers, evaluation."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import evaluate
import sample
import train_ddpm
import train_ldm
from tests.support.evaluations import FakeNetwork
from tests.support.runs import DATA, DDPM, DIGITS, EVERY_STEP, LDM, rows, run
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing.cascade import as_seen, same_labels, upscale
from tinyldm.errors import UserError
from tinyldm.metrics import features
from tinyldm.models.loading import load_model

pytestmark = pytest.mark.slow

STEPS = ["--train.max_steps", 3, "--train.checkpointing_steps", 3]
LABEL = ["--data.label_columns", "label"]


@pytest.fixture(scope="module")
def runs(ldm_args, tmp_path_factory):
    """Stages in pixels (4 px digits, 4 to 8, the same without labels, 4 to 16) and in latents (8 to 16 px faces)."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:

        def train(script, name, *args):
            run(patch, script, "--output_dir", folder / name, *args, *EVERY_STEP, *STEPS)

        train(train_ddpm, "4", *DIGITS, *DDPM, *LABEL, "--data.resolution", 4)
        train(train_ddpm, "4to8", *DIGITS, *DDPM, *LABEL, "--condition.low_resolution", 4)
        train(train_ddpm, "4to8-plain", *DIGITS, *DDPM, "--condition.low_resolution", 4, "--guidance.guide_steps", 1)
        train(train_ddpm, "8to16", *DIGITS, *DDPM, "--data.resolution", 16, "--condition.low_resolution", 8)
        train(train_ldm, "latents", *ldm_args, *DATA, *LDM, "--condition.low_resolution", 8, "--data.label_columns", "[hat]")
    return folder


@pytest.mark.parametrize(("name", "channels", "side"), [("4to8", 1, 4), ("4to8-plain", 1, 4), ("latents", 3, 8)])
def test_a_stage_knows_its_small_images(name, channels, side, runs):
    model = load_model(str(runs / name))
    assert model.low_resolution.config.side == side and model.channels == channels
    assert model.unet.config.in_channels == 2 * channels and model.unet.config.out_channels == channels
    assert float(rows(runs / name)[-1]["eval_loss"]) > 0


@pytest.mark.parametrize("name", ["4to8", "4to8-plain", "latents"])
def test_plain_diffusers_enlarges_the_same(name, runs):
    model, folder = load_model(str(runs / name)), runs / name / "pipeline"
    side, random = model.low_resolution.config.side, torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (2, 1, side, side), generator=random, dtype=torch.uint8).expand(-1, 3, -1, -1)
    settings = SamplerSettings("ddim" if name == "latents" else None, 4)
    condition = same_labels(model, None if model.labels is None else model.labels.draw([5, 6], {}), model, 2)
    ours = upscale(model, small, [5, 6], settings, condition).permute(0, 2, 3, 1).numpy()
    opened = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in small]
    theirs = opened(small=images, seed=5, num_inference_steps=4).images
    assert np.array_equal(ours, np.stack([np.asarray(image.convert("RGB")) for image in theirs]))
    with pytest.raises(ValueError, match="small images are for a super-resolution stage"):
        opened(num_images=2)


def test_more_noise_hides_the_small_image(runs):
    model = load_model(str(runs / "4to8-plain"))
    small = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    drawn = [
        upscale(model, small, [0], SamplerSettings(num_inference_steps=3, augmentation=level)) for level in (0.0, 0.5, 1.0)
    ]
    other = upscale(model, small + 200, [0], SamplerSettings(num_inference_steps=3, augmentation=1.0))
    assert not torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], other)
    assert as_seen(model, small + 127).abs().max() < 0.01


def test_a_cascade_draws_and_its_labels_go_through(runs, tmp_path, monkeypatch):
    chain = [*("--model", runs / "4", "--then", f"{runs / '4to8'}, {runs / '8to16'}"), "--num_inference_steps", 3, "--seed", 7]
    run(monkeypatch, sample, *chain, "--num_images", 3, "--labels", "3", "--output_dir", tmp_path / "one", "--batch_size", 2)
    images = np.load(tmp_path / "one/samples.npz")["arr_0"]
    assert images.shape == (3, 16, 16, 3)
    run(monkeypatch, sample, *chain, "--num_images", 3, "--labels", "3", "--output_dir", tmp_path / "two", "--batch_size", 3)
    assert np.abs(images.astype(int) - np.load(tmp_path / "two/samples.npz")["arr_0"]).max() <= 1  # in any batch
    first, second = load_model(str(runs / "4")), load_model(str(runs / "4to8"))
    assert same_labels(first, torch.tensor([[3], [-1]]), second, 2).labels.tolist() == [[3], [-1]]


def test_a_stage_with_labels_follows_one_without(runs, tmp_path, monkeypatch):
    """Its labels are unknown for each image of a batch, and it is guided by itself."""
    plain = load_model(str(runs / "4to8-plain"))
    second = load_model(str(runs / "4to8"))
    assert same_labels(plain, None, second, 3).labels.tolist() == [[-1]] * 3
    small = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    settings = SamplerSettings(num_inference_steps=2, guidance_scale=2.0)
    assert upscale(second, small, [0, 1, 2], settings, same_labels(plain, None, second, 3)).shape == (3, 3, 8, 8)


def test_given_images_are_enlarged(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "small").mkdir()
    for number, side in enumerate((4, 6)):
        Image.new("RGB", (side, side), (90 * number, 0, 0)).save(tmp_path / f"small/{number}.png")
    arguments = ["--model", runs / "4to8", "--num_inference_steps", 3, "--upscale"]
    run(monkeypatch, sample, *arguments, tmp_path / "small", "--output_dir", tmp_path / "out")
    assert "6 x 6 is cropped to its centre and resized to 4 x 4" in capsys.readouterr().out
    assert Image.open(tmp_path / "out/images/seed-000000.png").size == (8, 8) and (tmp_path / "out/edited.png").exists()


@pytest.mark.parametrize("small", [None, "4"])
def test_a_stage_is_evaluated_on_real_and_on_generated_images(small, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "NETWORKS", {"inception": FakeNetwork().load})
    given = ["--small_from", runs / small] if small else []
    arguments = ["--model", runs / "4to8", "--num_images", 24, "--num_inference_steps", 2, "--metrics", "fid", *given]
    run(monkeypatch, evaluate, *arguments, "--sweep", "augmentation=0,0.3", "--output_dir", tmp_path / "out")
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert found["images"]["small images"] == (str(runs / small) if small else "held-out images")
    assert [row["value"] for row in found["results"][0]["sweep"]] == [0, 0.3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "4to8"], "is a super-resolution stage: give it small images with --upscale, or name it in --then"),
        (["--model", "4", "--then", "8to16"], "enlarges images of 8 px, but .* draws 4 px"),
        (["--model", "4", "--then", "4"], "is not a super-resolution stage: train one with condition.low_resolution"),
        (["--model", "4", "--upscale", "."], "is not a super-resolution stage"),
        (["--model", "4", "--then", "4to8", "--upscale", "."], "then and upscale are two different things to do"),
    ],
)
def test_stages_that_do_not_fit_are_refused(arguments, words, runs, tmp_path, monkeypatch):
    named = [str(runs / word) if (runs / word).is_dir() and word != "." else word for word in arguments]
    with pytest.raises(UserError, match=words):
        run(monkeypatch, sample, *named, "--num_inference_steps", 5, "--output_dir", tmp_path / "out")
    assert not list((tmp_path / "out").glob("images/*"))


def test_the_likelihood_of_a_stage_is_refused(runs, tmp_path, monkeypatch):
    few = ["--metrics", "likelihood", "--num_inference_steps", 5]
    with pytest.raises(UserError, match="this one is a super-resolution stage"):
        run(monkeypatch, evaluate, "--model", runs / "4to8", *few, "--output_dir", tmp_path / "out")
