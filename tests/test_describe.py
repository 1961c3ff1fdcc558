"""python -m tinyldm.describe: its counts are those of the closed forms, and it says how long each recipe takes."""

import re

import pytest
import torch
from torch import nn

from tests.support.runs import ROOT
from tinyldm import describe
from tinyldm.config import TrainConfig
from tinyldm.describe import Part, count, measure
from tinyldm.errors import UserError

SMALL = [*("--unet.block_out_channels", "[32,32]", "--unet.down_block_types", "[DownBlock2D,AttnDownBlock2D]")]
SMALL += ["--unet.up_block_types", "[AttnUpBlock2D,UpBlock2D]", "--unet.attention_head_dim", "32"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(describe, "MEASURED_SECONDS", 0.2)


def say(*args) -> str:
    return describe.describe(describe.read([*map(str, args)]))


def test_the_counts_of_two_convolutions():
    """3 -> 8 -> 4 channels, 3 x 3, on 16 x 16: 2 x 9 x c_in x c_out a pixel; the backward pass costs it again for the weights,
    and again for the input of the second one. It needs the inputs of both, and where the ReLU was positive (its output)."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    cost = count(Part("", lambda: network, (3, 16, 16)))
    first, second = (2 * 9 * 256 * a * b for a, b in ((3, 8), (8, 4)))
    assert cost.parameters == 9 * 3 * 8 + 8 + 9 * 8 * 4 + 4
    assert (cost.forward, cost.step) == (first + second, 2 * first + 3 * second)
    assert cost.activations == 4 * 256 * (3 + 8)


def test_gradient_checkpointing_needs_less_memory_and_more_work():
    args = [ROOT / "configs/toyfaces32-ddpm.yaml", *SMALL, "--train.batch_size", 2, "--train.max_steps", 10]
    plain, saving = (say(*args, "--train.gradient_checkpointing", how, "--train.batch_size", 1000) for how in ("false", "true"))
    memory = [float(re.search(r"([\d.]+) GiB", text)[1]) for text in (plain, saving)]
    work = [float(re.search(r"GFLOP +([\d.]+) GFLOP", text)[1]) for text in (plain, saving)]
    assert memory[1] < 0.7 * memory[0] and work[0] < work[1] < 1.5 * work[0]


class FitsUpTo(nn.Conv2d):
    """A network on a device that has memory for so many images."""

    def __init__(self, images: int):
        super().__init__(3, 3, 1)
        self.images = images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.images:
            raise torch.OutOfMemoryError
        return super().forward(x)


def test_a_batch_that_does_not_fit_is_said_and_a_smaller_one_timed(monkeypatch):
    monkeypatch.setattr(describe, "MEASURED_SECONDS", 1.0)
    part, cpu = Part("net", lambda: FitsUpTo(5), (3, 8, 8)), torch.device("cpu")
    assert measure(part, TrainConfig(batch_size=64), cpu, notes := []) > 0
    assert len(notes) == 1 and notes[0].startswith("8 images at once through the net do not fit")
    assert measure(part, TrainConfig(batch_size=5), cpu, notes := []) > 0 and not notes
    with pytest.raises(UserError, match="one image through the net does not fit"):
        measure(Part("net", lambda: FitsUpTo(0), (3, 8, 8)), TrainConfig(), cpu, [])


def test_what_is_said_of_each_kind_of_recipe(vq_run, ldm_run):
    text = say(vq_run / "config.yaml")
    assert re.search(r"VQModel +[\d,]+ .*\n.*discriminator.*\n\n4 steps of 4 images will take \d+ .* here", text)
    text = say(ldm_run / "config.yaml", "--train.max_steps", "null", "--train.num_epochs", 3)
    assert re.search(r"3 epochs of \d\d images will take .* An epoch of \d\d images: ", text)
    assert "and their mirror images" in text
    text = say(ROOT / "configs/digits-ddpm.yaml")
    assert "2,000 steps of 64 images" in text and "An epoch of 1,500 images" in text


def test_a_first_stage_that_is_not_there_is_replaced_and_said():
    text = say(ROOT / "configs/demo.yaml", *SMALL, "--first_stage.path", "/nowhere")
    assert "Note: first stage /nowhere cannot be loaded here" in text and "55,322,782" in text
    text = say(ROOT / "configs/demo.yaml", *SMALL, "--first_stage.path", "runs/faces64-vq")
    assert "55,322,782" not in text and ("is not trained yet" in text) != (ROOT / "runs/faces64-vq").exists()


def test_no_recipe():
    with pytest.raises(UserError, match="say which recipe"):
        say("--train.max_steps", 3)
    with pytest.raises(UserError, match=r"nowhere\.yaml is missing"):
        say("nowhere.yaml")
