"""Models that cannot draw: damaged, incomplete, not finite. Each is refused in one line, never drawn in black."""

import json
import shutil
import struct

import pytest
import torch
from diffusers import DDIMScheduler, LDMPipeline
from safetensors.torch import load_file, save_file

from tests.support import models
from tinyldm.config.networks import ProcessConfig, SchedulerConfig
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing import sampling
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model, to_images
from tinyldm.process.processes import make_process

UNET, VQ = "unet/diffusion_pytorch_model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    sampler = DDIMScheduler.from_config(models.scheduler().config)
    LDMPipeline(vqvae=models.vq_model(scaling_factor=0.7), unet=models.unet(), scheduler=sampler).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refused(folder, **options) -> str:
    with pytest.raises(UserError) as caught:
        model = load_model(str(folder), **options)
        list(sampling.sample(model, 2, 2, 0, SamplerSettings(num_inference_steps=2)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder, file: str, **changes) -> None:
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changes))


@pytest.mark.parametrize("file", [UNET, VQ])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_are_not_finite(folder, file, value):
    weights = load_file(folder / file)
    name = sorted(weights)[3]
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / file, {"format": "pt"})
    assert f"is damaged or incomplete ({name} is not finite" in refused(folder)


def test_weights_that_do_not_fit_half_precision(folder):
    weights = load_file(folder / UNET)
    weights["conv_in.bias"][0] = 1e6
    save_file(weights, folder / UNET, {"format": "pt"})
    assert load_model(str(folder)).dtype == torch.float32
    assert "conv_in.bias is not finite in float16" in refused(folder, dtype=torch.float16)


def test_a_missing_weight_is_not_called_a_missing_device(folder):
    weights = load_file(folder / UNET)
    del weights["conv_in.bias"], weights["conv_out.bias"]
    save_file(weights, folder / UNET, {"format": "pt"})
    assert "2 weights are missing, conv_in.bias for one" in refused(folder)


@pytest.mark.parametrize("factor", [0, -0.2, float("nan"), None, "0.2"])
def test_scaling_factors_that_are_no_number_above_0(folder, factor):
    change(folder, "vqvae/config.json", scaling_factor=factor)
    assert "its scaling_factor is" in refused(folder)


SCHEDULES = [
    {"trained_betas": [float("nan")] * 1000},
    {"trained_betas": [0.1, -0.1] * 500},
    {"trained_betas": [0.5, 1.5] * 500},
    {"trained_betas": [0.0] * 1000},
    {"beta_start": float("nan")},
    {"beta_end": 3.0},
    {"num_train_timesteps": 1},
    {"num_train_timesteps": 10**9},
    {"num_train_timesteps": 0},
    {"timestep_spacing": "none such"},
    {"clip_sample": True, "clip_sample_range": float("nan")},
    {"clip_sample": True, "clip_sample_range": -1},
]


@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
def test_schedules_that_are_none(folder, changes):
    change(folder, "scheduler/scheduler_config.json", **changes)
    refused(folder)


@pytest.mark.parametrize("betas", [[0.1, 2.0, 0.3], [0.1, 0.0, 0.3], [0.3, -0.2, 0.1], [0.5, 1.0, 0.5]])
def test_a_recipe_with_such_a_schedule(betas):
    with pytest.raises(UserError, match="each beta lies between 0 and 1"):
        make_process(ProcessConfig(), SchedulerConfig(num_train_timesteps=3, extra={"trained_betas": betas}))
    assert make_process(
        ProcessConfig(), SchedulerConfig(num_train_timesteps=3, extra={"trained_betas": [0.3, 0.2, 1.0]})
    )  # ends in pure noise


SHAPES = [
    {"sample_size": 0},
    {"sample_size": 10**6},
    {"sample_size": None},
    {"sample_size": [8, 8]},
    {"sample_size": "8"},
    {"layers_per_block": 10**9},
    {"freq_shift": "x"},
    {"class_embed_type": "timestep"},
    {"block_out_channels": [10**9, 10**9]},
    {"act_fn": "none such"},
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_networks_that_cannot_run(folder, changes):
    change(folder, "unet/config.json", **changes)
    assert "is damaged or incomplete" in refused(folder)


FILES = [b"", bytes(500), struct.pack("<Q", 2**62) + b"{", struct.pack("<Q", 6000) + b"[" * 6000]


@pytest.mark.parametrize("content", FILES, ids=len)
@pytest.mark.parametrize("file", [UNET, VQ, "model_index.json", "scheduler/scheduler_config.json", "vqvae/config.json"])
def test_files_of_anything(folder, file, content):
    (folder / file).write_bytes(content[8:] if file.endswith("json") else content)
    refused(folder)


def test_a_network_that_makes_no_numbers_names_the_step():
    class Overflows(models.GaussianDenoiser):
        calls = 0

        def forward(self, *args, **options):
            self.calls += 1
            result = super().forward(*args, **options)
            result.sample *= torch.inf if self.calls == 3 else 1
            return result

    process = models.process()
    model = Model(Denoiser(Overflows(process.scheduler, 0.1, 0.5)), process, None)
    with pytest.raises(UserError, match="step 3 of 7 gives values that are not finite"):
        list(sampling.sample(model, 2, 2, 0, SamplerSettings("ddim", 7)))


def test_a_decoder_that_makes_no_numbers():
    vqvae = models.vq_model(scaling_factor=0.5)
    vqvae.decoder.conv_out.bias.data[0] = torch.nan
    model = Model(Denoiser(models.unet()), models.process(), vqvae)
    with pytest.raises(UserError, match="the images are not finite"):
        to_images(model, torch.zeros(1, 3, 8, 8))
