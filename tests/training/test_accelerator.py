"""Several ranks, with gloo on the CPU: they train and stop like a single one, and a single one can resume their run."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.support.processes import Training, together
from tests.support.runs import DATA, DDPM, DIGITS, EVERY_STEP, ROOT, VQ, rows
from tinyldm.config.schema import TrainConfig
from tinyldm.errors import UserError
from tinyldm.training.accelerator import make_accelerator

pytestmark = pytest.mark.slow


# Sums are computed in another order. The difference starts at 1e-7 and grows with the steps, fastest in the ratio of two
# gradient norms: after six steps it was 3e-3 on one CPU and 1e-4 on another.
TOLERANCE, OF_RATIO = 1e-3, 1e-2
GLOBAL_BATCH = 8


@pytest.fixture(params=["vq", "ldm"])
def kind(request) -> tuple[str, list]:
    """Script and arguments of a short training."""
    args = (
        [*DATA, *EVERY_STEP, *VQ, "--loss.quantize_start", 1] if request.param == "vq" else request.getfixturevalue("ldm_args")
    )
    each = ["--train.eval_steps", 3, "--train.checkpointing_steps", 3, "--train.gradient_accumulation_steps", 2]
    return f"train_{request.param}", [*args, *each, "--train.max_steps", 6]


def train(processes: int, script: str, args: list, output_dir: Path) -> None:
    args = [*args, "--output_dir", output_dir, "--train.batch_size", GLOBAL_BATCH // processes]
    for training in together(processes, script, args, output_dir.with_suffix(".txt")):
        assert training.wait() == 0, training.text()


def assert_same(one: list[dict], other: list[dict]) -> None:
    assert [row["step"] for row in one] == [row["step"] for row in other]
    for a, b in zip(one, other, strict=True):
        for key in a:
            if a[key]:
                tolerance = OF_RATIO if key == "adaptive_weight" else TOLERANCE
                assert float(a[key]) == pytest.approx(float(b[key]), rel=tolerance), (a["step"], key)


def test_two_ranks_train_like_one_and_each_resumes_the_others_run(kind, tmp_path):
    """With the same global batch: the same images, noise, timesteps and revived codes; gradients and sums are reduced."""
    for processes in (1, 2):
        train(processes, *kind, tmp_path / str(processes))
    alone = rows(tmp_path / "1")
    assert_same(alone, rows(tmp_path / "2"))
    for before, after in ((1, 2), (2, 1)):
        resumed = tmp_path / f"{before}-{after}"
        shutil.copytree(tmp_path / str(before), resumed)
        shutil.rmtree(resumed / "checkpoints" / "step-6")
        train(after, kind[0], [*kind[1], "--resume", "latest"], resumed)
        assert_same(alone, rows(resumed))


def test_a_resumed_run_with_other_batches_and_ranks_continues_at_its_image(tmp_path):
    """2 ranks with batches of 8, then 1 with 16, then 1 with 8. test_latent_store.py and test_data_order.py check images."""
    args = [*DIGITS, *DDPM, *EVERY_STEP]

    def go(ranks: int, batch_size: int, max_steps: int, folder: Path, *more: str) -> None:
        change = ["--output_dir", folder, "--train.batch_size", batch_size, "--train.max_steps", max_steps, *more]
        for training in together(ranks, "train_ddpm", [*args, *change], folder.with_suffix(f".{batch_size}.txt")):
            assert training.wait() == 0, training.text()

    run = tmp_path / "run"
    go(2, 8, 5, tmp_path / "two")
    go(2, 8, 3, run)
    go(1, 16, 5, run, "--resume", "latest")
    shared = ("step", "images", "loss")
    assert_same(*([{key: row[key] for key in shared} for row in rows(path)] for path in (run, tmp_path / "two")))
    go(1, 8, 7, run, "--resume", "latest")
    assert [int(row["images"]) for row in rows(run)] == [16, 32, 48, 64, 80, 88, 96]


def test_a_signal_to_one_rank_stops_all_at_the_same_step(ldm_args, tmp_path):
    args = ["--output_dir", tmp_path / "run", *ldm_args, "--train.max_steps", 100000, "--train.eval_steps", 100000]
    both = together(2, "train_ldm", args, tmp_path / "printed")
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert both[1].wait(0.05) is None, both[1].text()
    both[1].send(signal.SIGUSR1)  # not the main rank
    assert [training.wait() for training in both] == [128 + signal.SIGUSR1] * 2, both[0].text()
    [saved] = (tmp_path / "run" / "checkpoints").iterdir()
    assert load_file(saved / "ema.safetensors")
    assert f"stopped by SIGUSR1: {saved.name.replace('-', ' ')} is saved" in both[0].text()


def test_the_launch_command_of_the_readme(tmp_path):
    """Two ranks of accelerate launch, with classes: they share one stream, and only the main rank writes."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0]
    args = [*DIGITS, *DDPM, *EVERY_STEP, "--data.label_columns", "label", "--train.max_steps", 2]
    command = [*launch, "train_ddpm.py", "--output_dir", tmp_path / "run", *args]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [row["images"] for row in rows(tmp_path / "run")] == ["16", "32"]
    assert "label (0, 1, 2," in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.usefixtures("forgetful")
def test_the_recipe_and_not_accelerates_config_controls_compiling(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert make_accelerator(TrainConfig(), str(tmp_path)).state.dynamo_plugin.backend == "NO"


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("key", "default", "other"), [("mixed_precision", "no", "bf16"), ("gradient_accumulation_steps", 1, 3)]
)
def test_accelerates_own_settings_are_those_of_the_recipe_or_refused(key, default, other, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_{key.upper()}", str(other))
    with pytest.raises(UserError, match=rf"{key} {other}.*set train.{key} to {other}"):
        make_accelerator(TrainConfig(), str(tmp_path))
    assert make_accelerator(TrainConfig(**{key: other}), str(tmp_path)).gradient_accumulation_steps == 1  # divides no loss
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv(f"ACCELERATE_{key.upper()}", str(default))  # what launch sets where nobody asks
    make_accelerator(TrainConfig(**{key: other}), str(tmp_path))


def test_launch_with_another_precision_is_refused_in_one_line(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1, "--mixed_precision", "bf16"]
    args = [*DIGITS, *DDPM, *EVERY_STEP, "--train.max_steps", 2, "--output_dir", tmp_path / "run"]
    done = subprocess.run(list(map(str, [*launch, "train_ddpm.py", *args])), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0 and "set train.mixed_precision to bf16" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("plan", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharding_plugins_are_refused(plan, ldm_args, tmp_path):
    environment = {plan: "true", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = "29577"
    args = ["--output_dir", tmp_path / "run", *ldm_args, "--train.max_steps", 2]
    training = Training("train_ldm", args, tmp_path / "printed", environment=environment)
    assert training.wait() == 2, training.text()
    [told] = [line for line in training.text().splitlines() if line.startswith("error")]
    assert "a network of 5M parameters fits on each GPU" in told
