import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image

from tests.support import models, sources
from tinyldm.config.evaluate import Evaluate
from tinyldm.config.schema import DataConfig
from tinyldm.errors import UserError
from tinyldm.evaluation import models as evaluation_models
from tinyldm.evaluation.models import open_model
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.metrics import image_sets
from tinyldm.metrics.image_sets import data_part, open_images, part_labels, pick, random_part
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model

DATA = DataConfig(resolution=8)


def folder(path: Path, count: int) -> Path:
    return sources.folder(path, {f"{i:03d}.png": sources.picture(i, 8, 8) for i in range(count)})


def numbers(images: image_sets.ImageSet, position: int = 0, limit: int | None = None) -> list[tuple[list[int], int]]:
    return [(sources.numbers(batch), after) for batch, after in images.batches(position, limit)]


# ------------------------------------------------------------------------------------------------------------ their images


def test_a_folder_and_an_npz_from_any_position_on(tmp_path):
    arrays = np.stack([np.asarray(Image.open(file)) for file in sorted(folder(tmp_path / "a", 10).iterdir())])
    np.savez(tmp_path / "a.npz", arrays)
    for path in ("a", "a.npz"):
        images = open_images(str(tmp_path / path), DATA, batch_size=4)
        assert images.count == 10
        assert numbers(images) == [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 8), ([8, 9], 10)]
        assert numbers(images, 3, 6) == [([3, 4, 5, 6], 7), ([7, 8], 9)]
        assert numbers(images, 10) == [] and numbers(images, 9, 5) == [([9], 10)]
        assert sources.numbers(pick(images, np.array([7, 2, 2, 5]))) == [7, 2, 2, 5]


def test_a_part_of_a_data_set_resumes_after_unreadable_images(tmp_path):
    contents = [sources.corrupt(i) if i in (30, 31) else sources.picture(i) for i in range(100)]
    images = data_part(sources.whole(sources.parquet(tmp_path / "p", [contents])), DATA, "train", 0, batch_size=16)
    whole = numbers(images)
    assert [number for batch, _ in whole for number in batch] == [i for i in range(100) if i not in (30, 31)]
    after = whole[1][1]  # two batches of 16, over two unreadable ones
    assert after == 34 and numbers(images, after) == whole[2:]
    assert sources.numbers(pick(images, np.array([29, 30]))) == [29, 32]


@pytest.mark.parametrize("limit", [None, 40])
def test_labels_are_those_of_the_images_without_unreadable_ones(tmp_path, limit):
    contents = [sources.corrupt(i) if i in (30, 31) else sources.picture(i) for i in range(60)]
    path = sources.parquet(tmp_path / "p", [contents])
    data = DataConfig(name=str(path), resolution=8, label_columns="label", cache_dir=str(tmp_path / "cache"), streaming=False)
    source = sources.whole(path, label_columns="label", streaming=False)
    images = (data_part if limit is None else random_part)(source, data, "train", 0, 16)
    shown = [number for batch, _ in images.batches(0, limit) for number in sources.numbers(batch)]
    for size in (16, 7):  # kept, then read
        assert part_labels(source, data, "train", 0, size, limit)[:, 0].tolist() == [number % 2 for number in shown]
    assert len(shown) == (58 if limit is None else 40)


def test_what_changes_a_part_changes_its_key(tmp_path):
    source = sources.whole(folder(tmp_path / "a", 3))
    data = DataConfig(name=str(tmp_path / "a"), resolution=8)
    key = data_part(source, data, "train", 0, 4).key
    assert data_part(source, data, "train", 0, 9).key == key
    for other in (data_part(source, data, "held_out", 0, 4), data_part(source, data, "train", 1, 4)):
        assert other.key != key
    (tmp_path / "a/001.png").write_bytes(sources.picture(77, 9, 9))
    assert data_part(source, data, "train", 0, 4).key != key


# -------------------------------------------------------------------------------------------------------------- bad images


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_images(str(path), DATA, 4)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_cannot_be_compared(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(tmp_path / "empty")
    assert "neither a folder nor an npz" in refused(tmp_path / "nothing")
    mixed = folder(tmp_path / "mixed", 3)
    Image.new("RGB", (8, 6)).save(mixed / "zz.png")
    assert re.search(r"mixed sizes: .*000.png is 8 x 8, .*zz.png is 8 x 6", refused(mixed))
    (mixed / "zz.png").write_bytes(b"no image")
    assert "zz.png cannot be read" in refused(mixed)
    Image.new("RGB", (16, 16)).save(tmp_path / "empty/large.png")
    assert "are 16 x 16, those of the reference 8 x 8 (data.resolution): set --data.resolution 16" in refused(
        tmp_path / "empty"
    )


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8, 3)), "holds float64 (3, 8, 8, 3); it must be one uint8 array"),
        (np.zeros((3, 3, 8, 8), np.uint8), "holds uint8 (3, 3, 8, 8)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "N above 0"),
        (np.zeros((3, 8, 4, 3), np.uint8), "are 4 x 8, those of the reference 8 x 8 (data.resolution): make them square"),
    ],
)
def test_arrays_that_cannot_be_compared(tmp_path, array, words):
    np.savez(tmp_path / "samples.npz", array)
    assert words in refused(tmp_path / "samples.npz")


def test_files_other_than_an_npz_with_one_array(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    assert "holds the arrays a, b" in refused(tmp_path / "two.npz")
    np.savez(tmp_path / "none.npz")
    assert "holds the arrays (none)" in refused(tmp_path / "none.npz")
    np.savez(tmp_path / "objects.npz", np.array([{}]))
    (tmp_path / "broken.npz").write_bytes(b"PK nonsense")
    for name in ("objects", "broken"):
        assert "cannot be read" in refused(tmp_path / f"{name}.npz")


# ------------------------------------------------------------------------------------------------------------------ models


def test_folders_without_a_model_and_models_that_do_not_fit(ldm_run, vq_run, tmp_path):
    for model, resolution, words in (
        (ldm_run, 32, r"draws 16 px images, the reference has 32 \(data.resolution\): set --data.resolution 16"),
        (vq_run, 18, "is not a multiple of the first stage's factor 4"),
        (tmp_path, 16, "is not a model folder: it has neither pipeline/"),
        (tmp_path / "nothing", 16, "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            open_model(Evaluate(model=str(model), data=DataConfig(resolution=resolution)), "cpu")


def test_a_first_stage_is_distinguished_from_a_diffusion_model(ldm_run, vq_run):
    data = DataConfig(resolution=16)
    for path in (vq_run, vq_run / "vqvae", ldm_run / "pipeline/vqvae"):
        assert isinstance(open_model(Evaluate(model=str(path), data=data), "cpu"), FirstStage)
    for path in (ldm_run, ldm_run / "pipeline"):
        model = open_model(Evaluate(model=str(path), data=data, scheduler="dpm-solver++"), "cpu")
        assert isinstance(model, Model)


def test_a_first_stage_on_the_hub_is_found_if_there_is_no_pipeline(monkeypatch, vq_run):
    def none(*args):
        raise UserError("no pipeline")

    first_stage = FirstStage(VQModel.from_pretrained(vq_run / "vqvae"))
    monkeypatch.setattr(evaluation_models, "load_for", none)
    monkeypatch.setattr(evaluation_models, "load_first_stage", lambda config: first_stage)
    config = Evaluate(model="me/vq", data=DataConfig(resolution=16))
    assert open_model(config, "cpu") is first_stage
    monkeypatch.setattr(evaluation_models, "load_first_stage", none)
    with pytest.raises(UserError, match="no pipeline"):
        open_model(config, "cpu")


def test_a_model_of_pixels_needs_no_first_stage(monkeypatch):
    model = Model(Denoiser(models.unet(8)), models.process(), None)
    monkeypatch.setattr(evaluation_models, "load_for", lambda *args: model)
    assert open_model(Evaluate(model="me/pixels", data=DATA), "cpu") is model
    with pytest.raises(UserError, match="draws 8 px images"):
        open_model(Evaluate(model="me/pixels", data=DataConfig(resolution=9)), "cpu")


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("guidance_scale=1,2", "guidance_scale is 2, but this model has neither a guide nor labels"),
        ("num_inference_steps=10,2000", "num_inference_steps is 2000; this model has 1000 timesteps"),
    ],
)
def test_a_sweep_beyond_the_model_is_refused_at_once(monkeypatch, sweep, words):
    model = Model(Denoiser(models.unet(8)), models.process(), None)
    monkeypatch.setattr(evaluation_models, "load_for", lambda *args: model)
    with pytest.raises(UserError, match=words):
        open_model(Evaluate(model="me/pixels", data=DATA, sweep=sweep), "cpu")


def test_the_description_names_the_weights(ldm_run):
    unet = models.unet()
    published, run = (evaluation_models.weights_stamp(Evaluate(model=name), unet, None) for name in ("me/faces", str(ldm_run)))
    assert published["weights"] == "as published" and run["weights"].startswith("EMA, decay 0.")
    assert published["weights_hash"] == run["weights_hash"]
    with torch.no_grad():
        unet.conv_in.bias += 1e-3
    assert evaluation_models.weights_stamp(Evaluate(model="me/faces"), unet)["weights_hash"] != run["weights_hash"]
