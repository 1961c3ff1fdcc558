"""python -m tinyldm.ema, sample.py --ema and evaluate.py --ema, on a tiny run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import evaluate
import sample
import train_ddpm
import train_ldm
from tests.support.evaluations import FakeNetwork
from tests.support.runs import DDPM, DIGITS, EVERY_STEP, ROOT, rows, run
from tinyldm.config.ema import read
from tinyldm.errors import UserError
from tinyldm.evaluation.ema_lengths import compare
from tinyldm.manifest import Manifest
from tinyldm.metrics import features
from tinyldm.models.loading import load_model
from tinyldm.training.power_ema import reconstruct

pytestmark = pytest.mark.slow
FEW = ["--num_images", "20", "--num_inference_steps", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    args = [*DIGITS, *EVERY_STEP, *DDPM, "--data.cache_dir", folder / "cache", "--train.ema_snapshot_steps", 1]
    with pytest.MonkeyPatch.context() as patch:
        run(patch, train_ddpm, "--output_dir", folder / "run", *args, "--train.max_steps", 4)
    return folder / "run"


@pytest.fixture
def model(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def network(monkeypatch) -> FakeNetwork:
    network = FakeNetwork()
    monkeypatch.setattr(features, "NETWORKS", {"inception": network.load})
    return network


def measured(model: Path, *args: str) -> list[dict]:
    compare(read(None, [str(model), *FEW, "--widths", "[0.2,0.05]", *args]))
    return json.loads((model / "ema.json").read_text())["averages"]


def evaluated(monkeypatch, model: Path, output: str, *args: str) -> dict:
    options = ["--metrics", "fid", "--anchors", "false", "--output_dir", model.parent / output, *FEW, *args]
    run(monkeypatch, evaluate, "--model", model, *options)
    return json.loads((model.parent / output / "evaluation.json").read_text())


def test_each_distance_is_that_of_evaluate(model, network, monkeypatch):
    found = measured(model)
    assert [row["width"] for row in found] == [None, 0.05, 0.2]
    assert "misfit" not in found[0] and found[1]["misfit"] == pytest.approx(0, abs=1e-6) and 0 < found[2]["misfit"] < 0.5
    for row, args in zip(found, ([], ["--ema", "0.05"], ["--ema", "0.2"]), strict=True):
        (result,) = evaluated(monkeypatch, model, f"out{row['width']}", *args)["results"]
        assert {key: row[key] for key in ("value", "low", "high")} == {
            key: result["figures"]["FID"]["samples"][key] for key in ("value", "low", "high")
        }
    assert len({row["value"] for row in found}) == 3
    assert (model / "ema.png").stat().st_size > 1000 and not Manifest(model).foreign()


def test_a_second_comparison_draws_nothing_again(model, network):
    first = measured(model)
    seen = network.seen
    assert seen > 0 and measured(model) == first and network.seen == seen


def test_the_width_is_in_the_key_of_an_evaluation_and_the_report_stays(model, network, monkeypatch):
    report = (model / "README.md").read_text()
    images = evaluated(monkeypatch, model, "out", "--ema", "0.07")["images"]
    assert images["weights"] == "EMA, relative width 0.07 at step 4"
    assert (model / "README.md").read_text() == report and not (model / "evaluation.json").exists()
    with pytest.raises(UserError, match="other settings"):
        evaluated(monkeypatch, model, "out", "--ema", "0.08")


def test_the_loss_of_the_saved_average_is_that_of_the_training(model):
    compare(read(None, [str(model), "--metric", "loss", "--widths", "[0.28]"]))
    saved, wide = json.loads((model / "ema-loss.json").read_text())["averages"]
    assert saved["value"] == pytest.approx(float(rows(model)[-1]["eval_loss"]), rel=1e-5)
    assert wide["value"] != saved["value"]


def test_the_loss_of_a_latent_model(ldm_args, tmp_path, monkeypatch):
    args = [*ldm_args, "--train.max_steps", 3, "--train.ema_snapshot_steps", 1]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "run", *args)
    compare(read(None, [str(tmp_path / "run"), "--metric", "loss"]))
    saved = json.loads((tmp_path / "run" / "ema-loss.json").read_text())["averages"][0]
    assert saved["value"] == pytest.approx(float(rows(tmp_path / "run")[-1]["eval_loss"]), rel=1e-5)


def test_the_best_one_is_exported_as_a_pipeline(model, network):
    folder = model.parent / "best"
    found = measured(model, "--export", str(folder))
    best = min(found[1:], key=lambda row: row["value"])["width"]
    exported = DiffusionPipeline.from_pretrained(folder).unet.state_dict()
    expected = {name.removeprefix("unet."): weight for name, weight in reconstruct(str(model), best).items()}
    assert exported.keys() == expected.keys() and all(torch.equal(exported[name], expected[name]) for name in expected)
    saved = load_file(model / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(saved[name], exported[name]) for name in saved)
    assert not Manifest(folder).foreign()
    before = network.seen
    for used in (folder, model, folder / "model_index.json"):
        with pytest.raises(UserError, match="choose another folder"):
            measured(model, "--export", str(used))
    assert network.seen == before  # refused before anything is drawn


def test_labels_are_averaged_too(tmp_path, monkeypatch):
    args = [
        *DIGITS,
        *EVERY_STEP,
        *DDPM,
        "--data.label_columns",
        "label",
        "--train.ema_snapshot_steps",
        1,
        "--train.max_steps",
        3,
    ]
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args)
    saved, averaged = (load_model(str(tmp_path / "run"), ema=width).labels for width in (None, 0.2))
    expected = reconstruct(str(tmp_path / "run"), 0.2)["labels.vectors.0"]
    assert torch.equal(averaged.vectors[0], expected) and not torch.equal(saved.vectors[0], expected)
    assert torch.equal(averaged.rows, saved.rows)  # a buffer, which is not averaged


def test_sample_draws_with_the_average(model, monkeypatch):
    def drawn(name: str, *args: str) -> bytes:
        run(monkeypatch, sample, "--output_dir", model.parent / name, "--num_images", 1, "--num_inference_steps", 2, *args)
        return (model.parent / name / "images" / "seed-000000.png").read_bytes()

    average = load_model(str(model), ema=0.05).unet
    shutil.copytree(model / "pipeline", model.parent / "average")
    average.save_pretrained(model.parent / "average" / "unet")
    wanted = drawn("expected", "--model", str(model.parent / "average"))
    assert drawn("average-of-run", "--model", str(model), "--ema", "0.05") == wanted
    assert drawn("saved", "--model", str(model)) != wanted


def test_snapshots_of_another_network_are_refused(model):
    unet = load_model(str(model)).unet
    other = type(unet).from_config({**unet.config, "layers_per_block": 2})
    other.save_pretrained(model / "pipeline" / "unet")
    with pytest.raises(UserError, match=r"snapshots of .* are of another network"):
        load_model(str(model), ema=0.05)


@pytest.mark.parametrize("name", ["pipeline", "none"])
def test_what_is_no_run_is_refused(model, name):
    for call in (lambda path: load_model(path, ema=0.05), lambda path: compare(read(None, [path]))):
        with pytest.raises(UserError, match="not a run folder"):
            call(str(model / name))


def test_no_widths_and_images_are_refused(monkeypatch):
    with pytest.raises(UserError, match="widths is empty"):
        read(None, ["run", "--widths", "[]"])
    with pytest.raises(UserError, match="ema averages the weights of a run"):
        run(monkeypatch, evaluate, "--images", "x", "--ema", "0.1")


def test_the_command_explains_itself():
    command = [sys.executable, "-X", "importtime", "-m", "tinyldm.ema", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: python -m tinyldm.ema" in done.stdout and "--widths" in done.stdout
    assert " torch\n" not in done.stderr
