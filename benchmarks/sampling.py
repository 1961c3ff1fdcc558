"""sample.py against diffusers' LDMPipeline, and which sampler reaches a quality soonest.

    python -m benchmarks.sampling --model runs/faces64                            # speed: about 5 minutes on 2 CPU cores
    python -m benchmarks.sampling --model runs/faces64 --minutes 20               # and the table of samplers and steps
    python -m benchmarks.sampling --small true                                    # a small random model, to see that it runs

The quality is the Frechet distance of train.metrics_steps: the same images' seeds for each row, against the run's own
held-out part.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline
from jsonargparse import auto_cli
from tqdm.auto import tqdm

from benchmarks.latents import SMALL, first_stage
from benchmarks.measure import RESULTS, in_turns, ratio, record, told, use_all_cores
from tinyldm import pictures, sampling
from tinyldm.config import TrainLDM
from tinyldm.denoiser import make_denoiser, make_scheduler
from tinyldm.parsing import parse
from tinyldm.quality import Quality

# The sampler and its steps, by what they cost; heun takes two evaluations a step.
TABLE = [
    *(("ddim", 10), ("dpm-solver++", 10), ("unipc", 10), ("euler", 10), ("heun", 5)),
    *(("ddim", 20), ("dpm-solver++", 20), ("unipc", 20), ("euler", 20), ("heun", 10)),
    *(("ddim", 50), ("dpm-solver++", 50), ("unipc", 50), ("ddpm", 50), ("ddpm", 100), ("ddpm", 250)),
]


def main(
    model: str | None = None,
    pairs: int = 7,
    images: int = 16,
    steps: int = 25,
    minutes: float = 0.0,
    quality_images: int = 256,
    features: str = "efficientnet-lite0",
    data: str | None = None,
    small: bool = False,
    output: str = str(RESULTS),
) -> None:
    """Measure.

    Args:
        model: a run of train_ldm.py.
        pairs: how often each is measured.
        images: in each, as one batch.
        steps: DDIM steps.
        minutes: for the table of samplers; rows that do not fit are left out, and said. 0: no table.
        quality_images: of which the distances are. Fewer make them larger.
        features: the network of the distances; see evaluate.py.
        data: where the run's data lie, if not where they were.
        small: a small random model.
        output: where the JSON goes.
    """
    use_all_cores()
    with tempfile.TemporaryDirectory() as temporary:
        if small:
            model = random_pipeline(Path(temporary))
        if model is None:
            raise SystemExit("say which run: --model runs/faces64, or --small true")
        speed = against_diffusers(model, pairs, images, steps)
    rows, left_out = samplers(model, data, minutes, quality_images, features) if minutes and not small else ([], [])
    figures = {"batch_size": images, "steps": steps, "speed": speed}
    quality = {"features": features, "images": quality_images, "rows": rows, "left_out": left_out}
    record("sampling", {**figures, "quality": quality if rows else None}, output, small)


def random_pipeline(folder: Path) -> str:
    """A pipeline of small networks with random weights."""
    config = parse(TrainLDM, "", ["--output_dir", "", "--train.max_steps", "1", *SMALL])
    stage = first_stage(folder / "vq", small=True)
    unet = make_denoiser(config.unet, 8, 3)
    LDMPipeline(vqvae=stage.model, unet=unet, scheduler=make_scheduler(config.scheduler)).save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


def against_diffusers(model: str, pairs: int, images: int, steps: int) -> dict[str, float]:
    """Images a second up to PIL images, from the same seeds with DDIM."""
    ours = sampling.load_model(model)
    ours.scheduler = sampling.choose_scheduler(ours.scheduler, "ddim")
    local = Path(model) / "pipeline" if (Path(model) / "pipeline").is_dir() else Path(model)
    theirs = DiffusionPipeline.from_pretrained(str(local))
    theirs.scheduler = DDIMScheduler.from_config(ours.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    drawn: dict[str, list] = {}

    def sample() -> float:
        started = time.perf_counter()
        drawn["ours"] = [pictures.to_pil(image) for batch in sampling.sample(ours, images, images, 0, steps) for image in batch]
        return images / (time.perf_counter() - started)

    def pipeline() -> float:
        random, started = sampling.generators(0, images), time.perf_counter()
        drawn["theirs"] = theirs(batch_size=images, generator=random, num_inference_steps=steps).images
        return images / (time.perf_counter() - started)

    found = ratio(in_turns(sample, pipeline, pairs))
    same = sum(a.tobytes() == b.tobytes() for a, b in zip(drawn["ours"], drawn["theirs"], strict=True))
    print(told(f"sample.py against LDMPipeline, DDIM with {steps} steps", found))
    print(f"{same} of {images} pictures are the same to the bit")
    return {**found, "same_pictures": same / images}


def samplers(model: str, data: str | None, minutes: float, images: int, features: str) -> tuple[list[dict], list[str]]:
    """A row for each sampler: steps, seconds an image, Frechet distance; and those for which there was no time."""
    run = Path(model)
    args = ["--config", str(run / "config.yaml"), *(["--data.name", data] if data else [])]
    config = parse(TrainLDM, "", args)
    train = dataclasses.replace(config.train, metrics_steps=1, metrics_features=features, num_metrics_images=images)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    quality = Quality(dataclasses.replace(config, train=train), accelerator)
    loaded = sampling.load_model(model, str(accelerator.device))
    kept, rows, left_out, end = loaded.scheduler, [], [], time.monotonic() + 60 * minutes
    slowest = 0.0  # seconds of an evaluation of the network, with what else a row takes
    for name, steps in tqdm(TABLE, unit="row", dynamic_ncols=True):
        evaluations = steps * (2 if name == "heun" else 1)
        if time.monotonic() + slowest * evaluations > end:
            left_out.append(f"{name}, {steps} steps")
            continue
        loaded.scheduler = sampling.choose_scheduler(kept, name)
        started = time.perf_counter()
        drawn = list(sampling.sample(loaded, images, 64, 0, steps))
        seconds = time.perf_counter() - started
        distance = quality.distance(quality.sums(drawn))
        slowest = max(slowest, (time.perf_counter() - started) / evaluations)
        rows.append({"sampler": name, "steps": steps, "evaluations": evaluations, "seconds": seconds / images, "fd": distance})
        tqdm.write(f"{name}, {steps} steps: {seconds / images:.3f} s an image, distance {distance:.2f}")
    return rows, left_out


if __name__ == "__main__":
    auto_cli(main)
