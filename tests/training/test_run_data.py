"""What a run says and keeps about its data, and what happens to it when the data change."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from diffusers import VQModel

import sample
import train_ddpm
import train_ldm
from tests.support.runs import DDPM, EVERY_STEP, LDM, run
from tests.support.sources import corrupt, folder, picture, values
from tinyldm.data.batch import UNKNOWN
from tinyldm.data.description import Description, Label, compare
from tinyldm.errors import UserError

pytestmark = pytest.mark.slow

PETS = {f"{name}/{name}{i}.png": picture(30 * i + len(name)) for name in ("cat", "zebra", "ant 10", "ant 9") for i in range(6)}


def pets_args(path, *more) -> list:
    data = ["--data.name", path / "pets", "--data.resolution", 8, "--data.label_columns", "label", "--data.eval_fraction", 0.2]
    return ["--output_dir", path / "run", *data, *DDPM, *EVERY_STEP, *more]


def read(path) -> dict:
    return json.loads((path / "run/data.json").read_text())


def test_a_run_says_what_it_read_and_names_its_classes(tmp_path, monkeypatch, capsys):
    folder(tmp_path / "pets", PETS | {"cat/broken.png": corrupt(3), "cat/x.heic": b"", "notes.txt": b"x"})
    run(monkeypatch, train_ddpm, *pets_args(tmp_path, "--train.max_steps", 9))
    out = capsys.readouterr()
    assert "label label: ant 9 (" in out.out and ".heic" in out.out and "held out: 20% of the images" in out.out
    data = read(tmp_path)
    assert (data["found"], data["read"], data["column"], data["split"]) == (26, 24, "image", "train")
    assert data["ignored"] == {".heic (pip install pillow-heif)": 1, ".txt": 1, "unreadable": 1}
    assert data["ignored_names"]["unreadable"] == ["broken.png"] and out.err.count("broken.png") == 1  # in three epochs
    assert values(data) == ["ant 9", "ant 10", "cat", "zebra"]
    assert sum(value["count"] for value in data["labels"]["label"]["values"]) + data["held_out"]["images"] == 25
    assert "ant 9, ant 10, cat, zebra" in (tmp_path / "run/README.md").read_text()
    args = ["--model", tmp_path / "run", "--num_images", 2, "--num_inference_steps", 2]
    run(monkeypatch, sample, *args, "--labels", "cat", "--output_dir", tmp_path / "short")
    run(monkeypatch, sample, *args, "--labels", "label=cat", "--output_dir", tmp_path / "long")
    grids = [(tmp_path / name / "grid.png").read_bytes() for name in ("short", "long")]
    assert grids[0] == grids[1]
    with pytest.raises(UserError, match=r"'cats' \(did you mean 'cat'\?\); it has: ant 9, ant 10, cat"):
        run(monkeypatch, sample, *args, "--labels", "label=cats", "--output_dir", tmp_path / "none")


def test_a_resumed_run_refuses_classes_that_mean_something_else(tmp_path, monkeypatch, capsys):
    folder(tmp_path / "pets", PETS)
    run(monkeypatch, train_ddpm, *pets_args(tmp_path, "--train.max_steps", 1))
    (tmp_path / "pets/cat").rename(tmp_path / "pets/a cat")
    with pytest.raises(UserError, match="label label was ant 9, ant 10, cat, zebra and is a cat, ant 9"):
        run(monkeypatch, train_ddpm, *pets_args(tmp_path, "--train.max_steps", 2, "--resume", "latest"))
    (tmp_path / "pets/a cat").rename(tmp_path / "pets/cat")
    folder(tmp_path / "pets", {"cat/more.png": picture(999)})
    run(monkeypatch, train_ddpm, *pets_args(tmp_path, "--train.max_steps", 2, "--resume", "latest"))
    assert "the data changed since step-1" in capsys.readouterr().err and read(tmp_path)["read"] == 25


def test_the_latent_scale_of_a_resumed_run_is_kept_when_a_picture_is_added(vq_run, tmp_path, monkeypatch):
    vq = VQModel.from_pretrained(vq_run, subfolder="vqvae")
    vq.register_to_config(scaling_factor=0.18215)  # VQModel's default, which the data replace
    vq.save_pretrained(tmp_path / "vq")
    folder(tmp_path / "faces", {f"{i}.png": picture(31 * i, 16, 16) for i in range(40)})
    data = ["--data.name", tmp_path / "faces", "--data.resolution", 16, "--data.cache_dir", tmp_path / "cache"]
    args = ["--output_dir", tmp_path / "run", *data, *LDM, *EVERY_STEP, "--first_stage.path", tmp_path / "vq"]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 1)

    def scale() -> float:
        return VQModel.from_pretrained(tmp_path / "run/pipeline", subfolder="vqvae").config.scaling_factor

    before = scale()
    folder(tmp_path / "faces", {"more.png": picture(65000, 16, 16)})
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 2, "--resume", "latest")
    assert scale() == before != 0.18215


def test_what_changed_in_the_data_is_named():
    labels = {"kind": Label.of(["bus", "car"])}
    old = Description("a", "folder", "image", "train", 5, "5% of the images", 45, 60, labels=labels)
    new = Description("a", "folder", "image", "train", 6, "5% of the images", 45, 61, labels=labels)
    before, now = old.to_json(), new.to_json()
    assert compare(before, before, "step-1") == []
    assert compare(before, now, "step-1") == ["found 60 -> 61", "held out 5, 5% of the images -> 6, 5% of the images"]
    assert compare({**before, "found": None}, now, "step-1") == ["held out 5, 5% of the images -> 6, 5% of the images"]
    for changed, words in (
        ({"kind": Label.of(["bus", "car", "van"])}, "label kind was bus, car and is bus, car, van now"),
        ({"colour": Label.of(["red"]), **labels}, "they were kind and are colour, kind now"),
        ({}, "they were kind and are none now"),
    ):
        with pytest.raises(UserError, match=words):
            compare(before, replace(new, labels=changed).to_json(), "step-1")


def test_rare_labels_are_counted_and_mentioned():
    label = Label.of(["a", "b", "c"])
    label.count(Counter({0: 500, 1: 9, UNKNOWN: 3}))
    text = "\n".join(Description("x", "folder", "image", "train", 5, "hash", 512, labels={"kind": label}).lines())
    assert "label kind: a (500), b (9), c (0); unknown (3)" in text
    assert "fewer than 10 training images, too few to learn: kind=b (9), kind=c (0)" in text


def test_a_training_part_of_a_few_images_has_a_card(tmp_path, monkeypatch):
    """Nearly all held out: an epoch takes no measurable time, and a batch is larger than the part."""
    folder(tmp_path / "pets", {f"{i}.png": picture(i) for i in range(200)})
    args = ["--output_dir", tmp_path / "run", "--data.name", tmp_path / "pets", "--data.resolution", 8, *DDPM, *EVERY_STEP]
    run(monkeypatch, train_ddpm, *args, "--data.eval_fraction", 0.98, "--train.max_steps", 1)
    data = read(tmp_path)
    assert 0 < data["read"] - data["held_out"]["images"] < 15 and "8 images seen" in (tmp_path / "run/README.md").read_text()
