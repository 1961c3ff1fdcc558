"""Measures averages of a run's weights over different lengths: what `python -m tinyldm.ema` does."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from tinyldm import __version__
from tinyldm.config.ema import EMALengths
from tinyldm.config.parsing import parse, read_recipe
from tinyldm.config.schema import TrainDDPM, TrainLDM
from tinyldm.diffusion.latent_task import LatentTask
from tinyldm.diffusion.pixel_task import PixelTask
from tinyldm.errors import UserError
from tinyldm.evaluation.models import draw, open_model, parts, weights_stamp
from tinyldm.evaluation.workspace import Workspace
from tinyldm.files import digest, open_to_others, replace_text
from tinyldm.manifest import LOCK, Manifest, list_in_run
from tinyldm.metrics import distances
from tinyldm.metrics.chunks import Chunks
from tinyldm.metrics.image_sets import embed
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model
from tinyldm.pictures import pyplot
from tinyldm.training.accelerator import make_accelerator
from tinyldm.training.power_ema import run_with_snapshots, weights_of_snapshots

CLASSIC = "the saved one"
Row = dict[str, Any]
Measure = Callable[[float | None], dict[str, float]]  # width (None: the saved average) -> its value, perhaps with an interval


def compare(config: EMALengths) -> str:
    """Measure each width and the saved average, and return the table. Writes ema.json and ema.png into the run, or ema-loss.

    Raises:
        UserError: for errors the user can fix.
    """
    run = run_with_snapshots(config.run)
    if config.export:
        refuse_used(Path(config.export).expanduser())
    name, measure = distance(config) if config.metric == "fd" else loss(config, run)
    rows = []
    for width in tqdm([None, *sorted(set(config.widths))], desc="averages", unit="average", dynamic_ncols=True):
        misfit = {} if width is None else {"misfit": weights_of_snapshots(run, width)[2]}
        rows.append({"width": width, **measure(width), **misfit})
    best = min(rows[1:], key=lambda row: row["value"])
    step, _, _ = weights_of_snapshots(run, best["width"])
    facts = {"tinyldm": __version__, "step": step, "metric": name, "settings": asdict(config), "averages": rows}
    stem = "ema" if config.metric == "fd" else f"ema-{config.metric}"
    lines = [table(name, rows), "", f"best: {best['width']:g} (sample.py --model {config.run} --ema {best['width']:g})"]
    try:
        with FileLock(run / LOCK, timeout=0):
            replace_text(Manifest(run).own(run / f"{stem}.json"), json.dumps(facts, indent=1))
            picture(name, rows, Manifest(run).own(run / f"{stem}.png"))
        lines.append(f"the curve is {run / stem}.png")
    except Timeout:
        lines.append(f"not added to {run}, where a training is running")
    if config.export:
        export(run, best["width"], Path(config.export).expanduser())
        lines.append(f"the pipeline with the best one is {config.export}")
    return "\n".join(lines)


def distance(config: EMALengths) -> tuple[str, Measure]:
    """The Frechet distance of samples to the whole held-out part: its name, and how to measure it.

    Samples and features are kept in data.cache_dir.
    """
    workspace = Workspace(config.evaluation(None))
    reference = workspace.part_features("held_out", None)["features"]
    network, cache = workspace.network, Path(workspace.config.data.cache_dir).expanduser()

    def measure(width: float | None) -> dict[str, float]:
        settings = config.evaluation(width)
        model = open_model(settings, workspace.device)
        assert isinstance(model, Model)  # a first stage has no snapshots
        drawn = cache / "drawn" / digest([weights_stamp(settings, *parts(model)), model.sampler_facts(settings), settings.seed])
        images = draw(settings, model, config.num_images, drawn, "delete it")
        key = {"images": images.key, "features": network.recipe}
        chunks = Chunks(cache / "features" / digest(key), key, "delete it")
        features = embed(images, config.num_images, chunks, network.embed, "features of the samples")["features"]
        return distances.frechet(features, reference)._asdict()

    return network.frechet, measure


def loss(config: EMALengths, run: Path) -> tuple[str, Measure]:
    """The training's `eval_loss` on its held-out images: its name, and how to measure it."""
    kind: type[TrainLDM | TrainDDPM] = TrainLDM if "first_stage" in read_recipe(run / "config.yaml") else TrainDDPM
    once = ["--resume=latest", "--overwrite=false", f"--output_dir={run}"]  # with the latent scale that the run has kept
    once += ["--hub.push=false", "--train.log_with=none", "--train.mixed_precision=no", "--train.compile=false"]
    training = parse(kind, None, ["--config", str(run / "config.yaml"), *once])
    accelerator = make_accelerator(training.train, str(run))
    task = LatentTask(training, accelerator) if isinstance(training, TrainLDM) else PixelTask(training, accelerator)
    network = next(iter(task.networks.values())).to(accelerator.device).eval()

    @torch.no_grad()
    def measure(width: float | None) -> dict[str, float]:
        weights = load_model(config.run, str(accelerator.device), ema=width).denoiser.named_parameters()
        network.load_state_dict(dict(weights), strict=False)
        return {"value": task.summarize(task.evaluate())["eval_loss"]}

    return "held-out loss", measure


def table(name: str, rows: list[Row]) -> str:
    """The rows in columns of equal width: the average, its value with its interval, and the misfit of its profile."""
    cells = [["relative width", name, "misfit"]]
    for row in rows:
        interval = f" [{row['low']:.4g}, {row['high']:.4g}]" if "low" in row else ""
        misfit = f"{row['misfit']:.1%}" if "misfit" in row else ""
        cells.append([CLASSIC if row["width"] is None else f"{row['width']:g}", f"{row['value']:.5g}{interval}", misfit])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in cells)


def picture(name: str, rows: list[Row], file: Path) -> None:
    """Plot the value against the width, and that of the saved average as a horizontal line."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    saved, *others = rows
    axis.plot([row["width"] for row in others], [row["value"] for row in others], "o-", markersize=3)
    axis.axhline(saved["value"], color="gray", linestyle="--", linewidth=1, label=CLASSIC)
    axis.set(xscale="log", xlabel="relative width of the average", ylabel=name)
    axis.set_xticks([row["width"] for row in others], [f"{row['width']:g}" for row in others])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


# ----------------------------------------------------------------------------------------------------------------- export


def refuse_used(folder: Path) -> None:
    """Raise UserError for a path where something is already, other than an empty folder."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError(f"export: there are files in {folder} already, and none is replaced: choose another folder")


def export(run: Path, width: float, folder: Path) -> None:
    """Write the run's pipeline with another average into a new folder.

    Raises:
        UserError: see refuse_used.
    """
    model = load_model(str(run), ema=width)
    refuse_used(folder)
    folder.mkdir(parents=True, exist_ok=True)
    list_in_run(folder)
    source = run / "pipeline"
    Manifest(folder).own_all(folder / file.relative_to(source) for file in source.rglob("*") if file.is_file())
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for part in ("unet", "labels", "low_resolution"):
        if getattr(model, part) is not None:
            getattr(model, part).save_pretrained(folder / part)
    open_to_others(folder)
