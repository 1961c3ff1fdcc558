"""python -m tinyldm.describe: its counts match closed forms, and it prints how long each recipe takes."""

import re
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.runs import ROOT, quicken
from tinyldm import costs, describe
from tinyldm.config.schema import FirstStageConfig, TrainConfig
from tinyldm.costs import Cost, Part, count, held_bytes, measure
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import load_first_stage

SMALL = [*("--unet.block_out_channels", "[32,32]", "--unet.down_block_types", "[DownBlock2D,AttnDownBlock2D]")]
SMALL += ["--unet.up_block_types", "[AttnUpBlock2D,UpBlock2D]", "--unet.attention_head_dim", "32"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(costs, "MEASURED_SECONDS", 0.2)
    quicken(monkeypatch)  # it counts the images


def say(*args) -> str:
    return costs.table(describe.read([*map(str, args)]))


def test_the_counts_of_two_convolutions():
    """3 -> 8 -> 4 channels, 3 x 3, on 16 x 16: 2 x 9 x c_in x c_out per pixel. The backward pass costs the same for the
    weights, and again for the input of the second one. It needs both inputs, and where the ReLU was positive (its output)."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    cost = count(Part("", lambda: network, (3, 16, 16)))
    first, second = (2 * 9 * 256 * a * b for a, b in ((3, 8), (8, 4)))
    assert cost.parameters == 9 * 3 * 8 + 8 + 9 * 8 * 4 + 4
    assert (cost.forward, cost.step) == (first + second, 2 * first + 3 * second)
    assert cost.activations == 4 * 256 * (3 + 8)


@pytest.mark.slow
def test_averages_and_a_guide_need_memory():
    """Each is one more copy of the weights: two averages with train.ema_snapshot_steps, and a guide without labels."""

    def bytes_of(**changes: int | None) -> int:
        config = describe.read([str(ROOT / "configs/faces64.yaml")])
        config.train.ema_snapshot_steps, config.guidance.guide_steps = changes.get("ema"), changes.get("guide")
        *_, part = costs.parts(config, [])
        return held_bytes(part, Cost(100, 0.0, 0.0, 1.0), 2)

    assert bytes_of(guide=0) == 100 * 4 * 5 + 2
    assert bytes_of() == bytes_of(guide=500) == 100 * 4 * 6 + 2
    assert bytes_of(ema=100) == 100 * 4 * 8 + 2


def test_gradient_checkpointing_needs_less_memory_and_more_work():
    args = [ROOT / "configs/toyfaces32-ddpm.yaml", *SMALL, "--train.batch_size", 2, "--train.max_steps", 10]
    plain, saving = (say(*args, "--train.gradient_checkpointing", how, "--train.batch_size", 1000) for how in ("false", "true"))
    memory = [float(re.search(r"([\d.]+) GiB", text)[1]) for text in (plain, saving)]
    work = [float(re.search(r"GFLOP +([\d.]+) GFLOP", text)[1]) for text in (plain, saving)]
    assert memory[1] < 0.7 * memory[0] and work[0] < work[1] < 1.5 * work[0]


def test_the_forecast_for_other_cards(monkeypatch):
    monkeypatch.setattr(costs, "CARDS", {"A": (2.0, 1.0), "B": (40.0, 1.0)})
    work = [(Part("", nn.Identity, (1, 1, 1), trained=trained), costs.Cost(0, 3e9, 4e9, 0)) for trained in (False, True)]
    assert costs.forecast(work, 3_600_000, 100_000, 100) == "A 2 h 5 min, B 11 min 0 s"  # 300 s, and 7,200 s or 360 s
    assert costs.forecast(work, 3_600_000, 100_000, 360_000) == "A 2 h 5 min, B 35 min 0 s"  # at least 5 ms a step


class FitsUpTo(nn.Conv2d):
    """A network on a device with memory for this many images."""

    def __init__(self, images: int):
        super().__init__(3, 3, 1)
        self.images = images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.images:
            raise torch.OutOfMemoryError
        return super().forward(x)


def timed(part: Part, batch_size: int) -> tuple[float, list[str]]:
    """Images per second, and the notes."""
    notes: list[str] = []
    return measure(part, count(part), TrainConfig(batch_size=batch_size), torch.device("cpu"), notes), notes


@pytest.mark.alone
def test_a_batch_that_does_not_fit_is_noted_and_a_smaller_one_timed(monkeypatch):
    monkeypatch.setattr(costs, "MEASURED_SECONDS", 1.0)
    part = Part("net", lambda: FitsUpTo(5), (3, 8, 8))
    speed, notes = timed(part, 64)
    assert speed > 0 and len(notes) == 1 and notes[0].startswith("8 images at once through the net do not fit")
    speed, notes = timed(part, 5)
    assert speed > 0 and not notes
    with pytest.raises(UserError, match="one image through the net does not fit"):
        measure(Part("net", lambda: FitsUpTo(0), (3, 8, 8)), count(part), TrainConfig(), torch.device("cpu"), [])


@pytest.mark.alone
def test_a_batch_that_would_take_all_of_the_memory_is_not_tried(monkeypatch):
    part = Part("net", lambda: nn.Conv2d(3, 3, 1), (3, 8, 8))
    available = held_bytes(part, count(part), 4)
    monkeypatch.setattr(costs.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    assert timed(part, 4)[1] == []
    assert timed(part, 64)[1][0].startswith("8 images at once through the net do not fit")


class Slow(nn.Conv2d):
    """A network that takes a millisecond per image; `batches` are the batch sizes that it got."""

    def __init__(self):
        super().__init__(3, 3, 1)
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_meta:
            self.batches.append(len(x))
            time.sleep(len(x) / 1000)
        return super().forward(x)


@pytest.mark.alone
def test_a_slow_network_is_timed_at_the_recipes_batch_too_if_that_is_possible():
    seen: list[Slow] = []

    def make() -> Slow:
        seen.append(Slow())
        return seen[-1]

    part = Part("net", make, (3, 8, 8))
    speed, notes = timed(part, 400)
    assert seen[-1].batches[-1] == 400 and seen[-1].batches[-3] < 200 and 200 < speed < 1000 and not notes
    _, notes = timed(part, 20_000)
    assert max(seen[-1].batches) < 400 and "20000 would take too long" in notes[0]


def test_encoding_times_include_the_search_for_codes(vq_run, ldm_run):
    (encoder, _) = costs.parts(describe.read([str(ldm_run / "config.yaml")]), [])
    built, images = encoder.make(), torch.rand(2, *encoder.shape)
    stage = load_first_stage(FirstStageConfig(path=str(vq_run)))
    assert torch.equal(built(images), stage.to_half(stage.encode(images)))
    assert count(encoder).forward > 0


@pytest.mark.slow
def test_the_text_for_each_kind_of_recipe(vq_run, ldm_run):
    text = say(vq_run / "config.yaml")
    assert re.search(r"VQModel +[\d,]+ .*\n.*discriminator.*\n\n4 steps of 4 images will take \d+ .* here", text)
    text = say(ldm_run / "config.yaml", "--train.max_steps", "null", "--train.num_epochs", 3)
    assert re.search(r"3 epochs of \d\d images will take .* An epoch of \d\d images: ", text)
    assert "and their mirror images" in text
    text = say(ROOT / "configs/digits-ddpm.yaml")
    assert "2,000 steps of 64 images" in text and "An epoch of 1,500 images" in text
    assert re.search(r"classifier +582,218 ", say(ROOT / "configs/digits-classifier.yaml"))


@pytest.mark.slow
def test_a_missing_first_stage_is_replaced_with_a_note():
    text = say(ROOT / "configs/demo.yaml", *SMALL, "--first_stage.path", "/nowhere")
    assert "Note: first stage /nowhere cannot be loaded here" in text and "55,322,782" in text
    text = say(ROOT / "configs/demo.yaml", *SMALL, "--first_stage.path", "runs/faces64-vq")
    assert "55,322,782" not in text and ("is not trained yet" in text) != (ROOT / "runs/faces64-vq").exists()


def test_no_recipe():
    with pytest.raises(UserError, match="no recipe given"):
        say("--train.max_steps", 3)
    with pytest.raises(UserError, match=r"recipe nowhere\.yaml cannot be read"):
        say("nowhere.yaml")
