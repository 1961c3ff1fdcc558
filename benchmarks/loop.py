"""Overhead of the training loop: train_ldm.py's loop compared with a bare forward, backward and optimizer step.

    python -m benchmarks.loop                     # configs/faces64.yaml's network: about 4 minutes on 2 CPU cores
    python -m benchmarks.loop --small true        # a small network, to check that it runs

Steps of both are timed in pairs. A step of the loop includes latents from the store, noise, loss, gradient clipping, averaged
weights and metrics. Periodic work (a row of metrics.csv, an evaluation, a picture, a checkpoint) is timed separately in the
same trainings. It is added at the default intervals of `train`, and at those of the recipe.
"""

import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from benchmarks.latents import SMALL, faces64
from benchmarks.measure import RESULTS, ROOT, TimedLatents, changed, in_turns, ratio, record, told, use_all_cores
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainConfig, TrainLDM
from tinyldm.models.denoiser import make_denoiser
from tinyldm.training.accelerator import make_accelerator
from tinyldm.training.run_folder import RunFolder
from tinyldm.training.trainer import Trainer

HELD_OUT = TrainConfig().num_eval_images


class WatchedTrainer(Trainer):
    """Records the seconds of periodic work in `spent`."""

    def __init__(self, *args: Any):
        self.spent: dict[str, list[float]] = defaultdict(list)
        super().__init__(*args)
        picture = self.task.picture

        def draw(path: Path) -> None:
            with self._noted("sample_steps"):
                picture(path)

        self.task.picture = draw

    @contextlib.contextmanager
    def _noted(self, key: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[key].append(time.perf_counter() - started)

    def _log(self, *args: Any) -> None:
        with self._noted("logging_steps"):
            super()._log(*args)

    def _evaluate(self) -> dict[str, float]:
        with self._noted("eval_steps"):
            return super()._evaluate()

    def _report(self, *args: Any) -> None:
        with self._noted("eval_steps, its row"):
            super()._report(*args)

    def _draw_curves(self, *args: Any) -> None:
        with self._noted("eval_steps, its curves"):
            super()._draw_curves(*args)

    def _checkpoint(self) -> None:
        with self._noted("checkpointing_steps"):
            super()._checkpoint()

    def _export(self) -> None:
        with self._noted("checkpointing_steps, its model"):
            super()._export()


def main(pairs: int = 8, steps: int = 8, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        pairs: number of paired measurements.
        steps: timed steps per measurement.
        small: a small network, few images.
        output: folder for the JSON file.
    """
    use_all_cores()
    with tempfile.TemporaryDirectory() as temporary:
        folder, side = Path(temporary), 32 if small else 64
        args = faces64(folder, 64, 8 if small else HELD_OUT, side)
        args += ["--train.num_eval_images", str(HELD_OUT)]
        config = changed(parse(TrainLDM, "", [*args, *(SMALL if small else [])]), max_steps=steps + 1)
        size = config.train.batch_size
        spent: dict[str, list[float]] = defaultdict(list)

        def ours() -> float:
            accelerator, run = make_accelerator(config.train, config.output_dir), RunFolder(config)
            with contextlib.ExitStack() as stack:
                stack.callback(run.release)
                trainer = WatchedTrainer(TimedLatents(config, accelerator), config, accelerator, run)
                trainer.fit()
            for key, seconds in trainer.spent.items():
                spent[key] += seconds
            return size / trainer.task.seconds_a_step()

        def bare() -> float:
            return size / bare_step(config, side // 4, steps)

        results = ratio(in_turns(ours, bare, pairs))
    medians = {key: statistics.median(seconds) for key, seconds in spent.items()}
    recipe = parse(TrainLDM, "", ["--config", str(ROOT / "configs/faces64.yaml")]).train
    each = {name: now_and_then(medians, train) for name, train in (("defaults", TrainConfig()), ("faces64", recipe))}
    step = size / results["ours"]
    shares = {name: results["median"] * step / (step + sum(seconds.values())) for name, seconds in each.items()}
    print(told("the loop's steps against bare ones", results))
    for name, share in shares.items():
        print(f"with rows, evaluations, pictures and checkpoints at the intervals of {name}: {share:.1%} of the bare steps")
    figures = {"batch_size": size, "steps": results, "shares": shares}
    record("loop", {**figures, "now_and_then": medians, "seconds_a_step": each}, output, small)


def now_and_then(spent: dict[str, float], train: TrainConfig) -> dict[str, float]:
    """Seconds per step of periodic work, at the intervals of a training.

    Args:
        spent: seconds each time; those of an evaluation are for HELD_OUT images.
    """
    images = {"eval_steps": train.num_eval_images / HELD_OUT}
    return {key: images.get(key, 1) * seconds / getattr(train, key.split(",")[0]) for key, seconds in spent.items()}


def bare_step(config: TrainLDM, side: int, steps: int) -> float:
    """Seconds (median) of forward, backward and optimizer step on random latents (B, 3, side, side)."""
    network = make_denoiser(config.unet, side, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    x, noise = torch.randn(2, config.train.batch_size, 3, side, side)
    timesteps = torch.randint(config.scheduler.num_train_timesteps, (len(x),))
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        torch.nn.functional.mse_loss(network(x, timesteps), noise).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    auto_cli(main)
