"""Evaluating a run again, on its own and on other images, and pushing it."""

import csv
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tests.support import zsl as support
from tests.support.published import TOKEN
from tinyldm.config.parsing import parse
from tinyldm.config.schema import HubConfig
from tinyldm.errors import UserError
from tinyldm.training import hub
from zsl.__main__ import main
from zsl.config import Train
from zsl.division import divide
from zsl.job import load_generator
from zsl.load import load


def evaluate(run, capsys, out, *args) -> tuple[dict, str]:
    main(["evaluate", "--run", str(run), "--output_dir", str(out), *map(str, args)])
    with (out / "evaluation.csv").open(newline="") as file:
        values = {(row["method"], int(row["seed"]), row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    return values, capsys.readouterr().out


def test_the_chosen_generators_reproduce_the_results_of_the_run(tiny_run, capsys, tmp_path):
    values, table = evaluate(tiny_run, capsys, tmp_path)
    with (tiny_run / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["protocol"], row["metric"]) == ("honest", "top1")]
    for row in rows:
        if row["method"] not in ("prototype", "eszsl"):
            assert values[row["method"], int(row["seed"]), "top1"] == float(row["value"])
    assert len(values) == 4 * 2 * 6 and "cizsl-kl" in table
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    curve = (tmp_path / "curve.csv").read_text()
    assert curve == (tiny_run / "curve.csv").read_text() and curve.startswith("name,offset,seen,unseen\ngazsl,-inf,")


def test_a_run_with_anchors_reproduces_its_results_too(birds, capsys, tmp_path, no_feature_plots):
    run = tmp_path / "run"
    args = ["--data.path", birds, "--method", "cizsl", "--text.anchors", 3, "--output_dir", run, *support.TINY]
    main(["train", *map(str, args)])
    values, _ = evaluate(run, capsys, tmp_path)
    with (run / "results.csv").open(newline="") as file:
        rows = {tuple(row.values())[:4]: float(row["value"]) for row in csv.DictReader(file)}
    for seed in (0, 1):
        assert values["cizsl", seed, "top1"] == rows["cizsl", str(seed), "honest", "top1"]


def test_other_images_of_the_same_classes(tiny_run, capsys, tmp_path):
    """All of them are tested, since none was used for training."""
    new = support.dataset(seed=0)
    np.savez(tmp_path / "new.npz", features=new.features, labels=new.labels + 1)
    other, _ = evaluate(tiny_run, capsys, tmp_path / "new", "--data", tmp_path / "new.npz")
    own, _ = evaluate(tiny_run, capsys, tmp_path / "own")
    assert other["gazsl", 0, "top1"] == own["gazsl", 0, "top1"]  # the same unseen images
    assert other["gazsl", 0, "seen"] != own["gazsl", 0, "seen"] or other["cizsl", 0, "seen"] != own["cizsl", 0, "seen"]
    for changes, words in (
        ({"features": new.features[:, :5]}, "has features of size 5, but those of this run have size 6"),
        ({"labels": new.labels % 3 + 1}, "no image is of an unseen class"),
        ({"labels": new.labels + 9}, "class 11 has no text"),
        ({"features": new.features * np.nan}, "features must be finite numbers"),
    ):
        np.savez(tmp_path / "bad.npz", **{"features": new.features, "labels": new.labels + 1, **changes})
        with pytest.raises(UserError, match=words):
            main(["evaluate", "--run", str(tiny_run), "--data", str(tmp_path / "bad.npz")])


def test_a_damaged_generator_and_a_run_without_generators(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "model" / "gazsl" / "seed-0.safetensors").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"seed-0.safetensors is not a generator of this run"):
        main(["evaluate", "--run", str(run)])
    for method in ("gazsl", "cizsl", "cizsl-kl", "cizslv2"):
        shutil.rmtree(run / "model" / method)
    with pytest.raises(UserError, match="holds no generator yet"):
        main(["evaluate", "--run", str(run)])


def test_a_generator_is_saved_with_its_scaling(tiny_run):
    config = parse(Train, "", ["--config", str(tiny_run / "config.yaml")])
    _, scaling = load_generator(tiny_run / "model" / "cizsl" / "seed-1.safetensors", config)
    dataset = load(config.data.path)
    scaled = scaling.apply(dataset.features[divide(dataset, 1, config.data.held_out_images).train])
    assert scaled.mean() == pytest.approx(0, abs=1e-5) and scaled.std() == pytest.approx(1, rel=1e-4)


def test_a_run_can_be_pushed(server, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert hub.push(run, HubConfig(True, "me/birds"), "x") == f"{server.url}/me/birds"
    pushed = server.files("me/birds")
    models = {
        f"model/{method}/seed-{seed}.safetensors" for method in ("gazsl", "cizsl", "cizsl-kl", "cizslv2") for seed in (0, 1)
    }
    pictures = {f"features-{method}.png" for method in ("gazsl", "cizsl", "cizsl-kl", "cizslv2")} | {"curve.png", "curve.csv"}
    assert set(pushed) == models | pictures | {"model/classes.npz", "README.md", "config.yaml", "results.csv"}
    card = ModelCard.load("me/birds")
    assert card.data.eval_results[0].metric_type == "accuracy" and "zero-shot-learning" in card.data.tags


def test_training_pushes_the_run(server, birds, tmp_path, capsys, no_feature_plots):
    args = ["--data.path", birds, "--output_dir", tmp_path / "run", *support.TINY, "--method", "gazsl", "--seeds", "1"]
    main(["train", *map(str, args), "--hub.push", "true", "--hub.repo_id", "me/birds"])
    assert capsys.readouterr().out.endswith(f"pushed to {server.url}/me/birds\n")
    assert "model/gazsl/seed-0.safetensors" in server.files("me/birds")
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        assert TOKEN.encode() not in file.read_bytes(), file
