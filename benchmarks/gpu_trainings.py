"""The steps of benchmarks.gpu that train: the headline's recipe, resuming, precisions, and faces to look at."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.gpu_results import Results, gathered
from benchmarks.gpu_setting import Setting, device, difference, gib, reset, wait
from benchmarks.latents import SMALL
from benchmarks.measure import in_new_process
from tinyldm import pictures
from tinyldm.config.parsing import parse
from tinyldm.config.schema import SamplerSettings, TrainDDPM, TrainLDM
from tinyldm.diffusion import training_data
from tinyldm.diffusion.latent_task import LatentTask
from tinyldm.diffusion.pixel_task import PixelTask
from tinyldm.drawing.sampling import sample
from tinyldm.models.loading import load_model
from tinyldm.training.task import Task
from tinyldm.training.trainer import run_training

PRECISIONS = {
    "bf16, compiled": ("bf16", "true"),
    "float32 (TF32)": ("no", "false"),
    "bf16": ("bf16", "false"),
    "fp16": ("fp16", "false"),
}
FACES = "configs/faces64.yaml in large batches"

# -------------------------------------------------------------------------------------------------------- one training


class Timed(Task):
    """A mixin for tasks that notes when the host was done with each step, and the memory that steps take.

    Unlike measure.Clock it does not wait for the device."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.ended, self.gib = list[float](), 0.0

    def after_step(self, step: int, *args: Any) -> None:
        """See training.task.Task."""
        super().after_step(step, *args)
        if not self.ended:
            reset()  # encoding may have taken more
        if step == self.max_steps:
            self.gib = gib()
        self.ended.append(time.perf_counter())


class TimedLatents(Timed, LatentTask):
    """LatentTask with a clock."""


class TimedPixels(Timed, PixelTask):
    """PixelTask with a clock."""


def train(args: list[str], pixels: bool = False) -> dict[str, Any]:
    """Train in this process as train_ldm.py does, or train_ddpm.py, and return figures. One training for each process."""
    began, encoded = time.perf_counter(), dict[str, float]()
    config: Any = parse(TrainDDPM if pixels else TrainLDM, "", args)
    with mock.patch.object(training_data, "open_store", timed(training_data.open_store, encoded)):
        trainer = run_training(config, TimedPixels if pixels else TimedLatents)
    wait()
    ended, rows = trainer.task.ended, trainer.run.rows
    return {
        "steps": trainer.state.step,
        "images/s": steady(ended, config.train.batch_size),
        "s to the first step": ended[0] - began,
        "s in all": time.perf_counter() - began,
        "GiB": trainer.task.gib,
        "held-out loss": next(row["eval_loss"] for row in reversed(rows) if "eval_loss" in row),
        "losses": {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row},
        "encoded": encoded,
    }


def timed(open_store: Callable[..., Any], speeds: dict[str, float]) -> Callable[..., Any]:
    """open_store, noting the images a second for each part of the data."""

    def opened(data: Any, source: Any, part: str, *args: Any) -> Any:
        began = time.perf_counter()
        store = open_store(data, source, part, *args)
        speeds[part] = len(store) / (time.perf_counter() - began)
        return store

    return opened


def steady(ended: list[float], batch: int) -> float:
    """Images a second while nothing but training happens: the median over ten spans, of which few compile or evaluate."""
    span = max(1, (len(ended) - 1) // 10)
    starts = range(0, len(ended) - span, span)
    return median(span * batch / (ended[start + span] - ended[start]) for start in starts)


def figures(found: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Those of a training that go into a table."""
    return {key: found[key] for key in keys or ("steps", "images/s", "s to the first step", "s in all", "GiB", "held-out loss")}


# -------------------------------------------------------------------------------------------------- configs/celebahq256.yaml


def headline(setting: Setting, results: Results) -> None:
    """The README's recipe with fewer images and steps and random weights in its first stage; then drawing with its model."""
    shutil.rmtree(setting.large_latents, ignore_errors=True)  # the first pass is timed
    steps = setting.sized(1500, 3)
    args = ["--train.max_steps", steps, "--train.num_eval_images", setting.sized(512, 4), "--overwrite", "true"]
    found = train(setting.celebahq256("headline", *args))
    views = "images/s of the first pass, each twice"
    results.tell("configs/celebahq256.yaml", "training", **figures(found), **{views: found["encoded"]["train"]})
    run, count, batch = str(setting.work / "headline"), setting.sized(128, 2), setting.sized(64, 2)
    images = {}
    for name, dtype, at_once in (("float32", torch.float32, batch), ("bf16", torch.bfloat16, batch), ("one", torch.float32, 1)):
        if name == "bf16" and not torch.cuda.is_available():
            continue
        with results.attempt(f"drawing, {name}"):
            few = 4 if name == "one" else count
            images[name], speed = draw(run, min(few, count), at_once, dtype)
            results.tell("drawing in 50 steps, decoded", f"{dtype}, batch {at_once}", **{"images/s": speed})
    away = (images["one"].int() - images["float32"][: len(images["one"])].int()).abs()
    share = float((away > 0).double().mean())
    row = {"largest difference of 255": int(away.max()), "share of values that differ": share}
    results.tell("the same seeds drawn one by one", f"and {batch} at once", **row)


def draw(run: str, count: int, batch: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, float]:
    """uint8 images (N, 3, H, W) of the seeds 0, 1, ... without guidance, and images a second, once warmed up."""
    model = load_model(run, str(device()), dtype)
    settings = SamplerSettings(scheduler="ddim", num_inference_steps=50 if torch.cuda.is_available() else 2, guidance_scale=1.0)

    def images(number: int) -> Iterator[torch.Tensor]:
        return sample(model, number, batch, 0, settings)

    list(images(batch))
    began = time.perf_counter()
    drawn = torch.cat(list(images(count)))
    return drawn, count / (time.perf_counter() - began)


# ------------------------------------------------------------------------------------------------------------- bit for bit


def resume(setting: Setting, results: Results) -> None:
    """Are 40 steps the same bit for bit as 40 again, and as 20 and 20 after a resume? All trainings run at the same time."""
    modes = ["plain"] if setting.tiny else ["plain", "deterministic", "compiled"]
    half, full = setting.sized(20, 2), setting.sized(40, 4)
    few = ["--train.num_eval_images", setting.sized(64, 4), "--diffusion.preview_images", 1, "--diffusion.preview_steps", 1]
    few += ["--train.lr_scheduler", "constant_with_warmup", "--train.lr_warmup_steps", 4, "--train.checkpointing_steps", half]
    few += ["--guidance.guide_steps", 0]

    def run(mode: str, name: str, steps: int, *how: str) -> None:
        kind = [
            "--train.compile",
            str(mode == "compiled").lower(),
            "--train.deterministic",
            str(mode == "deterministic").lower(),
        ]
        in_new_process(train, setting.celebahq256(f"{mode}-{name}", *few, *kind, "--train.max_steps", steps, *how))

    def run_all(mode: str, name: str) -> None:
        with results.attempt(f"{mode}, {name}"):
            run(mode, name, half if name == "resumed" else full, "--overwrite", "true")
            if name == "resumed":
                run(mode, name, full, "--resume", "latest")

    names = ["whole", "resumed"] if setting.tiny else ["whole", "again", "resumed"]
    with ThreadPoolExecutor(len(modes) * len(names)) as pool:
        for mode in modes:
            for name in names:
                pool.submit(run_all, mode, name)
    for mode in modes:
        with results.attempt(mode):
            compare(setting.work, mode, names, full, results)


def compare(work: Path, mode: str, names: list[str], steps: int, results: Results) -> None:
    """Tell how the weights of each training of a mode differ from those of the first one."""

    def weights(name: str) -> torch.Tensor:
        folder = work / f"{mode}-{name}/checkpoints/step-{steps}"
        parts = [load_file(folder / f"{part}.safetensors") for part in ("denoiser", "ema")]
        return torch.cat([values.flatten().double() for part in parts for values in part.values()])

    first = weights(names[0])
    for name in names[1:]:
        other = weights(name)
        row = {"bit for bit": torch.equal(first, other), "relative difference": difference(other, first)}
        results.tell(f"{steps} steps against the same at once", f"{mode}, {name}", **row)


# ------------------------------------------------------------------------------------------------------------------- faces


def precision(setting: Setting, results: Results) -> None:
    """Held-out losses of the same steps of configs/faces64.yaml in each precision."""
    kinds = {"float32 (TF32)": ("no", "false")} if setting.tiny else PRECISIONS
    steps = setting.sized(400, 2)

    def run(name: str) -> None:
        half, compiled = kinds[name]
        args = ["--train.mixed_precision", half, "--train.compile", compiled, "--train.max_steps", steps]
        args += ["--train.batch_size", setting.sized(256, 2), "--train.eval_steps", steps // 2, "--overwrite", "true"]
        args += ["--train.num_eval_images", setting.sized(1000, 4), "--diffusion.preview_steps", 2]
        with results.attempt(name):
            found = in_new_process(train, setting.faces64("-".join(name.split()), *args))
            losses = {f"after {step} steps": loss for step, loss in found["losses"].items()}
            alone = figures(found, "images/s", "GiB") if name == next(iter(kinds)) else {}
            results.tell(f"held-out losses of {FACES}", name, **losses, **alone)

    first, *others = kinds
    run(first)  # alone: it encodes the images, and its speed counts
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        list(pool.map(run, others))


def train_faces(setting: Setting, results: Results) -> None:
    """Train configs/faces64.yaml in large batches for some seconds. Its pictures come back."""
    speed = told_speed(setting.out / results.file.name) or 10_000.0
    steps = setting.sized(max(5, int(float(setting.argument) * speed / 256)), 3)
    args = ["--train.max_steps", steps, "--overwrite", "true"]
    if not setting.tiny:
        args += ["--train.mixed_precision", "bf16", "--train.compile", "true", "--train.batch_size", 256]
        args += ["--train.learning_rate", "2.0e-3", "--train.ema_decay", "0.9995"]
        args += ["--train.eval_steps", steps // 5, "--train.sample_steps", steps, "--train.checkpointing_steps", steps]
        args += ["--train.ema_snapshot_steps", "null"]
    found = train(setting.faces64("trained", *args))
    results.tell("faces", FACES, **figures(found))
    images, speed = draw(str(setting.work / "trained"), setting.sized(1000, 4), setting.sized(250, 4))
    results.tell("drawing in 50 steps, decoded", f"{FACES}, torch.float32", **{"images/s": speed})
    pictures.grid(images[:64]).save(setting.out / "faces.png")
    np.savez(setting.out / "samples.npz", images.permute(0, 2, 3, 1).numpy())
    (setting.out / "loss.png").write_bytes((setting.work / "trained/loss.png").read_bytes())


def told_speed(file: Path) -> float | None:
    """Images a second of the first training of `precision`; None if it was not run."""
    rows = gathered(file)["tables"].get(f"held-out losses of {FACES}", {})
    return next(iter(rows.values()), {}).get("images/s")


def train_pixels(setting: Setting, results: Results) -> None:
    """Train the headline's network on faces of 64 px in pixels for some seconds. A picture comes back."""
    steps, batch = setting.sized(int(float(setting.argument) * 3200 / 256), 2), setting.sized(256, 2)  # at 3,200 images/s
    args = ["--output_dir", setting.work / "pixels", "--overwrite", "true", "--guidance.scale", 2, "--train.log_with", "none"]
    args += ["--data.name", setting.small_images, "--data.eval_split", "validation", "--data.random_flip", "true"]
    args += [
        "--data.resolution",
        setting.sized(64, 16),
        "--data.streaming",
        "false",
        "--data.num_workers",
        setting.sized(16, 2),
    ]
    args += ["--scheduler.beta_schedule", "squaredcos_cap_v2", "--scheduler.prediction_type", "v_prediction"]
    args += ["--diffusion.snr_gamma", 5, "--train.max_steps", steps, "--train.batch_size", batch]
    args += ["--train.learning_rate", "8.0e-4", "--train.lr_scheduler", "cosine", "--train.lr_warmup_steps", steps // 20]
    args += ["--train.ema_decay", 0.999, "--train.num_eval_images", setting.sized(256, 4)]
    args += ["--train.eval_steps", steps, "--train.sample_steps", steps, "--train.checkpointing_steps", steps]
    args += SMALL if setting.tiny else ["--train.mixed_precision", "bf16", "--train.compile", "true"]
    found = train([str(arg) for arg in args], pixels=True)
    results.tell("faces", f"the headline's network on pixels of 64 px, batch {batch}", **figures(found))
    drawn = max((setting.work / "pixels/samples").glob("*.png"))
    (setting.out / "pixels.png").write_bytes(drawn.read_bytes())
