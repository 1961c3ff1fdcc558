"""The exported folder of a model with labels or a guide: what plain diffusers and our loader make of it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline
from PIL import Image

from tests.support import models
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing import editing, sampling
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.export import save_pipeline
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model, to_images
from tinyldm.portable.levels import KINDS
from tinyldm.portable.pipeline import TinyLDMPipeline

SCALE = 2.5


def made(kind: str) -> Model:
    """A model with `labels`, with a `guide`, or with `both`."""
    labelled = kind != "guide"
    denoiser = Denoiser(models.unet(labelled=labelled), models.labels() if labelled else None)
    guide = None
    if kind != "labels":
        guide = Denoiser(models.unet(labelled=labelled), models.labels() if labelled else None)
        with torch.no_grad():
            for weight in guide.parameters():
                weight.mul_(0.9)
    return Model(denoiser, models.process(), models.vq_model(scaling_factor=0.7), guide, SCALE)


def export(folder, model: Model) -> None:
    save_pipeline(folder, "LDMPipeline", model, DDIMScheduler.from_config(models.scheduler().config))


@pytest.fixture(scope="module", params=["labels", "guide", "both"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "pipeline"
    export(folder, made(request.param))
    return folder


def opened(folder) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("steps", [10, 7])  # 7 does not divide the number of timesteps
def test_plain_diffusers_draws_the_same_images_to_the_bit(folder, steps):
    model, pipeline = load_model(str(folder)), opened(folder)
    given = ({"Smiling": True}, "Smiling=true") if model.labels is not None else (None, None)
    for scale in (None, 1.0, 4.0):
        settings = SamplerSettings(num_inference_steps=steps, labels=given[1], guidance_scale=scale)
        ours = next(sampling.sample(model, 3, 3, 5, settings)).permute(0, 2, 3, 1).numpy()
        images = pipeline(labels=given[0], num_images=3, seed=5, num_inference_steps=steps, guidance_scale=scale).images
        assert np.array_equal(np.stack([np.asarray(image) for image in images]), ours)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_model_that_clips_draws_the_same_images_too(prediction, tmp_path):
    model, process = made("guide"), models.process(clip_sample=True, prediction_type=prediction)
    save_pipeline(tmp_path, "LDMPipeline", replace(model, process=process), process.sampler("ddim"))
    loaded, pipeline = load_model(str(tmp_path)), opened(tmp_path)
    ours = next(sampling.sample(loaded, 3, 3, 5, SamplerSettings(num_inference_steps=7))).permute(0, 2, 3, 1).numpy()
    images = pipeline(num_images=3, seed=5, num_inference_steps=7).images
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), ours)


def random_image(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["vp", *KINDS])
def test_variations_are_those_of_sample_py(kind, tmp_path):
    process = models.any_process(kind)
    model = Model(Denoiser(models.unet(labelled=True), models.labels()), process, None, None, SCALE)
    save_pipeline(tmp_path, "DDPMPipeline", model, process.sampler("ddim" if kind == "vp" else None))
    image, settings = random_image(8), SamplerSettings(num_inference_steps=10, labels="Smiling=true")
    given = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].expand(3, -1, -1, -1)
    condition = model.named_labels(3, settings)  # hair is left to the image
    for strength in (0.01, 0.6, 1):
        x = editing.vary(model, editing.to_x0(model, given), strength, settings, sampling.generators(5, 3), condition)
        ours = to_images(model, x).permute(0, 2, 3, 1).numpy().astype(int)
        edit = {"num_images": 3, "seed": 5, "num_inference_steps": 10, "image": image, "strength": strength}
        theirs = opened(tmp_path)({"Smiling": True}, **edit)
        assert np.abs(np.stack([np.asarray(made) for made in theirs.images]) - ours).max() <= 1  # rounded in another order


@pytest.mark.parametrize("kind", ["vp", *KINDS])
@pytest.mark.parametrize("latent", [False, True])
def test_a_new_part(kind, latent, tmp_path):
    """Known pixels stay; the network of one known image gives it where the mask is white."""
    process, stage = models.any_process(kind), models.vq_model(scaling_factor=0.7) if latent else None
    model = Model(Denoiser(models.unet()), process, stage, None, 1.0)
    save_pipeline(tmp_path, "LDMPipeline" if latent else "DDPMPipeline", model, process.sampler())
    side = model.side
    image, mask = random_image(side), Image.fromarray(np.zeros((side, side), np.uint8))
    mask.paste(255, (side // 2, 0, side, side // 4))
    (tmp_path / "guidance.json").write_text('{"scale": 1}')
    pipeline = opened(tmp_path) if kind != "vp" else TinyLDMPipeline(model.unet, process.sampler(), stage)
    pipeline._file = lambda name: tmp_path / name
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(num_images=2, num_inference_steps=12, image=image, mask=mask).images
    first, second = (np.asarray(made).astype(int) for made in drawn)
    white, before = np.asarray(mask) > 0, np.asarray(image).astype(int)
    far = ~white
    if latent:
        far[: side // 4 + 2 * 4, side // 2 - 2 * 4 :] = False  # the border that is blended
    assert np.array_equal(first[far], before[far]) and np.array_equal(second[far], before[far])
    assert np.abs(first - second)[white].mean() > 3 and np.abs(first - before)[white].mean() > 10


def test_an_image_of_another_side_is_refused(folder):
    with pytest.raises(ValueError, match="an image has 20 x 20 pixels: crop and resize it to 16 x 16"):
        opened(folder)(image=random_image(20))
    with pytest.raises(ValueError, match="an image has 8 x 8 pixels"):
        opened(folder)(image=random_image(16), mask=random_image(8))
    with pytest.raises(ValueError, match="a mask is for an image: give both"):
        opened(folder)(mask=random_image(16))


def test_the_loaded_model_is_the_exported_one(folder):
    model, expected = load_model(str(folder)), made(folder.parent.name.rstrip("0123456789"))
    assert model.scale == SCALE and (model.guide is None) == (expected.guide is None)
    parts = [(model.denoiser, expected.denoiser), *([(model.guide, expected.guide)] if model.guide else [])]
    for one, two in parts:
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    if model.labels is not None:
        assert model.labels.values == expected.labels.values


def test_a_model_without_labels_stays_a_plain_pipeline(tmp_path, capsys):
    model = made("guide")
    sampler = DDIMScheduler.from_config(models.scheduler().config)
    save_pipeline(tmp_path / "ours", "LDMPipeline", model, sampler)
    LDMPipeline(vqvae=model.first_stage, unet=model.unet, scheduler=sampler).save_pretrained(tmp_path / "theirs")
    indices = [json.loads((tmp_path / name / "model_index.json").read_text()) for name in ("ours", "theirs")]
    assert indices[0] == indices[1]
    plain = LDMPipeline.from_pretrained(tmp_path / "ours")
    assert "expected" not in capsys.readouterr().err and torch.equal(plain.unet.conv_in.weight, model.unet.conv_in.weight)


def test_code_in_a_model_folder_is_not_run(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "model")
    for file in [*copied.rglob("*.py")]:
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert next(copied.rglob("*.py")) and load_model(str(copied)).scale == SCALE
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ['{"scale": "2"}', '{"scale": 0}', '{"scale": NaN}', "{}", "[", '{"scale": 1e999}'])
def test_a_damaged_guidance_file_is_refused(content, folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "model")
    (copied / "guidance.json").write_text(content)
    with pytest.raises(UserError, match="is damaged or incomplete"):
        load_model(str(copied))


def test_labels_and_network_that_do_not_fit_are_refused(folder, tmp_path):
    if not (folder / "labels").exists():
        return
    copied = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({key: value for key, value in index.items() if key != "labels"}))
    with pytest.raises(UserError, match="do not fit together"):
        load_model(str(copied))


def test_a_value_that_the_labels_do_not_have(folder):
    with pytest.raises(ValueError, match=r"no label 'hat'|has no labels"):
        opened(folder)(labels={"hat": "cap"})
