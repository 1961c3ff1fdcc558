"""A run that is stopped or killed at any moment and resumed equals an undisturbed one, bit for bit."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.processes import Training
from tests.support.runs import DATA, EVERY_STEP, VQ

pytestmark = pytest.mark.slow


STEPS = 11
SAVING = ["--train.checkpointing_steps", 3, "--train.eval_steps", 5, "--train.logging_steps", 5, "--train.max_steps", STEPS]


@pytest.fixture(scope="module", params=["vq", "ldm"])
def kind(request) -> tuple[str, list]:
    """A first stage from a stream, with both optimizers, and a denoiser on latents. Both use flips and accumulation."""
    ldm = ["--train.ema_snapshot_steps", 2]
    args = [*DATA, *EVERY_STEP, *VQ] if request.param == "vq" else [*request.getfixturevalue("ldm_args"), *ldm]
    return f"train_{request.param}", [*args, *SAVING, "--train.gradient_accumulation_steps", 2, "--resume", "latest"]


@pytest.fixture(scope="module")
def whole(kind, tmp_path_factory) -> tuple[Path, int, float]:
    """(folder, number of changed files, seconds) of an undisturbed run."""
    folder, started = tmp_path_factory.mktemp("whole"), time.monotonic()
    training = Training(kind[0], ["--output_dir", folder / "run", *kind[1]], folder / "printed.txt")
    assert training.wait() == 0, training.text()
    return folder / "run", training.changes, time.monotonic() - started


def finished(run: Path) -> dict[str, bytes]:
    """The files that must be equal: metrics, the last checkpoint's weights and optimizers, the model, the snapshots."""
    state = [file for file in (run / "checkpoints" / f"step-{STEPS}").iterdir() if file.suffix in (".safetensors", ".pt")]
    shipped = [file for part in ("pipeline", "vqvae", "ema") for file in (run / part).rglob("*") if file.is_file()]
    return {str(file.relative_to(run)): file.read_bytes() for file in [run / "metrics.csv", *state, *shipped]}


def left_over(run: Path) -> list[Path]:
    return [path for path in run.rglob(".*") if path.name not in (".lock", ".manifest")]


def test_killed_at_random_moments(kind, whole, tmp_path, request):
    """SIGKILL after a random time, or before a random change of a file: during a save, an export, or writing metrics.csv.

    The long form: `pytest tests/training/test_interruption.py --kills 40`.
    """
    script, args = kind
    folder, changes, seconds = whole
    expected, kills, runs = finished(folder), 0, 0
    rng = random.Random(0)
    while kills < request.config.getoption("--kills"):
        runs += 1
        run, exit_code = tmp_path / str(runs), None
        while exit_code != 0:
            kill_at, delay = None, None
            if kills < request.config.getoption("--kills"):
                if rng.random() < 0.6:
                    kill_at = rng.randrange(changes)
                else:
                    delay = rng.uniform(0, seconds)
            training = Training(script, ["--output_dir", run, *args], tmp_path / "printed.txt", signal.SIGKILL, kill_at)
            if delay is not None and training.wait(delay) is None:
                training.send(signal.SIGKILL)
            exit_code = training.wait()
            assert exit_code in (0, -signal.SIGKILL), training.text()
            kills += exit_code != 0
        assert finished(run) == expected, f"run {runs} differs"
        assert left_over(run) == []
    print(f"{script}: {kills} kills, {runs} runs, each equal to the undisturbed one in {len(expected)} files")


@pytest.mark.parametrize(
    ("number", "part"), [(signal.SIGINT, 0.3), (signal.SIGTERM, 0.45), (signal.SIGUSR1, 0.6)], ids=["INT", "TERM", "USR1"]
)
def test_a_signal_saves_and_stops(number, part, kind, whole, tmp_path):
    """The signal arrives during a save, so the next step is saved, which is between two rows of metrics.csv."""
    script, args = kind
    folder, changes, _ = whole
    run, printed = tmp_path / "run", tmp_path / "printed.txt"
    training = Training(script, ["--output_dir", run, *args], printed, number, int(part * changes))
    assert training.wait() == 128 + number, training.text()
    [told] = [line for line in training.text().splitlines() if "stopped by" in line]
    last = max((run / "checkpoints").iterdir(), key=lambda checkpoint: int(checkpoint.name.removeprefix("step-")))
    assert told == f"stopped by {number.name}: {last.name.replace('-', ' ')} is saved, continue with --resume latest"
    assert "Traceback" not in training.text()
    assert Training(script, ["--output_dir", run, *args], printed).wait() == 0
    assert finished(run) == finished(folder)
