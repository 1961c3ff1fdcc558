"""train_classifier.py at a tiny size: its loss, its figures, its folder, and the models that it fits."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import sample
import train_classifier
import train_ddpm
import train_ldm
from tests.support import models
from tests.support.published import HUB
from tests.support.runs import DATA, DDPM, DIGITS, EVERY_STEP, rows, run, same_weights
from tinyldm.config.parsing import parse
from tinyldm.config.schema import SamplerSettings, TrainClassifier
from tinyldm.data.columns import LabelColumn
from tinyldm.diffusion.classifier_task import LEVELS, ClassifierTask, cross_entropy, most_frequent
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.manifest import Manifest
from tinyldm.models.classifier import NoisyClassifier, make_classifier
from tinyldm.models.classifier_loading import check_classifier, load_classifier
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.loading import load_for
from tinyldm.models.model import Model
from tinyldm.training import hub

UNET = [part for pair in zip(DDPM[::2], DDPM[1::2], strict=True) if "unet." in pair[0] for part in pair]
PIXELS = [*DIGITS, *EVERY_STEP, *UNET, "--train.batch_size", "8", "--train.learning_rate", "1e-3", "--first_stage.path", "null"]
PIXELS += ["--data.label_columns", "label", "--scheduler.num_train_timesteps", "20"]
STAGE = FirstStage(models.vq_model(scaling_factor=0.5))
COLUMNS = [LabelColumn("hat", ["none", "cap", "bow"]), LabelColumn("glasses", ["false", "true"])]


def classifier(side: int = 8, latents: dict | None = None, **scheduler) -> NoisyClassifier:
    torch.manual_seed(0)
    config = {key: value for key, value in models.scheduler(**scheduler).config.items() if not key.startswith("_")}
    return make_classifier(models.SMALL, side, 3, COLUMNS, config, latents).eval()


def of_stage(**changes) -> dict:
    return {"first_stage": STAGE.fingerprint(), "scale": 0.5, **changes}


# --------------------------------------------------------------------------------------------------------- the network


def test_the_network_is_the_way_down_and_the_middle_of_a_unet():
    network, unet = classifier(), models.unet()
    ours = {name: weight for name, weight in network.unet.state_dict().items() if not name.startswith("conv_norm_out")}
    unet = type(unet)(**network.config.network).eval()
    assert unet.load_state_dict(ours, strict=False).unexpected_keys == []
    middle = []
    unet.mid_block.register_forward_hook(lambda module, args, output: middle.append(output))
    x, times = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 10, 500, 900, 999])
    with torch.no_grad():
        unet(x, times)
        features = F.silu(network.unet.conv_norm_out(middle[0])).mean((2, 3))
        logits = network(x, times)
    assert [(name, part.shape) for name, part in logits.items()] == [("hat", (5, 3)), ("glasses", (5, 2))]
    for head, part in zip(network.heads, logits.values(), strict=True):
        torch.testing.assert_close(part, head(features))
    assert sum(p.numel() for p in network.parameters()) < 0.7 * sum(p.numel() for p in unet.parameters())


def test_cross_entropies_of_the_labels_add_up_and_unknown_ones_add_nothing():
    logits = {"a": torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 3.0]]), "b": torch.zeros(3, 4)}
    found = cross_entropy(logits, torch.tensor([[1, -1], [-1, -1], [0, 2]]))
    two, four = torch.tensor(2.0).log(), torch.tensor(4.0).log()
    torch.testing.assert_close(found, torch.stack([two, 0 * two, (1 + torch.tensor(2.0).exp()).log() + four]))


def test_the_share_of_the_most_frequent_value():
    labels = torch.tensor([[0, 1, -1], [0, -1, -1], [2, 0, -1], [1, -1, -1]])
    assert most_frequent(labels).tolist() == [0.5, 0.5, 0.0]


# ------------------------------------------------------------------------------------------------------------ training


class Always(nn.Module):
    """Says the same digit whatever it sees, with probability e / (e + 9)."""

    def __init__(self, digit: int):
        super().__init__()
        self.digit, self.values, self.times = digit, {"label": [str(i) for i in range(10)]}, []

    def forward(self, x, times):
        self.times.append(times)
        return {"label": F.one_hot(torch.full((len(x),), self.digit), 10).float()}


def test_always_the_most_frequent_digit_is_right_as_often_as_guessing():
    config = parse(
        TrainClassifier, "", ["--output_dir", "run", "--train.max_steps", "1", *PIXELS, "--train.num_eval_images", "50"]
    )
    task = ClassifierTask(config, Accelerator(cpu=True))
    digits = task.held_out.condition.labels[:, 0]
    constant = task.networks["classifier"] = Always(int(digits.bincount().argmax()))
    figures = task.summarize(task.evaluate())
    share = float(digits.bincount().max()) / 50
    for key in ("eval_accuracy", "eval_accuracy_q1", "eval_accuracy_q4", "eval_accuracy_of_label"):
        assert figures[key] == pytest.approx(share)
    assert task.guessing.tolist() == pytest.approx([share]) and (task.accuracy == task.accuracy[0]).all()
    partition = torch.tensor(2.718281828 + 9).log().item()
    assert figures["eval_loss"] == pytest.approx(partition - share, rel=1e-5)
    times = torch.cat(constant.times)  # each image once in each part of the way
    assert len(times) == 50 * LEVELS and torch.bincount(times, minlength=20).min() >= 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(arguments, run folder) of a classifier of digits."""
    args = [*PIXELS, "--train.eval_steps", 2, "--train.checkpointing_steps", 3, "--train.sample_steps", 5]
    folder = tmp_path_factory.mktemp("classifier") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, train_classifier, "--output_dir", folder, *args, "--train.max_steps", 5)
    return args, folder


@pytest.mark.slow
def test_a_run_has_its_figures_its_picture_and_its_model(trained):
    folder = trained[1]
    last = rows(folder)[-1]
    assert 0 < float(last["eval_accuracy_of_label"]) < 1 and float(last["eval_loss"]) < 4
    text = (folder / "README.md").read_text()
    assert "A classifier of noisy images of 1 x 8 x 8" in text and "image-classification" in text
    assert "| label | guessing | least noise |" in text and text.count("\n| label | ") == 2
    assert Image.open(folder / "samples" / "step-0000005.png").size == (700, 420)
    assert not Manifest(folder).foreign()
    config = json.loads((folder / "classifier" / "config.json").read_text())
    assert config["columns"] == [["label", [str(i) for i in range(10)]]] and config["latents"] is None
    network = load_classifier(str(folder))
    averaged = load_file(folder / "checkpoints" / "step-5" / "ema.safetensors")
    assert all(torch.equal(weight, averaged[name]) for name, weight in network.named_parameters())
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.slow
def test_a_push_puts_the_classifier_into_a_folder_of_its_own(trained, server):
    hub.push(trained[1], HUB, "Step 5")
    pushed = server.files("me/faces")
    assert {"classifier/config.json", "classifier/diffusion_pytorch_model.safetensors", "README.md"} <= set(pushed)
    assert b"--classifier me/faces" in pushed["README.md"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(trained, tmp_path, monkeypatch):
    args, whole = trained
    run(monkeypatch, train_classifier, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 3)
    run(monkeypatch, train_classifier, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 5, "--resume", "latest")
    for name in ("classifier", "ema"):
        file = f"checkpoints/step-5/{name}.safetensors"
        assert same_weights(whole / file, tmp_path / "run" / file)
    run(monkeypatch, train_classifier, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 5, "--resume", "latest")
    table = [line for line in (whole / "README.md").read_text().splitlines() if line.startswith("| label | ")]
    assert all(line in (tmp_path / "run" / "README.md").read_text() for line in table)  # no zeros without an evaluation


@pytest.mark.slow
def test_sample_draws_with_a_classifier(trained, tmp_path, monkeypatch):
    model, folder = tmp_path / "ddpm", trained[1]
    schedule = [
        "--scheduler.beta_schedule",
        "scaled_linear",
        "--scheduler.beta_start",
        "0.0015",
        "--scheduler.beta_end",
        "0.0195",
    ]
    run(monkeypatch, train_ddpm, "--output_dir", model, *DIGITS, *EVERY_STEP, *DDPM, *schedule, "--train.max_steps", 2)
    args = ["--model", model, "--num_images", 2, "--num_inference_steps", 5, "--scheduler", "ddim", "--output_dir"]
    run(monkeypatch, sample, *args, tmp_path / "plain", "--guidance_scale", 1)
    drawn = {}
    for name, scale in (("3", 1), ("4", 1), ("4", 20)):
        output = tmp_path / f"{name}-{scale}"
        run(monkeypatch, sample, *args, output, "--classifier", folder, "--labels", name, "--guidance_scale", scale)
        drawn[output] = (output / "samples.npz").read_bytes()
    assert len({*drawn.values(), (tmp_path / "plain" / "samples.npz").read_bytes()}) == 4
    settings = SamplerSettings(None, 5, classifier=str(folder), labels="label=4", guidance_scale=3.0)
    facts = load_for(str(model), settings).sampler_facts(settings)
    expected = FirstStage(load_classifier(str(folder))).fingerprint()[:16]
    assert (facts["classifier"], facts["labels"], facts["guidance_scale"]) == (expected, "label=4", 3.0)
    assert facts["guide"] == "classifier"


@pytest.mark.slow
def test_over_latents_it_fits_the_model_over_the_same_ones(vq_run, tmp_path, monkeypatch):
    data = [*DATA, "--data.eval_split", "null", "--data.eval_fraction", "0.1", "--data.cache_dir", tmp_path / "cache"]
    data += [*EVERY_STEP, *UNET, "--train.batch_size", "8", "--first_stage.path", vq_run, "--train.max_steps", 2]
    args = ["--output_dir", tmp_path / "run", *data, "--data.label_columns", '["hat","glasses"]']
    run(monkeypatch, train_classifier, *args)
    previews = ["--diffusion.preview_images", "4", "--diffusion.preview_steps", "2"]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "ldm", *data, *previews, "--guidance.scale", 2)
    assert "the same first stage" in (tmp_path / "run" / "README.md").read_text()
    args = ["--num_images", 2, "--num_inference_steps", 3, "--output_dir", tmp_path / "drawn"]
    fits = ["--model", tmp_path / "ldm", "--classifier", tmp_path / "run", "--labels", "glasses=none"]
    run(monkeypatch, sample, *args, *fits)
    run(monkeypatch, sample, *args[:-1], tmp_path / "half", *fits, "--dtype", "bfloat16")
    assert (tmp_path / "drawn" / "grid.png").exists() and (tmp_path / "half" / "grid.png").exists()


# ------------------------------------------------------------------------------------------------------------- loading


def test_classifiers_that_do_not_fit_are_refused():
    model = Model(Denoiser(models.unet()), models.process(), STAGE.model)
    check_classifier(model, classifier(latents=of_stage()), "c")
    check_classifier(Model(model.denoiser, models.process(), None), classifier(), "c")
    wrong = {
        "other latents or images": classifier(),
        "trained on other latents": classifier(latents=of_stage(first_stage="0")),
        "over the same first stage": classifier(latents=of_stage(scale=0.6)),
        "on other latents or images than": classifier(16, latents=of_stage()),
        "another noise schedule": classifier(latents=of_stage(), beta_end=0.01),
    }
    for words, other in wrong.items():
        with pytest.raises(UserError, match=words):
            check_classifier(model, other, "c")
    labelled = Model(Denoiser(models.unet(), models.labels()), models.process(), STAGE.model)
    with pytest.raises(UserError, match="is for models without labels; this one has labels"):
        check_classifier(labelled, classifier(latents=of_stage()), "c")


@pytest.fixture
def folder(tmp_path):
    classifier(latents=of_stage()).save_pretrained(tmp_path / "run" / "classifier")
    return tmp_path / "run"


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        load_classifier(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_classifier_that_is_read_says_what_the_written_one_says(folder):
    x, times = torch.ones(2, 3, 8, 8), torch.tensor([3, 500])
    ours, read = classifier(latents=of_stage())(x, times), load_classifier(str(folder))
    assert all(torch.equal(read(x, times)[name], ours[name]) for name in ours)
    assert load_classifier(str(folder / "classifier")).config.latents == of_stage()


def test_damaged_classifiers(folder, tmp_path):
    config, weights = (folder / "classifier" / name for name in ("config.json", "diffusion_pytorch_model.safetensors"))
    whole, values = weights.read_bytes(), json.loads(config.read_text())
    for damaged in (whole[:-100], whole[:50], b""):
        weights.write_bytes(damaged)
        assert "is damaged or is none" in refused(folder)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "heads.1.bias"}, weights, {"format": "pt"})
    assert "1 weights are missing, heads.1.bias for one" in refused(folder)
    save_file({**tensors, "heads.1.bias": torch.full((2,), torch.nan)}, weights, {"format": "pt"})
    assert "heads.1.bias is not finite" in refused(folder)
    weights.write_bytes(whole)
    network, scheduler = values["network"], values["scheduler"]
    for changes in (
        {"_class_name": "UNet2DModel"},
        {"network": {**network, "block_out_channels": [2**30, 2**30]}},
        {"network": {**network, "layers_per_block": "many"}},
        {"scheduler": {**scheduler, "beta_end": 2.0}},
        {"scheduler": None},
        {"columns": 3},
    ):
        config.write_text(json.dumps({**values, **changes}))
        refused(folder)
    config.write_text(config.read_text()[:30])
    assert "is damaged or is none" in refused(folder)
    config.write_text("[]")
    refused(folder)


def test_folders_that_hold_no_classifier(folder, tmp_path):
    assert "is not a classifier: give a run of train_classifier.py" in refused(tmp_path / "nothing")
    shutil.rmtree(folder / "classifier")
    models.vq_model().save_pretrained(folder / "classifier")
    assert "its config.json is that of a VQModel" in refused(folder)
