"""Over how many steps should the weights be averaged? Compares several lengths in one training of configs/faces64.yaml.

    python -m benchmarks.ema --data ../shared/data/faces --first_stage_run runs/faces64-vq --seconds 300
    python -m benchmarks.ema --small true         # a small network for a second

Averages do not change the training, so one training compares all lengths without differences between seeds. An average with
decay d covers about 1 / (1 - d) steps. Here that length is a fraction of the whole training, so that it applies to longer
trainings too (Karras et al. 2024, section 3). The last row is the recipe's own average, with diffusers' warm-up.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from jsonargparse import auto_cli

from benchmarks.latents import faces64_over, small_trial
from benchmarks.measure import RESULTS, TimedLatents, record, steps_in, train_steps, use_all_cores
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM
from tinyldm.pictures import pyplot
from tinyldm.randomness import Draw
from tinyldm.training.trainer import averaged

LENGTHS = (0.01, 0.03, 0.06, 0.1, 0.2)  # as fractions of the training
NONE, OWN = "no average", "the recipe's"
MARKS = 4


class Averaged(TimedLatents):
    """Keeps an average of each length besides the trainer's own, and evaluates all of them at each mark."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.averages: dict[str, EMAModel] = {}
        self.losses_at: dict[int, dict[str, float]] = {}

    def after_step(self, step: int, draw: Draw, ema: EMAModel) -> None:
        """See training.task.Task."""
        weights = list(self.networks["denoiser"].parameters())
        if not self.averages:
            for share in LENGTHS:
                decay = max(0.0, 1 - 1 / (share * self.config.train.max_steps))
                # Without diffusers' warm-up, which would limit the long ones.
                self.averages[f"{share:.1%}"] = EMAModel(weights, decay=decay, min_decay=decay, foreach=True)
        for average in self.averages.values():
            average.step(weights)
        if step % (self.config.train.max_steps // MARKS) == 0:
            now = EMAModel(weights)
            compared = {NONE: now, **self.averages, OWN: ema}
            self.losses_at[step] = {name: self.held_out_loss(average) for name, average in compared.items()}
        super().after_step(step, draw, ema)

    @torch.no_grad()
    def held_out_loss(self, average: EMAModel) -> float:
        """The held-out loss of averaged weights."""
        with averaged(self.networks["denoiser"], average):
            return self.summarize(self.evaluate())["eval_loss"]


def main(
    data: str = "../shared/data/faces",
    first_stage_run: str = "runs/faces64-vq",
    cache_dir: str = "~/.cache/tinyldm",
    seconds: float = 300.0,
    small: bool = False,
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        data: a data set with the splits `train` and `validation`.
        first_stage_run: a run of train_vq.py.
        cache_dir: folder of the stored latents.
        seconds: length of the training, without evaluations.
        small: a small network, trained briefly.
        output: folder for the picture and the JSON file.
    """
    use_all_cores()
    with tempfile.TemporaryDirectory() as temporary:
        folder, small_args = Path(temporary), []
        if small:
            data, first_stage_run, cache_dir, small_args = small_trial(folder)
            seconds = min(seconds, 1.0)
        args = [*faces64_over(data, first_stage_run, cache_dir), "--output_dir", str(folder / "run"), *small_args]
        config: Any = parse(TrainLDM, "", args)
        steps = max(MARKS, steps_in(config, TimedLatents, seconds))
        task = train_steps(config, Averaged, steps - steps % MARKS).task
    rows = {name: [losses[name] for losses in task.losses_at.values()] for name in (NONE, *task.averages, OWN)}
    for name, losses in rows.items():
        print(f"{name}: {', '.join(f'{loss:.4f}' for loss in losses)}")
    record(
        "ema", {"seconds": seconds, "steps": max(task.losses_at), "marks": list(task.losses_at), "losses": rows}, output, small
    )
    picture(rows, Path(output) / "ema.png")


def picture(rows: dict[str, list[float]], file: Path) -> None:
    """Plot held-out loss against length, one curve per mark."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    names = [name for name in rows if name not in (NONE, OWN)]
    for mark in range(MARKS):
        (line,) = axis.plot(
            [100 * share for share in LENGTHS],
            [rows[name][mark] for name in names],
            "o-",
            markersize=3,
            label=f"after {(mark + 1) / MARKS:.0%} of the training",
        )
        axis.axhline(rows[NONE][mark], color=line.get_color(), linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="length of the average, % of the training (dotted: no average)", ylabel="held-out loss")
    axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    auto_cli(main)
