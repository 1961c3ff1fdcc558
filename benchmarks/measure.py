"""Shared by all benchmarks: paired timings, ratios, trainings of a given duration, and JSON files with their origin."""

import dataclasses
import json
import multiprocessing
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from tinyldm.config.evaluate import run_folder
from tinyldm.config.parsing import read_yaml
from tinyldm.config.schema import DataConfig, Training
from tinyldm.data.sources import open_sources
from tinyldm.diffusion.latent_task import LatentTask
from tinyldm.diffusion.pixel_task import PixelTask
from tinyldm.errors import UserError
from tinyldm.first_stage.task import VQTask
from tinyldm.metrics.image_sets import data_part
from tinyldm.training.accelerator import cores
from tinyldm.training.task import Task
from tinyldm.training.trainer import Trainer, run_training

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "performance"
LIBRARIES = ("torch", "diffusers", "accelerate", "datasets", "pillow", "torchvision")
Config = TypeVar("Config", bound=Training)
TRIAL_STEPS = 8  # to estimate the time per step; the first one is not counted

# ----------------------------------------------------------------------------------------------------------------- pairs


def in_turns(ours: Callable[[], float], other: Callable[[], float], pairs: int) -> list[tuple[float, float]]:
    """(ours, other) for each pair, in the order A B, B A, A B ..., so that a temporary slowdown affects both.

    Args:
        ours, other: do the work and return the speed, e.g. in images per second. Each is first called once uncounted.
    """
    ours(), other()
    speeds = []
    for number in range(pairs):
        if number % 2:
            slow = other()
            speeds.append((ours(), slow))
        else:
            speeds.append((ours(), other()))
    return speeds


def ratio(speeds: list[tuple[float, float]]) -> dict[str, float]:
    """Median, min and max of ours / other over the pairs, and the median of each."""
    ratios = [a / b for a, b in speeds]
    return {
        "median": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "pairs": len(speeds),
        "ours": statistics.median(a for a, _ in speeds),
        "other": statistics.median(b for _, b in speeds),
    }


def told(name: str, figures: dict[str, float], unit: str = "images/s") -> str:
    """One line of text about a ratio."""
    return (
        f"{name}: {figures['ours']:.4g} against {figures['other']:.4g} {unit}, {figures['median']:.3g} times "
        f"({figures['min']:.3g} to {figures['max']:.3g} in {figures['pairs']} pairs)"
    )


# ------------------------------------------------------------------------------------------------------------- trainings


def clock() -> Callable[[], float]:
    """A clock in seconds. With one CPU thread it counts CPU time, which does not depend on other load."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


class Clock(Task):
    """A mixin for tasks that records when each step ended."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.ended: list[float] = []
        self.now = clock()

    def after_step(self, *args: Any) -> None:
        """See training.task.Task."""
        super().after_step(*args)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended.append(self.now())

    def seconds_a_step(self) -> float:
        """Median over all steps but the first. Too few steps contain evaluations to change it."""
        return statistics.median(after - before for before, after in zip(self.ended[:-1], self.ended[1:], strict=True))


class TimedLatents(Clock, LatentTask):
    """LatentTask with a clock."""


class TimedPixels(Clock, PixelTask):
    """PixelTask with a clock."""


class TimedVQ(Clock, VQTask):
    """VQTask with a clock."""


def changed(config: Config, **train: Any) -> Config:
    """A copy with these keys changed in its section `train`. It overwrites the run folder."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train), overwrite=True)


def quietly(config: Config, steps: int) -> Config:
    """The config for a few steps, with as little other work as possible."""
    quiet = {"num_eval_images": 2, "lr_warmup_steps": 0, "log_with": "none", "lr_scheduler": "constant", "lr_step_rules": None}
    few: Any = changed(config, max_steps=steps, **quiet)
    if hasattr(few, "diffusion"):
        few = dataclasses.replace(few, diffusion=dataclasses.replace(few.diffusion, preview_images=1, preview_steps=1))
    return few


def steps_in(config: Training, kind: type[Clock], seconds: float) -> int:
    """How many steps fit into this many seconds, estimated from a short trial."""
    steps = TRIAL_STEPS if seconds > 30 else 3
    with tempfile.TemporaryDirectory() as folder:
        trial = run_training(dataclasses.replace(quietly(config, steps), output_dir=folder), kind)
    return max(2, round(seconds / trial.task.seconds_a_step()))


def train_steps(config: Training, kind: type[Clock], steps: int, evaluations: int = 1) -> Trainer:
    """Train with the loop of the training scripts. Learning-rate schedule, warm-up and evaluations keep their share of the
    steps."""
    return run_training(
        changed(
            config,
            max_steps=steps,
            num_epochs=None,
            lr_warmup_steps=steps // 20,
            eval_steps=max(1, steps // evaluations),
            sample_steps=steps,
            checkpointing_steps=steps,
            checkpoints_total_limit=1,
            log_with="none",
        ),
        kind,
    )


# ---------------------------------------------------------------------------------------------------------------- memory


def megabytes(what: str) -> float:
    """Memory of this process, on Linux.

    Args:
        what: `VmHWM`, the peak (getrusage's ru_maxrss would include the parent's peak); `RssAnon`, the current memory not
            backed by files; `RssFile`, the current pages of mapped files.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def in_new_process(function: Callable, *args: object) -> Any:
    """The result of a function, called in a new operating-system process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


# ---------------------------------------------------------------------------------------------------------- a run's data


def data_of(model: str, data: str | None = None) -> tuple[Path, DataConfig, int]:
    """The folder of a run, what it was trained on, and the seed that split it.

    Args:
        data: path of the data, if they have moved.

    Raises:
        UserError: for a model that is not a run.
    """
    run = run_folder(model)
    if run is None:
        raise UserError(f"{model} is not a run: its config.yaml says which images are held out")
    values = read_yaml(run / "config.yaml")
    return run, DataConfig(**{**values["data"], **({"name": data} if data else {})}), values["seed"]


def held_out(data: DataConfig, seed: int, limit: int) -> torch.Tensor:
    """The first held-out images, uint8 (N, 3, H, W)."""
    images = data_part(open_sources(data, seed)[1], data, "held_out", seed, batch_size=32)
    return torch.cat([batch for batch, _ in images.batches(0, limit)])


# --------------------------------------------------------------------------------------------------------------- results


def use_all_cores() -> None:
    """Use all cores, like the training scripts."""
    torch.set_num_threads(cores())


def machine() -> dict[str, Any]:
    """The machine and library versions that the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "gpus": gpus,
        # At the end; about `cores` if nothing else was running.
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def commit() -> str:
    """The commit of the code, with `-dirty` if files differ, except documents, which the benchmarks write themselves."""
    if shutil.which("git") is None:
        return "unknown"

    def git(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)

    name = git("rev-parse", "--short", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", ".", ":!docs", ":!README.md").returncode
    return (name or "unknown") + ("-dirty" if changed == 1 else "")


def record_model(name: str, model: str, row: dict[str, Any], output: str, small: bool) -> None:
    """Write output/NAME.json with a row for this model, and the rows of others that were there."""
    before = Path(output) / f"{name}.json"
    models = json.loads(before.read_text())["models"] if before.exists() else {}
    record(name, {"models": models | {model: row}}, output, small)


def record(name: str, figures: dict[str, Any], output: str, small: bool, script: str | None = None) -> None:
    """Write output/NAME.json.

    Args:
        small: it was a trial with tiny sizes, whose numbers do not go into docs/performance.md.
        script: the benchmark, if it is not called NAME.
    """
    result = {
        "command": shlex.join(["python", "-m", f"benchmarks.{script or name}", *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "small": small,
        "machine": machine(),
        **figures,
    }
    Path(output).mkdir(parents=True, exist_ok=True)
    file = Path(output) / f"{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {file}")
