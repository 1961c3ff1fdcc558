"""train.patience: a training stops where its held-out figure does not get better, and exports its best weights."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

import train_ddpm
from tests.support.runs import DDPM, DIGITS, EVERY_STEP, rows, run
from tinyldm.diffusion.pixel_task import PixelTask

pytestmark = pytest.mark.slow


def train(monkeypatch, folder, losses, *more) -> None:
    """Train with these held-out losses, one after each step."""
    scripted = itertools.chain(losses, itertools.repeat(9.0))
    monkeypatch.setattr(PixelTask, "summarize", lambda self, sums: {"eval_loss": next(scripted)})
    arguments = ["--output_dir", folder, *DIGITS, *DDPM, *EVERY_STEP, "--guidance.guide_steps", 0]
    run(monkeypatch, train_ddpm, *arguments, "--train.eval_steps", 1, "--train.checkpointing_steps", 100, *more)


def exported(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "pipeline/unet/diffusion_pytorch_model.safetensors")


def average(folder, step: int) -> dict[str, torch.Tensor]:
    weights = load_file(folder / f"checkpoints/step-{step}/ema.safetensors")
    return {name.removeprefix("unet."): weight for name, weight in weights.items()}


def test_it_stops_and_exports_the_best(tmp_path, monkeypatch, capsys):
    train(monkeypatch, tmp_path, [1.0, 0.5, 0.7, 0.6], "--train.max_steps", 10, "--train.patience", 2)
    assert [row["step"] for row in rows(tmp_path) if row["eval_loss"]] == ["1", "2", "3", "4"]
    best = average(tmp_path, 2)
    assert all(torch.equal(weight, best[name]) for name, weight in exported(tmp_path).items())
    assert "eval_loss is best at step 2, whose weights are exported" in capsys.readouterr().err
    assert "The best checkpoint by `eval_loss` is that of step 2" in (tmp_path / "README.md").read_text()


def test_a_resumed_run_keeps_its_patience(tmp_path, monkeypatch):
    train(monkeypatch, tmp_path, [1.0, 0.5, 0.7], "--train.max_steps", 3, "--train.patience", 2)
    train(monkeypatch, tmp_path, [0.6, 0.4], "--train.max_steps", 10, "--train.patience", 2, "--resume", "latest")
    assert max(int(row["step"]) for row in rows(tmp_path)) == 4  # one worse measurement was counted before


def test_without_patience_it_trains_to_the_end(tmp_path, monkeypatch):
    train(monkeypatch, tmp_path, [1.0, 2.0, 3.0, 4.0], "--train.max_steps", 4)
    last = average(tmp_path, 4)
    assert all(torch.equal(weight, last[name]) for name, weight in exported(tmp_path).items())
