import contextlib
import math
import os
import random
import subprocess
import sys

import pytest

from tinyldm.config.parsing import read_yaml, to_dict
from tinyldm.config.schema import TrainConfig, TrainLDM
from tinyldm.errors import UserError
from tinyldm.files import replace_text
from tinyldm.training.run_folder import RunFolder, read_metrics


def config(path, **changes) -> TrainLDM:
    return TrainLDM(output_dir=str(path), train=TrainConfig(max_steps=5), **changes)


@contextlib.contextmanager
def opened(path, **changes):
    """A run folder whose lock is released at the end, as when a program ends."""
    run = RunFolder(config(path, **changes))
    try:
        yield run
    finally:
        run.lock.release()


def contents(path) -> set[str]:
    return {entry.name for entry in path.iterdir()} - {".lock"}


def test_a_new_run(tmp_path):
    with opened(tmp_path / "new" / "run") as run:
        assert contents(run.path) == {"samples", "config.yaml"}
        assert read_yaml(run.path / "config.yaml") == to_dict(config(run.path))


def test_a_used_folder_is_refused_and_not_changed(tmp_path):
    with opened(tmp_path) as run:
        run.log(step=1, loss=0.5)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"}
    with pytest.raises(UserError, match="in use; continue with --resume latest, or replace it with --overwrite true"):
        RunFolder(config(tmp_path, seed=3))
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"}


def test_the_folder_of_a_run_that_failed_before_its_first_step_can_be_reused(tmp_path):
    with opened(tmp_path) as run:
        (run.path / "logs").mkdir()
        (run.path / "logs" / "events").write_text("x")
    with opened(tmp_path, seed=3):
        assert read_yaml(tmp_path / "config.yaml")["seed"] == 3
    with opened(tmp_path, resume="latest", seed=4) as run:
        run.rewind(0)
        assert read_yaml(tmp_path / "config.yaml")["seed"] == 4


def test_a_folder_without_a_run_is_not_resumed(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="no run to resume"):
        RunFolder(config(tmp_path, resume="latest"))
    assert contents(tmp_path) == {"thesis.tex"}


def test_overwrite_deletes_a_run_but_not_the_targets_of_links(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    with opened(tmp_path / "run") as run:
        run.log(step=1, loss=0.5)
        for name in ("checkpoints/step-1/weights", "logs/events"):
            (run.path / name).parent.mkdir(parents=True)
            (run.path / name).write_text("x")
        (run.path / "pipeline").symlink_to(elsewhere)
    with opened(tmp_path / "run", overwrite=True) as run:
        assert contents(run.path) == {"samples", "config.yaml"} and run.rows == []
    assert contents(elsewhere) == {"kept"}


@pytest.mark.parametrize("files", [{"thesis.tex": "x"}, {"thesis.tex": "x", "config.yaml": "theme: dark\n"}])
def test_overwrite_only_deletes_runs(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"is not a run folder.*choose another"):
        RunFolder(config(tmp_path, overwrite=True))
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_a_second_process_is_refused(tmp_path):
    script = f"""
from tinyldm.config.schema import TrainConfig, TrainLDM
from tinyldm.training.run_folder import RunFolder
run = RunFolder(TrainLDM(output_dir={str(tmp_path)!r}, train=TrainConfig(max_steps=1)))
print("ready", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "ready\n"
            for changes in ({}, {"overwrite": True}, {"resume": "latest"}):
                with pytest.raises(UserError, match=r"another program trains in .*; choose another output_dir"):
                    RunFolder(config(tmp_path, **changes))
        finally:
            other.kill()  # even a killed program leaves no lock
    with opened(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):  # root may write to any other folder
        with pytest.raises(UserError, match=r"output_dir .* cannot be written \(.+\); choose another") as caught:
            RunFolder(config(path))
        assert "\n" not in str(caught.value)


def test_a_resumed_run_keeps_its_old_config_until_its_checkpoint_fits(tmp_path):
    with opened(tmp_path) as run:
        run.log(step=1, loss=0.5)
    with opened(tmp_path, resume="latest", seed=3):
        assert read_yaml(tmp_path / "config.yaml")["seed"] == 0
    with opened(tmp_path, resume="latest", seed=3) as run:
        run.rewind(1)
        assert read_yaml(tmp_path / "config.yaml")["seed"] == 3


# -------------------------------------------------------------------------------------------------------- metrics.csv


def test_metrics_are_read_bit_for_bit(tmp_path):
    random.seed(0)
    values = [random.uniform(-1, 1) * 10.0 ** random.randint(-30, 30) for _ in range(50)]
    values += [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1.0, math.inf, 2**60 + 1]
    expected = [{"step": step, "loss": value} for step, value in enumerate(values)]
    with opened(tmp_path) as run:
        for row in expected:
            run.log(**row)
        actual = read_metrics(run.metrics_file)
    assert [(row["step"], repr(row["loss"])) for row in actual] == [(row["step"], repr(row["loss"])) for row in expected]


def test_rows_of_one_step_are_merged_and_columns_may_be_added(tmp_path):
    with opened(tmp_path) as run:
        run.log(step=1, loss=0.5)
        run.log(step=2, loss=0.25)
        run.log(step=2, eval_loss=0.125)
        run.log(step=3, loss=math.nan)
        assert run.metrics_file.read_text().splitlines() == ["step,loss,eval_loss", "1,0.5,", "2,0.25,0.125", "3,nan,"]
        assert read_metrics(run.metrics_file)[:2] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "eval_loss": 0.125}]


def test_a_resumed_run_writes_the_rows_of_an_uninterrupted_one(tmp_path):
    def train(run: RunFolder, first: int, last: int) -> None:
        for step in range(first, last + 1):
            run.log(step=step, loss=1 / step)
            if step % 3 == 0:
                run.log(step=step, eval_loss=2 / step)

    with opened(tmp_path / "unbroken") as run:
        train(run, 1, 10)
    with opened(tmp_path / "broken") as run:
        train(run, 1, 8)  # the checkpoint is of step 5
    with opened(tmp_path / "broken", resume="latest") as run:
        run.rewind(5)
        assert [row["step"] for row in run.rows] == [1, 2, 3, 4, 5]
        train(run, 6, 10)
    assert (tmp_path / "broken" / "metrics.csv").read_bytes() == (tmp_path / "unbroken" / "metrics.csv").read_bytes()


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []
    (tmp_path / "metrics.csv").touch()
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_two_processes_that_write_one_file_at_once(tmp_path, monkeypatch):
    replace = os.replace

    def after_another(aside, file):
        with monkeypatch.context() as other:
            other.setattr(os, "replace", replace)
            other.setattr(os, "getpid", lambda: 1)
            replace_text(file, "theirs")
        assert file.read_text() == "theirs"
        replace(aside, file)

    monkeypatch.setattr(os, "replace", after_another)
    replace_text(tmp_path / "made_of.json", "ours")
    assert (tmp_path / "made_of.json").read_text() == "ours" and contents(tmp_path) == {"made_of.json"}


@pytest.mark.parametrize(
    "content",
    [
        b"step,loss\n1,high\n",
        b"loss\n0.5\n",
        b"\xff\xfe\x00",
        b"step,loss\n1,0.5,0.7\n",
        b"<html></html>\n<p>\n",
        b"step\x00\n1\n",
    ],
)
def test_a_damaged_metrics_file(content, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match="is not a table of numbers") as caught:
        read_metrics(tmp_path / "metrics.csv")
    assert "\n" not in str(caught.value)
