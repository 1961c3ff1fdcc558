"""Which sampler is the fastest for a given quality: a table of samplers and steps.

    python -m benchmarks.samplers --model runs/faces64      # about an hour on one CPU core

The quality is the Frechet distance of train.metrics_steps: the same seeds for each row, against the run's held-out part.
Several sets of seeds show how reliable a difference is.
"""

import time

import torch
from accelerate import Accelerator
from jsonargparse import auto_cli
from tqdm.auto import tqdm

from benchmarks.measure import RESULTS, data_of, record, use_all_cores
from tinyldm.config.schema import Features, Sampler, SamplerSettings, TrainConfig, TrainLDM
from tinyldm.drawing import sampling
from tinyldm.metrics.while_training import Quality
from tinyldm.models.loading import load_model
from tinyldm.process.solvers import Solver

# Samplers and steps, by cost. heun evaluates the network twice per step, except in the last.
TABLE: list[tuple[Sampler, int]] = [
    *(("ddim", 10), ("dpm-solver++", 10), ("unipc", 10), ("euler", 10), ("heun", 5)),
    *(("ddim", 20), ("dpm-solver++", 20), ("unipc", 20), ("euler", 20), ("heun", 10)),
    *(("ddim", 50), ("dpm-solver++", 50), ("unipc", 50), ("ddpm", 50), ("ddpm", 100), ("ddpm", 250)),
]


def main(
    model: str = "runs/faces64",
    minutes: float = 60.0,
    images: int = 256,
    sets: int = 3,
    features: Features = "efficientnet-lite0",
    data: str | None = None,
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        model: a run of train_ldm.py.
        minutes: time limit; rows that do not fit are skipped and listed.
        images: images per distance. Fewer images make it larger.
        sets: distances per row, each with other seeds.
        features: feature network of the distances; see evaluate.py.
        data: path of the run's data, if they have moved.
        output: folder for the JSON file.
    """
    use_all_cores()
    rows, left_out = samplers(model, data, minutes, images, sets, features)
    figures = {"features": features, "images": images, "rows": rows, "left_out": left_out}
    record("samplers", figures, output, small=False)


def samplers(
    model: str, data: str | None, minutes: float, images: int, sets: int, features: Features
) -> tuple[list[dict], list[str]]:
    """A row for each sampler (steps, evaluations, seconds per image, Frechet distances), and the samplers skipped for lack
    of time."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    quality = quality_of(model, features, images, data, accelerator)
    loaded = load_model(model, str(accelerator.device))
    rows, left_out, end = [], [], time.monotonic() + 60 * minutes
    each = 0.0  # seconds per evaluation of the network in the last row, including everything else
    for name, steps in tqdm(TABLE, unit="row", dynamic_ncols=True):
        settings = SamplerSettings(scheduler=name, num_inference_steps=steps, guidance_scale=1.0)
        sampler = loaded.sampler(settings)
        evaluations = sampler.evaluations if isinstance(sampler, Solver) else len(sampler.timesteps)
        if time.monotonic() + each * evaluations > end:
            left_out.append(f"{name}, {steps} steps")
            continue
        started, fds, drawing = time.perf_counter(), [], 0.0
        for first in range(0, sets * images, images):
            before = time.perf_counter()
            drawn = list(sampling.sample(loaded, images, 64, first, settings))
            drawing += time.perf_counter() - before
            fds.append(quality.distance(quality.sums(drawn)))
        each = (time.perf_counter() - started) / evaluations
        seconds = drawing / (sets * images)
        rows.append({"sampler": name, "steps": steps, "evaluations": evaluations, "seconds": seconds, "fds": fds})
        tqdm.write(f"{name}, {steps} steps: {seconds:.3f} s per image, distances {', '.join(f'{fd:.2f}' for fd in fds)}")
    return rows, left_out


def quality_of(model: str, features: Features, images: int, data: str | None, accelerator: Accelerator) -> Quality:
    """The distance to the held-out part of a run."""
    _, part, seed = data_of(model, data)
    train = TrainConfig(max_steps=1, metrics_features=features, num_metrics_images=images)
    config = TrainLDM(output_dir="", seed=seed, data=part, train=train)
    return Quality(config, accelerator)


if __name__ == "__main__":
    auto_cli(main)
