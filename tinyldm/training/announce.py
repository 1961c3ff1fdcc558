"""What a training says at its start, after its first rows of metrics.csv, and at its end."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tinyldm.config.parsing import read_recipe
from tinyldm.config.schema import Training
from tinyldm.training.model_card import duration
from tinyldm.training.report import KINDS

RECIPES = Path(__file__).parents[2] / "configs"
MANY_EPOCHS = 1000


def header(
    config: Training, parameters: int, hardware: str, step: int, max_steps: int, per_step: int, epoch: int | None
) -> str:
    """The block that is printed before the first step.

    Args:
        hardware: the device, as text.
        step, max_steps: the steps that are done, and the last one.
        per_step, epoch: images of a step and of an epoch; None where a stream does not know.
    """
    train, images = config.train, max_steps * per_step
    epochs = f", {images / epoch:.3g} epochs" if epoch else ""
    lines = [
        f"training: {KINDS[config.script.removeprefix('train_')]} of {parameters:,} parameters",
        f"  device {hardware}, precision {train.mixed_precision}",
        f"  {max_steps:,} steps of {per_step:,} images: {images:,} images{epochs}" + (f"; {step:,} are done" if step else ""),
        f"  folder {config.output_dir}: a row of metrics.csv every {train.logging_steps:,} steps, an evaluation every "
        f"{train.eval_steps:,}, a picture every {train.sample_steps:,}, a checkpoint every {train.checkpointing_steps:,}",
    ]
    if epoch and images / epoch > MANY_EPOCHS:
        lines.append(
            f"  note: each of the {epoch:,} images is seen {images / epoch:,.0f} times, so the model may learn them by heart; "
            "with few images start from a trained model (docs/editing.md#fine-tuning)"
        )
    first = step + train.logging_steps
    if first < max_steps:
        lines.append(f"  the time to expect is measured over the steps to {first:,}; Ctrl-C saves and stops")
    return "\n".join(lines)


def expectation(images: int, speed: float) -> str:
    """How long the rest of a training takes.

    Args:
        images: those to go.
        speed: images per second.
    """
    return f"about {duration(images / speed)} to go at {speed:.3g} images/s, evaluations and pictures not counted"


def closing(config: Training, steps: int, seconds: float, rows: list[dict[str, Any]]) -> str:
    """The block that is printed after the last step.

    Args:
        seconds: of training, those of earlier sessions included.
        rows: the rows of metrics.csv.
    """
    run = config.output_dir
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    found = f", held-out loss {losses[-1]:.4g}" if losses else ""
    lines = [f"done: {run}: {steps:,} steps in {duration(seconds)}{found}", f"  look: {Path(run) / 'report.html'}"]
    return "\n".join([*lines, *(f"  next: {command}" for command in next_commands(config))])


def next_commands(config: Training) -> list[str]:
    """What one would run after a training: draw and measure, or train what builds on it."""
    run, pictures = (shlex.quote(str(path)) for path in (config.output_dir, Path(config.output_dir) / "pictures"))
    if config.script == "train_vq":
        recipe = built_on(config.output_dir)
        named = f"configs/{recipe.name}" if recipe else f"RECIPE --first_stage.path {run}"
        return [f"python train_ldm.py --config {named}", f"python evaluate.py --model {run}"]
    if config.script == "train_classifier":
        return [f"python sample.py --model MODEL --classifier {run} --labels LABEL=VALUE --guidance_scale 3"]
    small = getattr(config, "condition", None) and config.condition.low_resolution  # type: ignore[attr-defined]
    draw = f"python sample.py --model {run} --output_dir {pictures}" + (" --upscale IMAGE" if small else "")
    return [draw, f"python evaluate.py --model {run}"]


def built_on(first_stage: str) -> Path | None:
    """The recipe in configs/ for a denoiser over this first stage."""
    return _recipe("train_ldm", lambda recipe: (recipe.get("first_stage") or {}).get("path") == first_stage)


def first_stage_recipe(run: str) -> Path | None:
    """The recipe in configs/ that trains a first stage into this folder."""
    return _recipe("train_vq", lambda recipe: recipe.get("output_dir") == run)


def _recipe(script: str, fits: Callable[[dict[str, Any]], bool]) -> Path | None:
    recipes = ((file, read_recipe(file)) for file in sorted(RECIPES.glob("*.yaml")))
    return next((file for file, recipe in recipes if recipe.get("script") == script and fits(recipe)), None)


def progress_bar(step: int, max_steps: int, shown: bool) -> tqdm:
    """The bar of a training."""
    return tqdm(
        total=max_steps, initial=step, unit="step", desc="training", disable=not shown, dynamic_ncols=True, mininterval=0.5
    )
