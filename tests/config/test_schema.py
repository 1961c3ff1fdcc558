import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import diffusers
import pytest
import yaml

from tinyldm.config.networks import SchedulerConfig, UNetConfig, VQConfig
from tinyldm.config.parsing import parse, read_yaml, to_dict, to_yaml
from tinyldm.config.schema import Sample, TrainDDPM, TrainLDM, TrainVQ
from tinyldm.errors import UserError

ROOT = Path(__file__).parents[2]
REQUIRED = {TrainVQ: ["--output_dir", "out", "--train.max_steps", "5"], Sample: ["--model", "a"]}
REQUIRED[TrainLDM] = REQUIRED[TrainVQ]
SCRIPTS = {"train_vq.py": TrainVQ, "train_ldm.py": TrainLDM, "train_ddpm.py": TrainDDPM, "sample.py": Sample}


def parsed(*args: str, schema=TrainLDM):
    return parse(schema, "A test.", [*REQUIRED[schema], *args])


def keys(schema, prefix: str = "") -> list[str]:
    """Every key that a YAML file may have."""
    found = []
    for item in fields(schema):
        found += keys(item.type, f"{prefix}{item.name}.") if is_dataclass(item.type) else [prefix + item.name]
    return found


# ---------------------------------------------------------------------------------------------------------- the schema


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(UNetConfig, diffusers.UNet2DModel), (VQConfig, diffusers.VQModel), (SchedulerConfig, diffusers.DDPMScheduler)],
)
def test_sections_have_the_arguments_of_diffusers(ours, theirs):
    arguments = [name for name in inspect.signature(theirs.__init__).parameters if name != "self"]
    assert [item.name for item in fields(ours)] == arguments


def test_the_defaults_build_what_the_docstrings_say():
    import torch

    with torch.device("meta"):
        unet = diffusers.UNet2DModel(**to_dict(UNetConfig(sample_size=64, in_channels=3, out_channels=3)))
        vq = diffusers.VQModel(**to_dict(VQConfig()))
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 1) == 5.4
    assert round(sum(p.numel() for p in vq.parameters()) / 1e6, 1) == 55.3
    assert vq.encode(torch.empty(1, 3, 64, 64, device="meta")).latents.shape == (1, 3, *[64 // VQConfig().downscale] * 2)
    assert diffusers.DDPMScheduler(**to_dict(SchedulerConfig())).betas[-1] == pytest.approx(0.0195)


def test_choices_are_ones_that_diffusers_takes():
    for key in ("beta_schedule", "prediction_type", "timestep_spacing", "variance_type"):
        choices = next(item.type for item in fields(SchedulerConfig) if item.name == key).__args__
        source = inspect.getsource(diffusers.DDPMScheduler)
        assert choices and all(f'"{choice}"' in source for choice in choices), key


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_recipe_fits_its_schema(file):
    sections = yaml.safe_load(file.read_text())
    schema = TrainVQ if "vq" in sections else TrainLDM if "first_stage" in sections else TrainDDPM
    assert parse(schema, "", ["--config", str(file)]).output_dir


# ------------------------------------------------------------------------------------------------------------- reading


def test_command_line_before_yaml_before_default(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 3\ndata: {name: faces, resolution: 64}\ntrain: {learning_rate: 1e-3}\nunet: {dropout: 0.1}\n")
    config = parsed("--config", str(recipe), "--data.resolution", "32", "--unet.block_out_channels", "[32,32,64,64]")
    assert (config.seed, config.data.name, config.data.resolution, config.data.split) == (3, "faces", 32, "train")
    assert (config.train.learning_rate, config.train.batch_size, config.train.max_steps) == (0.001, 64, 5)
    assert (config.unet.dropout, config.unet.block_out_channels) == (0.1, (32, 32, 64, 64))
    assert isinstance(config, TrainLDM) and isinstance(config.unet, UNetConfig)


@pytest.mark.parametrize(
    ("written", "files"),
    [
        ("a.parquet", "a.parquet"),
        ('["a", "b"]', ["a", "b"]),
        ('{"train": ["a", "b"], "test": "c"}', {"train": ["a", "b"], "test": "c"}),
    ],
)
def test_data_files_as_datasets_takes_them(written, files):
    assert parsed("--data.data_files", written).data.data_files == files


@pytest.mark.parametrize("schema", [TrainVQ, TrainLDM, Sample])
def test_what_is_written_can_be_read(schema, tmp_path):
    changes = {
        TrainVQ: ["--seed", "7", "--data.eval_split", "valid", "--loss.perceptual", "none", "--vq.norm_num_groups", "16"],
        TrainLDM: ["--train.learning_rate", "1.2345678901234567e-05", "--unet.add_attention", "false", "--hub.repo_id", "a/b"],
        Sample: ["--interpolate", "[3, 4]", "--scheduler", "ddim", "--eta", "0.1"],
    }
    config = parsed(*changes[schema], schema=schema)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = parse(schema, "", ["--config", str(tmp_path / "config.yaml")])
    assert again == config
    assert read_yaml(tmp_path / "config.yaml") == to_dict(config)
    assert list(read_yaml(tmp_path / "config.yaml")) == [item.name for item in fields(schema)]


def test_print_config_prints_what_it_reads(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("--data.resolution", "32", "--print_config")
    assert caught.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse(TrainLDM, "", ["--config", str(tmp_path / "printed.yaml")]) == parsed("--data.resolution", "32")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick_and_names_every_key_with_its_default(script):
    # The child's own processor seconds: the machine may be busy.
    before = os.times()
    done = subprocess.run([sys.executable, "-X", "importtime", script, "--help"], capture_output=True, text=True, cwd=ROOT)
    seconds = (os.times().children_user - before.children_user) + (os.times().children_system - before.children_system)
    assert done.returncode == 0 and seconds < 1.5
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "jsonargparse" in imported and not imported & {"torch", "diffusers", "datasets", "numpy"}
    text = " ".join(done.stdout.split())
    for key in keys(SCRIPTS[script]):
        entry = re.search(rf"--{re.escape(key)} .*?\((required, )?type: .*?\)(?= --| [A-Z<]|$)", text)
        assert entry, f"{key} is not explained"
        assert "default: " in entry[0] or "(required" in entry[0], entry[0]


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data.nmae", "x"], "--data.nmae"),
        (["--train.max_step", "3"], "--train.max_step"),  # no guessing
        (["--dta.name", "x"], "--dta.name"),
        (["extra"], "extra"),
        (["--train.batch_size", "many"], "train.batch_size.*int.*many"),
        (["--train.batch_size", "1.5"], "train.batch_size.*int.*1.5"),
        (["--data.streaming", "perhaps"], "data.streaming.*bool.*perhaps"),
        (["--train.lr_scheduler", "cosin"], "train.lr_scheduler.*cosine"),
        (["--unet.block_out_channels", "64"], "unet.block_out_channels.*tuple"),
        (["--scheduler.prediction_type", "v-prediction"], "scheduler.prediction_type.*v_prediction"),
        (["--scheduler.beta_schedule", "cosine"], "scheduler.beta_schedule.*squaredcos_cap_v2"),
        (["--scheduler.beta_schedule", "sigmoid"], "scheduler.beta_schedule"),  # which the shipped DDIMScheduler lacks
        (["--unet.time_embedding_type", "sine"], "unet.time_embedding_type.*fourier"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_unknown_and_mistyped_keys_on_the_command_line(args, words):
    with pytest.raises(UserError, match=words) as caught:
        parsed(*args)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("--help explains every key")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"trian: {max_steps: 3}", "trian"),
        (b"train: {max_stepz: 3}", "train.*max_stepz"),
        (b"train: {batch_size: many}", "train.batch_size.*many"),
        (b"train: 3", "train is 3.*section"),
        (b"train:", "train"),
        (b"unet: [64, 64]", "unet"),
        (b"train: {batch_size: [1,", "parsing"),
        (b"- 1\n- 2", "- 1 - 2"),
        (b"", "config"),
        (b"\xff\xfe\x00", "--config is not a text"),
    ],
)
def test_bad_yaml(text, words, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(text)
    with pytest.raises(UserError, match=words) as caught:
        parsed("--config", str(tmp_path / "bad.yaml"))
    assert "\n" not in str(caught.value)


BELOW_ONE = [
    "data.resolution", "data.num_workers", "data.shuffle_buffer", "train.batch_size", "train.gradient_accumulation_steps",
    "train.logging_steps", "train.eval_steps", "train.sample_steps", "train.checkpointing_steps",
    "train.checkpoints_total_limit", "train.num_eval_images", "train.learning_rate", "train.max_steps", "train.num_epochs",
    "train.max_grad_norm", "diffusion.snr_gamma", "diffusion.preview_steps", "unet.norm_num_groups",
    "scheduler.num_train_timesteps",
]  # fmt: skip
CONTRADICTIONS = [
    (TrainLDM, "train.max_steps null", "train.max_steps or train.num_epochs"),
    (TrainLDM, "train.ema_decay 1", "train.ema_decay"),
    (TrainLDM, "train.lr_scheduler piecewise_constant", "train.lr_step_rules"),
    (TrainLDM, "train.lr_step_rules 1:10,0.1", "piecewise_constant"),
    (TrainLDM, "train.lr_scheduler piecewise_constant train.lr_step_rules 1:10", "write it as"),
    (TrainLDM, "train.adam_beta2 1", "train.adam_beta2"),
    (TrainLDM, "train.lr_warmup_steps -1", "train.lr_warmup_steps"),
    (TrainLDM, "seed -1", "seed"),
    (TrainLDM, "data.eval_fraction 0", "data.eval_fraction"),
    (TrainLDM, "data.eval_fraction 1", "data.eval_fraction"),
    (TrainLDM, "data.eval_split train", "data.split and data.eval_split.*data.eval_split to null"),
    (TrainLDM, "hub.push true", "hub.repo_id"),
    (TrainLDM, "resume latest overwrite true", "resume and overwrite"),
    (TrainLDM, "unet.block_out_channels [64,64]", "unet.block_out_channels.*2, 4 and 4"),
    (TrainLDM, "unet.block_out_channels [64,64,128,120]", "unet.norm_num_groups 32 does not divide the width 120"),
    (TrainLDM, "scheduler.rescale_betas_zero_snr true scheduler.prediction_type epsilon", "scheduler.prediction_type to v"),
    (TrainLDM, "scheduler.beta_start 0.5", "scheduler.beta_start 0.5 and scheduler.beta_end"),
    (TrainLDM, "scheduler.trained_betas [0.1]", "scheduler.trained_betas has 1 entries.*1000"),
    (TrainLDM, "diffusion.preview_steps 2000", "diffusion.preview_steps.*1000"),
    (TrainVQ, "vq.up_block_types [UpDecoderBlock2D]", "vq.up_block_types.*3, 3 and 1"),
    (TrainVQ, "vq.norm_num_groups 48", "vq.norm_num_groups 48 does not divide the width 128"),
    (TrainVQ, "vq.norm_num_groups 0", "vq.norm_num_groups"),
    (TrainVQ, "data.resolution 70", "data.resolution 70 .* 4"),
    (TrainVQ, "train.mixed_precision fp16", "train.mixed_precision to bf16 or no"),
    (Sample, "num_images 0", "num_images"),
    (Sample, "batch_size 0", "batch_size"),
    (Sample, "num_inference_steps -1", "num_inference_steps"),
    (Sample, "eta 1.5", "eta is 1.5"),
    (Sample, "eta 0.5 scheduler euler", "eta .*euler.*ddim"),
]


@pytest.mark.parametrize(("schema", "changes", "words"), [*[(TrainLDM, f"{key} 0", key) for key in BELOW_ONE], *CONTRADICTIONS])
def test_values_that_make_no_sense(schema, changes, words):
    pairs = changes.split()
    with pytest.raises(UserError, match=words) as caught:
        parsed(*[f"--{word}" if i % 2 == 0 else word for i, word in enumerate(pairs)], schema=schema)
    assert "\n" not in str(caught.value)


def test_either_length_will_do():
    assert parse(TrainLDM, "", ["--output_dir", "o", "--train.num_epochs", "0.5"]).train.num_epochs == 0.5


def test_a_damaged_run_config(tmp_path):
    (tmp_path / "a_file").write_text("no mapping")
    for name, words in (("config.yaml", "is missing: .* is not a run folder"), ("a_file/config.yaml", "is missing")):
        with pytest.raises(UserError, match=words):
            read_yaml(tmp_path / name)
    for content, words in ((b"a: [", "not YAML any more"), (b"\xff\xff", "not YAML any more"), (b"words", "config's keys")):
        (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_yaml(tmp_path / "config.yaml")
