"""The smallest trainings that use every part, and helpers to inspect their folders."""

import csv
import functools
import sys
from pathlib import Path

import pytest
import sklearn.datasets
import torch
from PIL import Image
from safetensors.torch import load_file

from tinyldm import pictures
from tinyldm.data import toyfaces

ROOT = Path(__file__).parents[2]
DATA = ["--data.name", "toyfaces", "--data.eval_split", "validation", "--data.resolution", "16", "--data.shuffle_buffer", "64"]
EVERY_STEP = ["--train.logging_steps", "1", "--train.num_eval_images", "12", "--train.log_with", "none"]
VQ = [
    *("--vq.block_out_channels", "[8,8,16]", "--vq.layers_per_block", "1", "--vq.norm_num_groups", "4"),
    *("--vq.num_vq_embeddings", "32", "--loss.perceptual", "none", "--loss.gradient_weight", "1"),
    *("--loss.discriminator_start", "2", "--loss.discriminator_channels", "8", "--loss.discriminator_layers", "1"),
    *("--loss.revive_steps", "3", "--train.batch_size", "4"),
    *("--data.random_flip", "true", "--train.learning_rate", "1e-3"),
]
LDM = [
    *("--unet.block_out_channels", "[8,16]", "--unet.down_block_types", "[DownBlock2D,AttnDownBlock2D]"),
    *("--unet.up_block_types", "[AttnUpBlock2D,UpBlock2D]", "--unet.norm_num_groups", "4", "--unet.attention_head_dim", "8"),
    *("--diffusion.preview_images", "4", "--diffusion.preview_steps", "2", "--train.batch_size", "8"),
    *("--train.learning_rate", "1e-3", "--data.random_flip", "true", "--guidance.scale", "2"),
]
DDPM = [
    *("--unet.block_out_channels", "[8,16]", "--unet.down_block_types", "[DownBlock2D,AttnDownBlock2D]"),
    *("--unet.up_block_types", "[AttnUpBlock2D,UpBlock2D]", "--unet.norm_num_groups", "4", "--unet.attention_head_dim", "8"),
    *("--diffusion.preview_images", "4", "--diffusion.preview_steps", "2", "--train.batch_size", "8"),
    *("--scheduler.num_train_timesteps", "20", "--train.learning_rate", "1e-3", "--guidance.scale", "2"),
]
DIGITS = [*("--data.name", "digits", "--data.eval_split", "validation", "--data.resolution", "8", "--data.channels", "1")]


load_digits = functools.cache(sklearn.datasets.load_digits)


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Skip slow work that no test of a training checks.

    A resumed run counts the images of its stream, and toyfaces would draw 10,000. The digits are read once. Curves are only
    drawn for the runs of conftest.py.
    """
    patch.setattr(sklearn.datasets, "load_digits", load_digits)
    patch.setitem(toyfaces.SPLITS, "train", (0, 200))
    patch.setattr(pictures, "curves", lambda rows, path: Image.new("RGB", (8, 8)).save(path))


def run(monkeypatch, script, *args: str | Path, curves: bool = False) -> None:
    """Run a script in the current Python process.

    Args:
        curves: draw loss.png, like a user's run. This takes half a second per evaluation.
    """
    draw = pictures.curves
    quicken(monkeypatch)
    if curves:
        monkeypatch.setattr(pictures, "curves", draw)
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
    script.main()


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same_weights(a: Path, b: Path) -> bool:
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
