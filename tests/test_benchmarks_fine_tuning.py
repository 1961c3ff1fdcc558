"""benchmarks/fine_tuning.py: its pictures are of one kind, and its curves are those of its runs."""

import json
import sys

import pytest

import train_ddpm
from benchmarks import fine_tuning as benchmark
from benchmarks import page
from tests.support.runs import DATA, DDPM, EVERY_STEP, run
from tests.test_benchmarks_editing import network
from tests.test_benchmarks_speed import FROM
from tinyldm.data import toyfaces
from tinyldm.metrics import features


def test_pictures_are_of_one_kind(tmp_path):
    benchmark.draw(tmp_path, benchmark.FIRST, 5, 16)
    kinds = [toyfaces.attributes(0, int(file.stem))["hat"] for file in tmp_path.glob("*.png")]
    assert kinds == ["crown"] * 5


@pytest.mark.slow
def test_runs_are_tuned_and_compared(tmp_path, monkeypatch):
    base, fewer = tmp_path / "base", benchmark.draw
    run(monkeypatch, train_ddpm, *DATA, *EVERY_STEP, *DDPM, "--train.max_steps", 1, "--output_dir", base)
    monkeypatch.setattr(features, "load", lambda *_: network())
    monkeypatch.setattr(benchmark, "draw", lambda folder, first, count, side: fewer(folder, first, min(count, 24), side))
    monkeypatch.setattr(sys, "argv", ["fine_tuning"])
    where = {"base": str(base), "recipe": str(base / "config.yaml"), "runs": str(tmp_path / "runs"), "output": str(tmp_path)}
    for _ in range(2):  # the second call trains nothing again
        benchmark.main(**where, counts=[8, 16], steps=2, steps_from_nothing=3, images=20)
    found = json.loads((tmp_path / "fine_tuning.json").read_text())
    assert list(found["curves"]) == ["8 plain", "8 careful", "16 plain", "16 careful", "16 from nothing"]
    assert [row["step"] for row in found["curves"]["16 from nothing"]] == [1, 2, 3]
    assert all(0 <= row["nearer"] <= 1 and row["fd"] >= 0 for row in found["curves"]["8 plain"])
    (tmp_path / "fine_tuning.json").write_text(json.dumps(found | FROM))
    assert "| 8 plain | 2 | " in page.block("fine_tuning", tmp_path)
    assert (tmp_path / "fine_tuning.png").exists()
