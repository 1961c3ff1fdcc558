import contextlib
import math
import os
import random
import subprocess
import sys

import pytest

from tinyldm.config.parsing import read_yaml, to_dict
from tinyldm.config.schema import DataConfig, FirstStageConfig, TrainConfig, TrainLDM
from tinyldm.errors import UserError
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest
from tinyldm.training import checkpoint
from tinyldm.training.run_folder import RunFolder, read_metrics


def config(path, **changes) -> TrainLDM:
    return TrainLDM(output_dir=str(path), train=TrainConfig(max_steps=5), **changes)


@contextlib.contextmanager
def opened(path, **changes):
    """A run that has begun. Its lock is released at the end, as when a program ends."""
    run = RunFolder(config(path, **changes))
    try:
        run.start()
        yield run
    finally:
        run.release()


def contents(path) -> set[str]:
    return {entry.name for entry in path.iterdir()} - {".lock", ".manifest"}


def test_a_new_run(tmp_path):
    with opened(tmp_path / "new" / "run") as run:
        assert contents(run.path) == {"config.yaml"}
        assert read_yaml(run.path / "config.yaml") == to_dict(config(run.path))


def test_a_used_folder_is_refused_and_not_changed(tmp_path):
    with opened(tmp_path) as run:
        run.log(step=1, loss=0.5)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"}
    with pytest.raises(UserError, match="resume it with --resume latest, replace it with --overwrite true"):
        RunFolder(config(tmp_path, seed=3))
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"}


def test_the_folder_of_a_run_that_failed_before_its_first_step_can_be_reused(tmp_path):
    with opened(tmp_path) as run:
        (run.path / "logs").mkdir()
        run.manifest.own(run.path / "logs" / "events").write_text("x")
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


def contents_of_all(path) -> dict[str, bytes]:
    """Each regular file below, but for the lock and the manifest."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in (".lock", ".manifest"))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def finished(path, **changes):
    """The folder of a finished run: files of each kind that a training writes."""
    with opened(path, **changes) as run:
        run.log(step=1, loss=0.5)
        for name in ("checkpoints/step-1/weights", "logs/events", "pipeline/unet/weights", "README.md"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            run.manifest.own(path / name).write_text("x")
    return path


def test_overwrite_replaces_a_run_when_the_next_one_starts(tmp_path):
    before = contents_of_all(finished(tmp_path / "run"))
    run = RunFolder(config(tmp_path / "run", overwrite=True))
    assert contents_of_all(run.path) == before  # the data of the new one may not exist
    run.start()
    assert contents(run.path) == {"config.yaml"} and run.rows == []
    run.release()


def test_a_run_that_cannot_start_leaves_the_old_one(tmp_path, monkeypatch):
    before = contents_of_all(finished(tmp_path / "run"))

    def fails(*_):
        raise OSError(28, "No space left on device")

    run = RunFolder(config(tmp_path / "run", overwrite=True))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("tinyldm.training.run_folder.replace_text", fails)
        run.start()
    run.release()
    assert contents_of_all(tmp_path / "run") == before
    assert Manifest(tmp_path / "run").foreign() == []


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/step-1/mine.pt", "logs/paper.pdf", "new/folder/photo.jpg"])
@pytest.mark.parametrize("changes", [{"overwrite": True}, {}])
def test_overwrite_refuses_a_run_with_files_of_others(changes, name, tmp_path):
    (finished(tmp_path) / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = contents_of_all(tmp_path)
    with pytest.raises(UserError, match=f"holds {name}, not written by its run" if changes else "holds a run already"):
        RunFolder(config(tmp_path, **changes))
    assert contents_of_all(tmp_path) == before


def test_overwrite_refuses_links_and_their_targets_stay(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("x")
    run = finished(tmp_path / "run")
    for link in ("samples", "checkpoints/step-2", "README.md"):
        (run / link).unlink(missing_ok=True)
        (run / link).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=f"holds {link}"):
            RunFolder(config(run, overwrite=True))
        (run / link).unlink()
    assert contents(tmp_path / "elsewhere") == {"kept"}


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "x"},
        {"thesis.tex": "x", "config.yaml": "theme: dark\n"},
        {"config.yaml": "output_dir: .\ndata: {}\ntrain: {}\n"},
        {"config.yaml": "output_dir: .\ndata: {}\ntrain: {}\n", ".git/HEAD": "ref", "train.py": "x"},
        {"metrics.csv": "step\n", ".manifest": "metrics.csv\n"},
        {".replaced/photo.jpg": "x", ".discarded/photo.jpg": "x"},
    ],
)
def test_overwrite_only_deletes_what_a_run_wrote(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"holds .*: nothing in it is deleted; choose another"):
        RunFolder(config(tmp_path, overwrite=True))
    found = {file.relative_to(tmp_path).as_posix(): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == files  # not even a lock is left


@pytest.mark.parametrize("key", ["name", "data_files", "first_stage"])
def test_overwrite_refuses_inputs_inside_the_run(key, tmp_path):
    inside = finished(tmp_path / "run") / "pipeline"
    before = contents_of_all(tmp_path)
    if key == "first_stage":
        changes = {"first_stage": FirstStageConfig(str(inside))}
    else:
        changes = {
            "data": DataConfig(**({"name": str(inside)} if key == "name" else {"data_files": {"train": [f"{inside}/*"]}}))
        }
    with pytest.raises(UserError, match=r"would delete.*move it elsewhere"):
        RunFolder(config(tmp_path / "run", overwrite=True, **changes))
    assert contents_of_all(tmp_path) == before


def test_a_run_inside_the_folder_of_its_data_is_refused(tmp_path):
    for data in (DataConfig(str(tmp_path)), DataConfig("imagefolder", data_files=f"{tmp_path}/**")):
        with pytest.raises(UserError, match="whose images are read: choose another output_dir"):
            RunFolder(config(tmp_path / "faces" / "run", data=data))
    with opened(tmp_path / "run", data=DataConfig("parquet", data_files=f"{tmp_path}/**/*.parquet")):
        pass


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint.save(finished(tmp_path / "other"), 1, {}, {}, {})
    before = contents_of_all(finished(tmp_path / "run"))
    with pytest.raises(UserError, match=r"is not one of .*: set output_dir to its own run"):
        RunFolder(config(tmp_path / "run", resume=str(tmp_path / "other" / "checkpoints" / "step-1")))
    assert contents_of_all(tmp_path / "run") == before


def test_a_resumed_run_removes_what_a_kill_left_of_its_files(tmp_path):
    with opened(tmp_path) as run:
        run.manifest.own_all([tmp_path / "data.json", tmp_path / ".hidden"])
    left = (".data.json.17", ".config.yaml.18", "..hidden.19", "..manifest.20")
    kept = (".data.json.old", ".data.json", ".thesis.tex.17")
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    with opened(tmp_path, resume="latest"):
        assert {name for name in (*left, *kept) if (tmp_path / name).exists()} == set(kept)


def test_a_run_from_before_there_were_manifests_is_resumed_but_not_deleted(tmp_path):
    (finished(tmp_path) / ".manifest").unlink()
    with pytest.raises(UserError, match=r"holds README.md and \d more, not written by its run"):
        RunFolder(config(tmp_path, overwrite=True))
    with opened(tmp_path, resume="latest") as run:
        run.rewind(1)
        assert run.rows and Manifest(tmp_path).names() == {"config.yaml", "metrics.csv"}


def test_pictures_of_a_future_that_is_dropped_are_deleted(tmp_path):
    samples = finished(tmp_path) / "samples"
    samples.mkdir(exist_ok=True)
    for name in ("step-0000001.png", "step-0000002.png", "step-mine.png"):
        (samples / name).write_text("a picture")
    with opened(tmp_path, resume="latest") as run:
        run.rewind(1)
    assert not (samples / "step-0000002.png").exists()
    assert (samples / "step-0000001.png").exists() and (samples / "step-mine.png").exists()


@pytest.mark.parametrize("broken", ["deleted", "another in its place", "a link in its place", "a part is a link"])
def test_a_folder_that_vanishes_under_the_run_is_noticed(broken, tmp_path):
    with opened(tmp_path / "run") as run:
        run.check()
        (tmp_path / "elsewhere").mkdir()
        if broken == "a part is a link":
            (run.path / "pipeline").symlink_to(tmp_path / "elsewhere")
        else:
            run.path.rename(tmp_path / "moved")
        if broken == "another in its place":
            run.path.mkdir()
        if broken == "a link in its place":
            run.path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=r"was deleted or replaced|is a symbolic link"):
            run.check()


def test_a_model_is_replaced_with_the_files_that_a_user_put_beside_it(tmp_path):
    with opened(tmp_path / "run") as run:
        for weights in ("old", "new"):
            (run.path / ".exporting" / "pipeline").mkdir(parents=True)
            (run.path / ".exporting" / "pipeline" / "weights").write_text(weights)
            run.replace_model(run.path / ".exporting")
            (run.path / "pipeline" / "NOTES.md").write_text("mine")
        assert (run.path / "pipeline" / "weights").read_text() == "new"
        assert contents(run.path / "pipeline") == {"weights", "NOTES.md"}


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
