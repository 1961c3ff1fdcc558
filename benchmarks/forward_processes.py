"""All processes at equal time: the same network, data, order and noise, each with the settings of its paper.

    python -m benchmarks.forward_processes --recipe configs/demo.yaml --first_stage runs/demo-vq --minutes 20

For each process: the held-out error of x_0 at fixed signal-to-noise ratios, which is the same question to each, and the Frechet
distance by solver and number of network evaluations, over several sets of seeds. A process that is finished is not trained
again, so several calls can share the work: `--kinds '[flow]'`.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from tqdm.auto import tqdm

from benchmarks.measure import RESULTS, TimedLatents, changed, record, steps_in, train_steps, use_all_cores
from benchmarks.page_tables import best_solver, forward_processes
from tinyldm import pictures
from tinyldm.config.parsing import parse
from tinyldm.config.schema import Features, Sampler, SamplerSettings, TrainLDM
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.drawing import sampling
from tinyldm.metrics.while_training import Quality
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model
from tinyldm.portable.levels import KINDS

LOG_SNR = torch.linspace(8, -8, 17, dtype=torch.float64)
EVALUATIONS = (4, 6, 8, 10, 15, 20, 50)
SOLVERS: tuple[Sampler, ...] = ("euler", "heun", "dpm-solver++", "unipc")
VARIANTS = {  # name -> arguments
    "vp": [],
    **{kind: ["--process.kind", kind] for kind in KINDS},
    "flow, logit-normal": ["--process.kind", "flow", "--process.times", "normal"],
}


def main(
    recipe: str = "configs/toyfaces64.yaml",
    first_stage: str = "runs/toyfaces64-vq",
    data: str | None = None,
    minutes: float = 20.0,
    steps: int | None = None,
    kinds: list[str] | None = None,
    images: int = 256,
    sets: int = 3,
    features: Features = "efficientnet-lite0",
    runs: str = "runs/forward-processes",
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        recipe: a recipe of train_ldm.py.
        first_stage: the run of its first stage.
        data: the path of its data, if they have moved.
        minutes: length of each training, without evaluations; on one CPU core in CPU time.
        steps: length of each training instead, for a machine too busy to measure times.
        kinds: what to train. None: all of VARIANTS.
        images: images per distance. Fewer images make it larger.
        sets: distances per row, each with other seeds.
        features: feature network of the distances; see evaluate.py.
        runs: folder for the trainings.
        output: folder for the picture and the JSON file.
    """
    use_all_cores()
    for name in tqdm(kinds or list(VARIANTS), unit="process"):
        folder = Path(runs) / name.replace(", ", "-")
        if (folder / "measured.json").exists():
            continue
        moved = ["--data.name", data] if data else []
        args = ["--config", recipe, "--first_stage.path", first_stage, *moved, "--output_dir", str(folder), *VARIANTS[name]]
        config = parse(TrainLDM, "", [*args, "--guidance.guide_steps", "0", "--guidance.scale", "1", "--overwrite", "true"])
        length = steps or steps_in(config, TimedLatents, 60 * minutes)
        config = changed(config, metrics_features=features, num_metrics_images=images)
        task: Any = train_steps(config, TimedLatents, length).task
        measured = {
            "steps": length,
            "seconds_a_step": task.seconds_a_step(),
            "process": task.process.describe(),
            "prediction": task.process.prediction,
            "errors": errors(task),
            "distances": distances(load_model(str(folder)), Quality(task.config, task.accelerator), images, sets),
        }
        (folder / "measured.json").write_text(json.dumps(measured))
    found = {name: Path(runs) / name.replace(", ", "-") / "measured.json" for name in VARIANTS}
    rows = {name: json.loads(file.read_text()) for name, file in found.items() if file.exists()}
    figures = {"recipe": recipe, "minutes": minutes, "images": images, "sets": sets, "features": features}
    figures |= {"log_snr": LOG_SNR.tolist(), "rows": rows}
    record("forward_processes", figures, output, small=minutes < 1)
    picture(rows, Path(output) / "forward_processes.png")
    print(forward_processes(figures))


@torch.no_grad()
def errors(task: DiffusionTask) -> list[float]:
    """The mean squared error of x_0 on the held-out images, at each of LOG_SNR. nan where the network was never trained."""
    denoiser, process = task.model().denoiser, task.process
    low, high = process.ratio_ends()
    means = []
    for log_snr in LOG_SNR.tolist():
        ratio = math.exp(-log_snr / 2)
        if not low <= ratio <= high:
            means.append(math.nan)
            continue
        time, total = process.time_of(torch.tensor([ratio], dtype=torch.float64)), 0.0
        for (x0, condition), noise, _ in task.my_held_out():
            times = time.to(x0.device).expand(len(x0))
            x_t = process.noisy(x0, noise, times)
            predicted = denoiser(*process.inputs(x_t, times), condition).float()
            total += float((process.to_x0(x_t, predicted, times) - x0).square().mean((1, 2, 3)).sum())
        means.append(total / len(task.held_out.x))
    return means


def distances(model: Model, quality: Quality, images: int, sets: int) -> list[dict[str, Any]]:
    """A row for each solver and number of network evaluations, with a Frechet distance for each set of seeds."""
    rows = []
    # With the most evaluations the solvers agree, so one of them is enough.
    plans = [(name, count) for name in SOLVERS for count in EVALUATIONS if count < EVALUATIONS[-1] or name == SOLVERS[0]]
    for name, evaluations in tqdm(plans, unit="row", leave=False):
        steps = (evaluations + 1) // 2 if name == "heun" else evaluations
        settings = SamplerSettings(scheduler=name, num_inference_steps=steps, guidance_scale=1.0, process=model.process.kind)
        firsts = range(0, sets * images, images)
        fds = [quality.distance(quality.sums(sampling.sample(model, images, 64, first, settings))) for first in firsts]
        rows.append({"sampler": name, "evaluations": evaluations, "fds": fds})
    return rows


def picture(rows: dict[str, Any], file: Path) -> None:
    """Two curves for each process: the error of v by log SNR, and the best distance by number of evaluations."""
    plot = pictures.pyplot()
    figure, (left, right) = plot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, row in rows.items():
        units_of_v = np.array(row["errors"]) * (1 + np.exp(LOG_SNR.numpy()))
        left.plot(LOG_SNR, units_of_v, label=name)
        right.plot(EVALUATIONS, [best_solver(row, evaluations)[1] for evaluations in EVALUATIONS], marker="o", label=name)
    left.set(xlabel="log signal-to-noise ratio", ylabel="held-out error, in units of v", yscale="log")
    right.set(xlabel="network evaluations", ylabel="Frechet distance, best solver", xscale="log")
    right.set_xticks(EVALUATIONS, list(map(str, EVALUATIONS)))
    right.minorticks_off()
    right.legend()
    figure.savefig(file, dpi=110)
    plot.close(figure)


if __name__ == "__main__":
    auto_cli(main)
