"""The Frechet distance during training: it equals that of distances.py, and chooses the best checkpoint."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import train_ddpm
import train_ldm
import train_vq
from tests.support.evaluations import FakeNetwork
from tests.support.runs import DDPM, EVERY_STEP, VQ, rows, run
from tinyldm.config.parsing import parse
from tinyldm.config.schema import SamplerSettings, TrainDDPM
from tinyldm.data.images import Images, first_images
from tinyldm.data.sources import open_sources
from tinyldm.drawing import sampling
from tinyldm.errors import UserError
from tinyldm.metrics import distances as metrics
from tinyldm.metrics import features
from tinyldm.metrics.while_training import Quality, memorises
from tinyldm.models.loading import load_model
from tinyldm.training import checkpoint

pytestmark = pytest.mark.slow


MEASURED = ["--train.metrics_steps", 2, "--train.num_metrics_images", 30, "--train.best_by", "eval_fd"]


@pytest.fixture(autouse=True)
def network(monkeypatch):
    fake = FakeNetwork()
    monkeypatch.setattr(features, "NETWORKS", {"inception": fake.load})
    return fake


@pytest.fixture
def data(small_faces, tmp_path):
    half = ["--data.eval_fraction", 0.5, "--data.resolution", 16]
    return ["--data.name", small_faces, *half, "--data.cache_dir", tmp_path / "cache"]


@pytest.fixture
def args(data):
    return [*data, *DDPM, *EVERY_STEP, *MEASURED, "--train.checkpointing_steps", 2, "--train.checkpoints_total_limit", 1]


def test_it_equals_the_distance_of_the_samples_of_the_run(args, tmp_path, monkeypatch, network):
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 4)
    measured = {row["step"]: float(row["eval_fd"]) for row in rows(tmp_path / "run") if row["eval_fd"]}
    assert measured.keys() == {"2", "4"}

    model = load_model(str(tmp_path / "run"))
    settings = SamplerSettings("ddim", 2, guidance_scale=1.0)
    drawn = network.embed(torch.cat(list(sampling.sample(model, 30, 7, 0, settings))))["features"]
    config = parse(TrainDDPM, "", ["--output_dir", "run", *map(str, args), "--train.max_steps", "4"])
    quality = Quality(config, Accelerator(cpu=True))
    held_out = Images.of(open_sources(config.data, config.seed)[1], config.data)
    reference = network.embed(first_images(held_out, 1000))["features"]
    assert measured["4"] == pytest.approx(metrics.frechet(drawn, reference).value, rel=1e-4)
    assert quality.mean == pytest.approx(reference.mean(0))


def test_shares_of_ranks_add_up(args):
    config = parse(TrainDDPM, "", ["--output_dir", "run", *map(str, args), "--train.max_steps", "4"])
    quality, images = Quality(config, Accelerator(cpu=True)), torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8)
    whole = quality.distance(quality.sums([images]))
    parts = [quality.sums(share.split(4)) for share in images.split(17)]
    assert quality.distance({key: parts[0][key] + parts[1][key] for key in parts[0]}) == pytest.approx(whole, rel=1e-5)
    broken = parts[0] | {"products": torch.full_like(parts[0]["products"], torch.nan)}
    assert np.isnan(quality.distance(broken))


def test_the_best_checkpoint_is_the_nearest_one_and_stays(args, tmp_path, monkeypatch):
    distances = iter([3.0, 2.0, float("nan"), 2.5])
    monkeypatch.setattr(Quality, "distance", lambda self, sums: next(distances))
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 8)
    assert checkpoint.steps(tmp_path / "run") == [4, 8]
    state = json.loads((tmp_path / "run/checkpoints/step-8/state.json").read_text())
    assert (state["best_step"], state["best_figure"]) == (4, 2.0)
    assert "The best checkpoint by `eval_fd` is that of step 4." in (tmp_path / "run/README.md").read_text()

    best = tmp_path / "run/checkpoints/step-4"  # and it becomes the exported model
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 4, "--resume", best)
    shipped = load_file(tmp_path / "run/pipeline/unet/diffusion_pytorch_model.safetensors")
    averaged = {name.removeprefix("unet."): value for name, value in load_file(best / "ema.safetensors").items()}
    assert shipped.keys() == averaged.keys() and all(torch.equal(shipped[name], averaged[name]) for name in shipped)


def test_measuring_does_not_change_the_training(args, tmp_path, monkeypatch):
    for name, every in (("with", 2), ("without", "null")):
        more = ["--train.max_steps", 4, "--train.metrics_steps", every, "--train.best_by", "eval_loss"]
        run(monkeypatch, train_ddpm, "--output_dir", tmp_path / name, *args, *more)
    columns = [[(row["loss"], row["eval_loss"]) for row in rows(tmp_path / name)] for name in ("with", "without")]
    assert columns[0] == columns[1]


def test_a_first_stage_is_measured_by_its_reconstructions(data, tmp_path, monkeypatch):
    more = [*EVERY_STEP, *VQ, *MEASURED, "--train.num_eval_images", 30, "--train.max_steps", 2]
    run(monkeypatch, train_vq, "--output_dir", tmp_path / "run", *data, *more)
    assert float(rows(tmp_path / "run")[-1]["eval_fd"]) > 0


def test_of_latents(ldm_args, tmp_path, monkeypatch):
    held_out = ["--data.eval_fraction", 0.5]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "run", *ldm_args, *MEASURED, *held_out, "--train.max_steps", 2)
    assert float(rows(tmp_path / "run")[-1]["eval_fd"]) > 0
    assert "| Frechet distance |" in (tmp_path / "run/README.md").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--train.metrics_steps", "null"], "best_by eval_fd needs train.metrics_steps"),
        (["--train.num_metrics_images", 19], "give a whole number of at least 20"),
        (["--data.eval_fraction", 0.1], r"images \(the held-out part\) are too few"),
    ],
)
def test_refused_settings(args, more, words, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=words):
        run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 1, *more)


def test_few_training_images_are_watched(args, tmp_path, monkeypatch):
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args, "--train.max_steps", 2)
    share = [float(row["eval_nearer"]) for row in rows(tmp_path / "run") if row["eval_nearer"]]
    assert len(share) == 1 and 0 <= share[0] <= 1


def test_copies_of_training_images_are_told(args, monkeypatch):
    config = parse(TrainDDPM, "", ["--output_dir", "run", *map(str, args), "--train.max_steps", "4"])
    quality = Quality(config, Accelerator(cpu=True))
    train, held_out = open_sources(config.data, config.seed)
    for source, low, high in ((train, 0.95, 1.0), (held_out, 0.3, 0.7)):
        batch = first_images(Images.of(source, config.data), 20)
        share = quality.figures(quality.sums([batch]))["eval_nearer"]
        assert low <= share <= high
        assert (memorises({"eval_nearer": share}) is not None) == (source is train)
