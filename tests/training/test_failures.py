"""What goes wrong beside a training does not take the training with it."""

import errno
import os
import resource
import shutil
import signal
import stat

import accelerate
import pytest
import torch

import sample
import train_ddpm
import train_vq
from tests.support.processes import Training
from tests.support.runs import DATA, DDPM, DIGITS, EVERY_STEP, VQ, files, rows, run
from tinyldm import pictures
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.errors import UserError, is_full_disk, is_out_of_memory
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest
from tinyldm.training import checkpoint, hub, trainer
from tinyldm.training.run_folder import RunFolder

ARGS = [*DIGITS, *EVERY_STEP, *DDPM, "--train.max_steps", 2, "--train.checkpointing_steps", 1]


def raising(error: Exception):
    def fails(*args, **kwargs):
        raise error

    return fails


def after_the_rehearsal(method, error: Exception):
    """The method, which fails from its second call on."""
    calls = []

    def fails(*args, **kwargs):
        calls.append(args)
        if len(calls) > 1:
            raise error
        return method(*args, **kwargs)

    return fails


# ------------------------------------------------------------------------------------- what may fail without an end


EXTRAS = {
    "the picture": (DiffusionTask, "picture", RuntimeError("no codec")),
    "loss.png": (pictures, "curves", ImportError("no matplotlib")),
    "train.log_with none": (accelerate.Accelerator, "log", ConnectionError("tracker is down")),
    "the evaluation": (DiffusionTask, "evaluate", torch.OutOfMemoryError("out of memory")),
    "README.md": (trainer.model_card, "write", PermissionError(errno.EACCES, "Permission denied")),
    "metrics.csv": (RunFolder, "log", OSError(errno.EIO, "Input/output error")),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", EXTRAS)
def test_an_extra_that_fails_is_a_warning_and_every_checkpoint_is_saved(what, tmp_path, monkeypatch, capsys):
    owner, name, error = EXTRAS[what]
    monkeypatch.setattr(owner, name, raising(error))
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *ARGS, curves=True)
    assert checkpoint.steps(tmp_path / "run") == [1, 2]
    assert (tmp_path / "run" / "pipeline" / "model_index.json").exists()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warnings and {line for line in warnings if f"{what} failed at step " not in line} == set()
    assert all(type(error).__name__ in line and line.endswith("the training continues") for line in warnings)


@pytest.mark.slow
def test_a_push_that_cannot_be_prepared_is_a_warning(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub.BackgroundPush, "start", raising(ValueError("odd file")))
    args = [*ARGS, "--hub.push", "true", "--hub.repo_id", "me/digits", "--hub.push_steps", 1]
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *args)
    assert "warning: the push failed at step 1 (ValueError: odd file); the training continues" in capsys.readouterr().err
    assert server.history("me/digits") == ["Step 2, the last"]


@pytest.mark.slow
def test_after_a_failed_evaluation_the_best_checkpoint_is_still_right(tmp_path, monkeypatch):
    whole = DiffusionTask.evaluate

    def fails_at_the_first_step(task):
        if len(checkpoint.steps(tmp_path / "run")) == 0:
            raise MemoryError
        return whole(task)

    monkeypatch.setattr(DiffusionTask, "evaluate", fails_at_the_first_step)
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *ARGS, "--train.eval_steps", 1)
    assert [row["eval_loss"] != "" for row in rows(tmp_path / "run")] == [False, True]
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-2")[2]
    assert state["best_step"] == 2 and state["best_figure"] == float(rows(tmp_path / "run")[1]["eval_loss"])


# ------------------------------------------------------------------------------------------- what is tried at the start


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        (train_ddpm, ["--diffusion.preview_images", 0], "diffusion.preview_images is 0; give a whole number from 1 to"),
        (train_ddpm, ["--diffusion.preview_steps", 0], "diffusion.preview_steps is 0; give a whole number"),
        (train_vq, ["--loss.discriminator_layers", 3], "loss.discriminator_layers 3 are too many for images of 16 px"),
        (train_vq, ["--loss.discriminator_layers", 6, "--data.resolution", 64], "layers 6 are too many for images of 64 px"),
    ],
)
def test_settings_that_are_used_late_are_refused_at_the_start(script, args, words, tmp_path, monkeypatch):
    base = [*DATA, *EVERY_STEP, *VQ] if script is train_vq else ARGS
    with pytest.raises(UserError, match=words):
        run(monkeypatch, script, "--output_dir", tmp_path / "run", *base, "--train.max_steps", 3, *args)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["sample", "to_images", "grid"])
def test_a_part_of_the_previews_that_does_not_work_is_noticed_before_the_first_step(part, tmp_path, monkeypatch):
    place = {"sample": "diffusion.task.denoise", "to_images": "diffusion.task.to_images", "grid": "pictures.grid"}[part]
    monkeypatch.setattr(f"tinyldm.{place}", raising(RuntimeError("does not work")))
    monkeypatch.setattr(trainer.Trainer, "_step", raising(AssertionError("a step")))
    with pytest.raises(RuntimeError, match="does not work"):
        run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *ARGS)


# ------------------------------------------------------------------------------------------------- memory, disk, folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: the last checkpoint is step-1"),
        (MemoryError(), "out of memory: the last checkpoint is step-1; use a smaller train.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: the last checkpoint is step-1"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            "no space left for /x/y: the last checkpoint is step-1; free",
        ),
    ],
)
def test_too_little_memory_or_disk_is_one_line_with_the_last_checkpoint(error, words, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", after_the_rehearsal(torch.optim.AdamW.step, error))
    with pytest.raises(UserError, match=words) as caught:
        run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *ARGS)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("and continue with --resume latest")


def test_memory_is_recognised_as_used_up_by_real_allocators():
    for allocate in (lambda: torch.empty(2**55), lambda: bytearray(2**62), lambda: torch.zeros(1).numpy().repeat(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)
    for error in (RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("x")):
        assert not is_out_of_memory(error)


def test_a_disk_that_fills_up_at_any_byte_of_a_checkpoint_is_recognised(tmp_path):
    """In a process of its own, whose files may grow to so many bytes."""
    optimizers = {"unet": {"state": {i: torch.zeros(400) for i in range(5)}}}
    whole = checkpoint.save(tmp_path / "whole", 1, {"unet": {"w": torch.zeros(9)}}, optimizers, {}) / "optimizers.pt"
    for size in (0, 1, 64, 100, 1600, whole.stat().st_size // 2, whole.stat().st_size - 300, whole.stat().st_size - 1):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            code = 1
            try:
                checkpoint.save(tmp_path / str(size), 1, {}, optimizers, {})
            except BaseException as error:
                code = 0 if is_full_disk(error) else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, size


@pytest.mark.slow
@pytest.mark.parametrize("change", ["deleted", "renamed", "pipeline", "checkpoints"])
def test_a_run_whose_folder_vanishes_or_becomes_a_link_stops(change, tmp_path, monkeypatch):
    place, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    step = trainer.Trainer._step

    def then(self, batches):
        step(self, batches)
        if self.state.step == 2:
            if change == "deleted":
                shutil.rmtree(place)
            elif change == "renamed":
                place.rename(elsewhere)
            else:
                shutil.move(place / change, elsewhere)
                (place / change).symlink_to(elsewhere)

    monkeypatch.setattr(trainer.Trainer, "_step", then)
    with pytest.raises(UserError, match=r"was deleted or replaced while|is a symbolic link") as caught:
        run(monkeypatch, train_ddpm, "--output_dir", place, *ARGS, "--train.max_steps", 9)
    assert "\n" not in str(caught.value)
    assert not place.exists() or change in ("pipeline", "checkpoints")


@pytest.mark.slow
def test_a_run_with_a_linked_model_is_not_resumed(tmp_path, monkeypatch):
    run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *ARGS)
    shutil.move(tmp_path / "run" / "pipeline", tmp_path / "elsewhere")
    (tmp_path / "run" / "pipeline").symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="pipeline is a symbolic link"):
        run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *ARGS, "--train.max_steps", 3, "--resume", "latest")
    assert files(tmp_path / "elsewhere") == before


# ------------------------------------------------------------------------------------------------- replacing an old run


@pytest.mark.slow
def test_a_start_that_fails_leaves_the_old_run_and_one_that_does_not_replaces_it(tmp_path, monkeypatch):
    place = tmp_path / "run"
    run(monkeypatch, train_ddpm, "--output_dir", place, *ARGS, "--train.log_with", "tensorboard")
    run(
        monkeypatch, sample, "--model", place, "--num_images", 2, "--num_inference_steps", 2, "--output_dir", place / "pictures"
    )
    before = {name: (place / name).read_bytes() for name in files(place)}
    for wrong in (
        ["--data.name", tmp_path / "faecs"],
        ["--data.label_columns", "lable"],
        ["--data.eval_split", "nothing"],
        ["--hub.push", "true", "--hub.repo_id", "me/x"],
        ["--train.metrics_steps", 1, "--train.metrics_features", "dinov2"],
    ):
        with pytest.raises(UserError):
            run(monkeypatch, train_ddpm, "--output_dir", place, *ARGS, "--overwrite", "true", *wrong)
        assert {name: (place / name).read_bytes() for name in files(place)} == before, wrong
    run(monkeypatch, train_ddpm, "--output_dir", place, *ARGS, "--overwrite", "true", "--train.max_steps", 1)
    assert checkpoint.steps(place) == [1] and not (place / "pictures").exists() and not (place / "logs").exists()


@pytest.mark.slow
def test_everything_that_a_training_writes_is_on_its_list(tmp_path, monkeypatch):
    for script, args in ((train_ddpm, ARGS), (train_vq, [*DATA, *EVERY_STEP, *VQ, "--train.max_steps", 2])):
        folder = tmp_path / script.__name__
        run(monkeypatch, script, "--output_dir", folder, *args, "--train.log_with", "tensorboard")
        assert Manifest(folder).foreign() == []
        assert {"logs", "checkpoints", "samples"} <= {file.relative_to(folder).parts[0] for file in Manifest(folder).files()}


@pytest.mark.slow
def test_a_project_folder_is_refused_in_one_line(tmp_path):
    """As a user would run it: exit code 2, and no file is lost."""
    (tmp_path / "project" / ".git").mkdir(parents=True)
    texts = {"config.yaml": "output_dir: .\ndata: {}\ntrain: {}\n", ".git/HEAD": "ref", "thesis.tex": "x"}
    for name, text in texts.items():
        (tmp_path / "project" / name).write_text(text)
    args = ["--output_dir", tmp_path / "project", "--overwrite", "true", *ARGS]
    training = Training("train_ddpm", args, tmp_path / "printed.txt")
    assert training.wait() == 2, training.text()
    assert len([line for line in training.text().splitlines() if line.startswith("error: ")]) == 1
    assert {name: (tmp_path / "project" / name).read_text() for name in files(tmp_path / "project")} == texts


# ----------------------------------------------------------------------------------------------------- permissions


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_of_the_umask(umask, tmp_path, monkeypatch):
    before = os.umask(umask)
    try:
        run(monkeypatch, train_ddpm, "--output_dir", tmp_path / "run", *ARGS, "--train.max_steps", 1)
        replace_text(tmp_path / "run" / "x.txt", "x")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / "run" / name).stat().st_mode) for name in files(tmp_path / "run")}
    modes.pop(".lock")
    assert set(modes.values()) == {0o666 & ~umask}, modes
