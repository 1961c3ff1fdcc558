"""evaluate.py on a model with a label: its accuracy, its sheets, and sweeps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

import evaluate
from tests.support import models
from tests.support.evaluations import FakeNetwork, dark_and_bright
from tests.support.runs import run
from tinyldm.data.columns import LabelColumn
from tinyldm.errors import UserError
from tinyldm.evaluation import report
from tinyldm.evaluation.sweep import best
from tinyldm.manifest import Manifest
from tinyldm.metrics import chunks, distances, features
from tinyldm.models.classifier import make_classifier
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.export import save_pipeline
from tinyldm.models.model import Model
from tinyldm.portable.label_embedding import LabelEmbedding

pytestmark = pytest.mark.slow


@pytest.fixture
def network(monkeypatch):
    torch.set_num_threads(1)
    fake = FakeNetwork()
    monkeypatch.setattr(features, "NETWORKS", {"inception": fake.load})
    return fake


@pytest.fixture
def model(network, tmp_path) -> list[str]:
    """A model of untrained weights with the label of the data, and the stored guidance scale 2."""
    torch.manual_seed(0)
    embedding = LabelEmbedding([["label", ["b-bright", "a-dark"]]], 32, 4)  # numbered in another order than the data's
    embedding.rows = torch.tensor([[0], [1], [1], [1]])
    made = Model(Denoiser(models.unet(labelled=True), embedding), models.process(), None, None, 2.0)
    save_pipeline(tmp_path / "model", "DDPMPipeline", made, DDIMScheduler.from_config(models.scheduler().config))
    data = [*dark_and_bright(tmp_path), "--data.label_columns", "label", "--metrics", "fid,prdc,labels"]
    return ["--model", str(tmp_path / "model"), "--num_inference_steps", "2", "--num_images", "64", *data]


@pytest.fixture
def go(monkeypatch, tmp_path, capsys):
    """Run evaluate.py; returns its result and what was printed."""

    def go(*args, output: str = "out") -> tuple[dict, str]:
        run(monkeypatch, evaluate, *args, "--output_dir", tmp_path / output)
        return json.loads((tmp_path / output / "evaluation.json").read_text())["results"][0], capsys.readouterr().out

    return go


def drawn_features(folder: Path) -> np.ndarray:
    key = json.loads((folder / "made_of.json").read_text())
    return chunks.Chunks(folder, key, "").read(64)["features"]


def test_label_accuracy_distances_by_value_and_sheets(model, go, tmp_path):
    found, printed = go(*model)
    label = found["labels"]["columns"]["label"]
    assert label["balanced"]["real images"]["value"] == 1 and label["values"] == 2
    assert 0 <= label["balanced"]["samples"]["value"] <= 1 and found["labels"]["mean"]["ratio"] == label["ratio"]
    (dark,) = found["values"]  # three of four; of the others there are too few
    assert dark["value"] == "a-dark" and 36 <= dark["figures"]["samples"]["images"] <= 60
    labels = LabelEmbedding.from_pretrained(tmp_path / "model/labels").draw(range(64), {})[:, 0].numpy()
    ours = drawn_features(tmp_path / "out/features/inception-samples")[labels == 1]
    reference = np.load(tmp_path / "out/reference-inception-held_out.npz")["features"]
    reference = reference[reference.mean(1) < 2.4]  # features are pixels / 50
    assert dark["reference"] == len(reference)
    assert dark["figures"]["samples"] == {**distances.frechet(ours, reference)._asdict(), "images": len(ours)}
    assert "label=b-bright (" in " ".join(found["notes"])
    assert "label accuracy" not in found["figures"] and "\nlabel  2 " in printed and "\nlabel=a-dark " in printed
    assert "2 steps, guidance scale 2 (without labels), seeds 0 to 63" in printed
    metrics = dict(report.main_metrics(found))
    assert metrics["label accuracy (inception)"] == label["balanced"]["samples"]
    images = json.loads((tmp_path / "out/evaluation.json").read_text())["images"]
    text = report.markdown(images, [found])
    assert re.search(r"^\| label \| 2 \| [\d.]+% \[.*\] \| 100.0% \[", text, re.MULTILINE)
    assert re.search(rf"^\| label=a-dark \| .* \| {len(ours)} \| \d+ \| {len(reference)} \|$", text, re.MULTILINE)
    for name, columns in (("labels", 2), ("guidance", 5)):  # tiles of 8 px, 2 px apart, enlarged 16 times
        grid = 16 * (10 * columns + 2)
        assert Image.open(tmp_path / f"out/{name}.png").width == grid + grid // columns
    assert not Manifest(tmp_path / "out").foreign()


def test_label_accuracy_of_a_model_that_a_classifier_guides(model, go, tmp_path):
    save_pipeline(
        tmp_path / "plain", "DDPMPipeline", Model(Denoiser(models.unet()), models.process(), None), models.scheduler()
    )
    columns = [LabelColumn("label", ["b-bright", "a-dark"]), LabelColumn("hat", ["none", "cap"])]
    config = {key: value for key, value in models.scheduler().config.items() if not key.startswith("_")}
    make_classifier(models.SMALL, 8, 3, columns, config).save_pretrained(tmp_path / "classifier")
    drawn = [*model, "--model", tmp_path / "plain", "--classifier", tmp_path / "classifier"]
    found, _ = go(*drawn, "--labels", "label=a-dark,hat=cap")
    (name, label), *others = found["labels"]["columns"].items()
    assert name == "label" and label["values"] == 1 and not others  # the data have no hats
    assert {value["value"] for value in found["values"]} == {"a-dark"}
    other, _ = go(*drawn, "--labels", "label=b-bright", output="bright")
    right = [columns["labels"]["columns"]["label"]["plain"]["samples"]["value"] for columns in (found, other)]
    assert right[0] + right[1] == pytest.approx(1, abs=0.05)  # untrained, it changes little
    only = [*model, "--model", tmp_path / "plain", "--metrics", "labels"]
    with pytest.raises(UserError, match="metrics is labels, which cannot be measured: the model has no labels"):
        go(*only, output="none")


def test_a_sweep_equals_single_evaluations_to_the_bit(model, go, tmp_path, network):
    found, printed = go(*model, "--sweep", "guidance_scale=1,2,3")
    assert [(value["key"], value["value"]) for value in found["sweep"]] == [("guidance_scale", w) for w in (1, 2, 3)]
    for value in found["sweep"]:
        single, _ = go(*model, "--guidance_scale", value["value"], output=f"single-{value['value']}")
        expected = {name: columns["samples"] for name, columns in single["figures"].items()}
        expected["label accuracy"] = single["labels"]["mean"]["balanced"]["samples"]
        assert value["figures"] == expected
    assert found["sweep"][0]["figures"]["FID"] != found["sweep"][2]["figures"]["FID"]
    folders = sorted(path.name for path in (tmp_path / "out/sweep").iterdir())
    assert folders == ["guidance_scale-1", "guidance_scale-3"]  # the model's own scale is 2
    name = found["sweep"][best(found["sweep"], "FID")]["value"]
    assert f"guidance_scale, each value with the same noise; the smallest FID is that of {name:g}." in printed
    assert "label accuracy ↑" in printed and (tmp_path / "out/sweep.png").exists()
    assert not Manifest(tmp_path / "out").foreign()
    go(*model, "--overwrite", "true")
    assert not (tmp_path / "out/sweep").exists() and not (tmp_path / "out/sweep.png").exists()


def test_a_sweep_resumes_after_a_kill(model, go, network, monkeypatch):
    sweep = ["--sweep", "num_inference_steps=2,3", *model]
    whole, _ = go(*sweep, output="whole")
    monkeypatch.setattr(chunks, "SECONDS", 0.0)
    network.seen, network.fail = 0, 64 + 40  # the features of the data are kept
    with pytest.raises(KeyboardInterrupt):
        go(*sweep, "--batch_size", 8)
    network.seen, network.fail = 0, None
    assert go(*sweep, "--batch_size", 8)[0]["sweep"][1]["figures"].keys() == whole["sweep"][1]["figures"].keys()
    assert 24 <= network.seen <= 32
    network.seen = 0
    assert go(*sweep, output="whole")[0] == whole and network.seen == 0


def test_a_model_whose_labels_the_data_do_not_have(model, go):
    others = [*model[: model.index("--data.label_columns")], "--num_images", "24"]
    found, _ = go(*others, "--metrics", "fid,labels")
    note = "no label accuracy: set data.label_columns to labels of the model (label)"
    assert "labels" not in found and note in found["notes"]
    with pytest.raises(UserError, match=r"metrics is labels, which cannot be measured: set data.label_columns"):
        go(*others, "--metrics", "labels")


def test_a_saved_reference_of_other_images_is_refused(model, go, tmp_path):
    go(*model)
    saved = (tmp_path / "out/reference-inception-held_out.npz").rename(tmp_path / "reference.npz")
    assert "labels" in go(*model, "--reference", saved, output="again")[0]
    for file in (tmp_path / "data/a-dark").glob("00*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"is of other images than data.name has now: remove --reference"):
        go(*model, "--reference", saved, output="less")
