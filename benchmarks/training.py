"""Training at equal wall-clock time: this project compared with the loop of diffusers' example, in pixels and in latents.

    python -m benchmarks.training --data ../shared/data/faces --first_stage_run runs/faces64-vq --minutes 10
    python -m benchmarks.training --small true    # a few steps on cartoon faces, to check that it runs

Four trainings run in sequence, each `minutes` long without evaluations: pixels and latents, the example's and ours.
In each space both have the same network, batch size, peak learning rate and noise schedule. Their averaged weights are
evaluated on the same noised held-out images. The metric is the squared error of the noise. This is the loss of the
example, but not our loss in latents. Use the Frechet distance of samples to compare pixels with latents. With `minutes`
10 this takes about an hour on 2 CPU cores.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from jsonargparse import auto_cli

from benchmarks.compared import ComparedLatents, ComparedPixels, noise_and_bits
from benchmarks.latents import small_trial
from benchmarks.measure import RESULTS, ROOT, changed, record, steps_in, train_steps, use_all_cores
from benchmarks.train_unconditional import Example
from tinyldm.config.parsing import parse
from tinyldm.config.schema import Features, SamplerSettings, TrainDDPM, TrainLDM
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.drawing.sampling import sample
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.metrics.while_training import Quality
from tinyldm.models.denoiser import Denoiser, make_denoiser
from tinyldm.models.model import Model
from tinyldm.pictures import pyplot
from tinyldm.process.processes import make_process

HELD_OUT = 256  # images per held-out evaluation
MARKS = 8  # held-out evaluations per training
SAMPLER = SamplerSettings(scheduler="ddim", num_inference_steps=25)  # for the distances


def main(
    data: str = "../shared/data/faces",
    first_stage_run: str = "runs/faces64-vq",
    minutes: float = 10.0,
    quality_images: int = 128,
    features: Features = "efficientnet-lite0",
    cache_dir: str = "~/.cache/tinyldm",
    small: bool = False,
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        data: a folder with splits `train` and `validation`.
        first_stage_run: a run of train_vq.py, for the latents.
        minutes: length of each of the four trainings.
        quality_images: images for the Frechet distance. 0: do not measure it.
        features: its feature network; see evaluate.py.
        cache_dir: folder of the stored latents.
        small: a few steps of small networks.
        output: folder for the JSON file.
    """
    use_all_cores()
    with tempfile.TemporaryDirectory() as temporary:
        folder, small_args = Path(temporary), []
        if small:
            data, first_stage_run, cache_dir, small_args = small_trial(folder)
        args = ["--data.name", data, "--data.eval_split", "validation", "--data.cache_dir", cache_dir, *small_args]
        latents = ["--config", str(ROOT / "configs/faces64.yaml"), "--first_stage.path", first_stage_run]
        # The network in pixels has 5M parameters and one level more, for 64 px; its forward process is that of Ho et al. 2020.
        pixels = ["--data.resolution", "64", "--data.random_flip", "true"]
        pixels += ["--train.batch_size", "16", "--train.learning_rate", "4e-4"]
        pixels += ["--train.lr_scheduler", "cosine", "--train.ema_decay", "0.999", "--train.max_steps", "1"]
        results: dict[str, dict[str, Any]] = {}
        for space, config, kind in (
            ("latents", parse(TrainLDM, "", [*latents, "--output_dir", str(folder / "latents"), *args]), ComparedLatents),
            ("pixels", parse(TrainDDPM, "", [*pixels, "--output_dir", str(folder / "pixels"), *args]), ComparedPixels),
        ):
            config = changed(config, num_eval_images=8 if small else HELD_OUT)
            quality = None
            if quality_images and not small:
                train = dataclasses.replace(config.train, metrics_features=features)
                quality = Quality(dataclasses.replace(config, train=train), Accelerator(cpu=not torch.cuda.is_available()))
            mine, task = ours(config, kind, 60 * minutes, quality, quality_images)
            other = example(config, task, 60 * minutes, quality, quality_images)
            results |= {f"{space}, ours": mine, f"{space}, example": other}
            print(
                f"{space}: {mine['images_a_second']:.1f} against {other['images_a_second']:.1f} images/s, held-out loss",
                end=" ",
            )
            print(
                f"{mine['curve'][-1][1]:.4f} against {other['curve'][-1][1]:.4f}, distance {mine['fd']} against {other['fd']}"
            )
    figures = {"minutes": minutes, "features": features, "quality_images": quality_images, "trainings": results}
    record("training", figures, output, small)
    picture(results, Path(output) / "training.png")


Curve = list[tuple[float, float]]  # (seconds of training, held-out squared error of the noise)


def ours(
    config: TrainLDM | TrainDDPM, kind: type, seconds: float, quality: Quality | None, images: int
) -> tuple[dict[str, Any], DiffusionTask]:
    """Train with tinyldm. Returns its metrics, and its task with held-out images and first stage."""
    trainer = train_steps(config, kind, max(MARKS, steps_in(config, kind, seconds)), MARKS)
    task, each = trainer.task, trainer.task.seconds_a_step()
    curve = [(row["step"] * each, row["eval_eps"]) for row in trainer.run.rows if "eval_eps" in row]
    with trainer.averaged_weights():
        fd = distance(task.model(), quality, images)
    return {"images_a_second": trainer.images_per_step / each, "steps": trainer.state.step, "curve": curve, "fd": fd}, task


def example(
    config: TrainLDM | TrainDDPM, task: DiffusionTask, seconds: float, quality: Quality | None, images: int
) -> dict[str, Any]:
    """Train the example with the same first stage and held-out images. Returns its metrics."""
    data = datasets.load_dataset(config.data.name, split="train")
    stage = FirstStage(task.first_stage) if task.first_stage is not None else None
    size, side, flip = config.train.batch_size, config.data.resolution, config.data.random_flip
    process = make_process(config.process, dataclasses.replace(config.scheduler, prediction_type="epsilon"))
    device, (channels, width) = task.accelerator.device, task.held_out.x.shape[1:3]

    def begin(steps: int) -> Example:
        torch.manual_seed(0)
        unet = make_denoiser(config.unet, width, channels).unet.to(device)
        return Example(data, unet, process.sampler(), steps, size, config.train.learning_rate, side, flip, stage)

    trial = begin(4)
    for _ in trial.train():
        pass
    steps = max(MARKS, round(seconds / statistics.median(trial.seconds[1:])))
    training, errors_at = begin(steps), {}
    for step in training.train():
        if step % (steps // MARKS) == 0 or step == steps:
            with training.averaged_weights(), torch.no_grad():
                parts, denoiser = task.my_held_out(), Denoiser(training.unet)
                errors = torch.cat([noise_and_bits(denoiser, process, *part)[0] for part in parts])
            errors_at[step] = float(errors.mean())
    each = statistics.median(training.seconds[1:])  # counted like ours
    curve = [(step * each, error) for step, error in errors_at.items()]
    with training.averaged_weights():
        fd = distance(Model(Denoiser(training.unet), process, task.first_stage), quality, images)
    return {"images_a_second": size / each, "steps": steps, "curve": curve, "fd": fd}


def picture(trainings: dict[str, dict[str, Any]], file: Path) -> None:
    """Plot held-out losses against time, one panel per space."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for name, run in trainings.items():
        space, whose = name.split(", ")
        axis = axes[("latents", "pixels").index(space)]
        seconds, losses = zip(*run["curve"], strict=True)
        axis.plot([s / 60 for s in seconds], losses, "o-" if whose == "ours" else "s--", markersize=3, label=whose)
        axis.set(title=space, xlabel="minutes of training", ylabel="held-out error of the noise")
        axis.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def distance(model: Model, quality: Quality | None, images: int) -> float | None:
    """The Frechet distance of DDIM samples with seeds 0, 1, ..."""
    return quality.distance(quality.sums(sample(model, images, 64, 0, SAMPLER))) if quality else None


if __name__ == "__main__":
    auto_cli(main)
