"""The sections unet, vq and scheduler against the installed diffusers."""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import diffusers
import pytest
import torch

from tinyldm.config.networks import SchedulerConfig, UNetConfig, VQConfig
from tinyldm.config.parsing import parse, read_recipe, to_dict
from tinyldm.config.schema import TRAININGS, TrainDDPM, TrainLDM, TrainVQ
from tinyldm.errors import UserError
from tinyldm.first_stage.networks import make_vq

ROOT = Path(__file__).parents[2]
SECTIONS = [UNetConfig, VQConfig, SchedulerConfig]
EXPECTED = json.loads((Path(__file__).parent / "recipe_arguments.json").read_text())
RECIPES = [ROOT / "configs" / name for name in EXPECTED["recipes"]]
NEEDED = ["--output_dir", "out", "--train.max_steps", "5"]


def signature(section) -> dict[str, object]:
    """The arguments of the section's diffusers class and their defaults."""
    parameters = inspect.signature(getattr(diffusers, section.builds).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_an_argument_of_diffusers(section):
    keys = {item.name for item in fields(section)} - {"extra"}
    assert keys | section.refused.keys() <= signature(section).keys() and not keys & section.refused.keys()
    assert section().arguments().keys() == keys


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_each_recipe_passes_the_arguments_that_its_results_were_made_with(file):
    """recipe_arguments.json has the arguments of commit 968ee79, whose recipes listed all of them."""
    config = parse(TRAININGS[read_recipe(file)["script"]], "", ["--config", str(file)])
    for name, changes in EXPECTED["recipes"][file.name].items():
        section = getattr(config, name)
        passed = {**signature(section), **section.arguments()}
        if name == "vq":
            passed["sample_size"] = config.data.resolution
        expected = {**EXPECTED["defaults"][name], **changes}
        assert expected.keys() | section.refused.keys() == passed.keys()
        assert json.loads(json.dumps({key: passed[key] for key in expected})) == expected


def test_the_defaults_match_the_docstrings():
    with torch.device("meta"):
        unet = diffusers.UNet2DModel(**UNetConfig().arguments(), sample_size=64)
        vq = make_vq(TrainVQ(output_dir=""))
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 1) == 5.4
    assert round(sum(p.numel() for p in vq.parameters()) / 1e6, 1) == 55.3
    assert vq.encode(torch.empty(1, 3, 64, 64, device="meta")).latents.shape == (1, 3, *[64 // VQConfig().downscale] * 2)
    assert diffusers.DDPMScheduler(**SchedulerConfig().arguments()).betas[-1] == pytest.approx(0.0195)


def test_a_first_stage_gets_its_shape_from_the_data():
    config = parse(TrainVQ, "", [*NEEDED, "--data.resolution", "48", "--data.channels", "1"])
    with torch.device("meta"):
        built = make_vq(config).config
    assert (built.sample_size, built.in_channels, built.out_channels) == (48, 1, 1)


def test_choices_are_values_that_diffusers_accepts():
    for key in ("beta_schedule", "prediction_type", "timestep_spacing", "variance_type"):
        choices = next(item.type for item in fields(SchedulerConfig) if item.name == key).__args__
        source = inspect.getsource(diffusers.DDPMScheduler)
        assert choices and all(f'"{choice}"' in source for choice in choices), key


def test_extra_arguments_reach_diffusers(tmp_path):
    (tmp_path / "recipe.yaml").write_text("unet: {extra: {act_fn: gelu}}\n")
    args = [*NEEDED, "--config", str(tmp_path / "recipe.yaml"), "--unet.extra.freq_shift", "1"]
    config = parse(TrainLDM, "", [*args, "--scheduler.extra.clip_sample_range", "2.5"])
    assert config.unet.extra == {"act_fn": "gelu", "freq_shift": 1}
    assert diffusers.UNet2DModel(**config.unet.arguments()).config.act_fn == "gelu"
    assert diffusers.DDPMScheduler(**config.scheduler.arguments()).config.clip_sample_range == 2.5
    assert to_dict(config)["unet"]["extra"] == config.unet.extra


@pytest.mark.parametrize(
    ("schema", "args", "words"),
    [
        (
            TrainLDM,
            "--unet.extra.act_fm gelu",
            "act_fm is not an argument of diffusers' UNet2DModel: did you mean unet.extra.act_fn",
        ),
        (TrainLDM, "--unet.extra.dropot 0.1", r"did you mean unet\.dropout\?"),
        (TrainLDM, "--unet.extra.zzz 1", "it takes act_fn, attn_norm_num_groups, "),
        (TrainLDM, "--unet.extra.dropout 0.1", "has a key of its own: set unet.dropout instead"),
        (TrainLDM, "--unet.extra.in_channels 4", "unet.extra.in_channels is derived from the data and the first stage"),
        (TrainLDM, "--unet.in_channels 4", "unet.in_channels is derived from the data and the first stage"),
        (TrainDDPM, "--unet.num_class_embeds 10", "unet.num_class_embeds is derived from data.label_columns"),
        (TrainVQ, "--vq.sample_size 64", r"vq.sample_size is data.resolution: remove it"),
        (TrainVQ, "--vq.extra.scaling_factor 1", "vq.extra.scaling_factor is measured by train_vq.py"),
        (TrainLDM, "--scheduler.thresholding true", "scheduler.thresholding is not supported, because held-out losses"),
        (TrainLDM, "--scheduler.extra.sample_max_value 2", "scheduler.extra.sample_max_value is not supported"),
        (TrainLDM, "--scheduler.extra.trained_betas [0.1]", "one entry per timestep: .* 1000"),
        (TrainLDM, "--unet.act_fn gelu", "no key unet.act_fn; other arguments of diffusers' UNet2DModel go into unet.extra"),
        (TrainLDM, "--unet.extra null", "unet.extra is null; give a mapping"),
    ],
)
def test_refused_arguments(schema, args, words):
    with pytest.raises(UserError, match=words) as caught:
        parse(schema, "", [*NEEDED, *args.split()])
    assert "\n" not in str(caught.value)
