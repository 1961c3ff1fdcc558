"""Writes what evaluate.py measured: evaluation.json, a table, and the run's metrics.csv, report and model card."""

import json
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import EvalResult

from tinyldm import __version__
from tinyldm.config import parsing
from tinyldm.config.evaluate import Evaluate, run_folder
from tinyldm.config.paths import shareable
from tinyldm.data.identity import hub_id
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest
from tinyldm.training import model_card
from tinyldm.training.run_folder import read_metrics, write_metrics

SECTION = "## Evaluation"
HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "Inception score", "PSNR", "SSIM")
NEARER = "nearer to the training part than held-out images"
OF_FEATURES = ("precision", "recall", "density", "coverage", NEARER)  # get the network's name added
INTERVALS = "In brackets: the 95% interval over other sets of as many images against the same reference."
ANCHORS = (
    "`real images` are as many images from outside the reference: the result of a perfect model. `reconstructions` are these "
    "images after the model's first stage: the best result its denoiser can reach."
)


def publish(config: Evaluate, output: Path, images: dict[str, Any], result: dict[str, Any]) -> str:
    """Write evaluation.json, and add the results to the run if a run was evaluated.

    Args:
        images: the key of the evaluated images, with their `count`.
        result: `features`, `reference`, `figures`, ... from `Evaluation`. It replaces an older result with the same features
            and reference. Other results of the same images stay.

    Returns:
        The table and the paths, as text to print.
    """
    file = output / "evaluation.json"
    try:
        old = json.loads(file.read_text())
        same = {**old["images"], "count": 0} == json.loads(json.dumps({**images, "count": 0}, default=str))
        kept = [other for other in old["results"] if same and _key(other) != _key(result)]
    except Exception:  # whatever else stands there is replaced
        kept = []
    results = [*kept, result]
    text = json.dumps({"tinyldm": __version__, "images": images, "results": results}, indent=1, default=str)
    replace_text(Manifest(output).own(file), text)
    where = str(file)
    if (run := run_folder(config.model)) and config.ema is None:  # the run's report is about the model that it has saved
        try:
            with FileLock(run / ".lock", timeout=0):
                replace_text(Manifest(run).own(run / "evaluation.json"), text)
                add_to_metrics(run, results)
                add_to_report(run, images, results)
            where += f"; the table is also in {run / 'README.md'}"
        except Timeout:
            where += f"; not added to {run}, where a training is running"
        except OSError as error:
            where += f"; not added to {run} ({error.strerror})"
    return f"\n{screen(images, result)}\n\nin {where}"


def _key(result: dict[str, Any]) -> tuple[str, str]:
    return result["features"]["name"], result["reference"]["part"]


# ------------------------------------------------------------------------------------------------------------------ tables


def headline(images: dict[str, Any], result: dict[str, Any]) -> str:
    """A sentence that names the images and the reference, of paths the last part."""
    images, reference, features = shareable(images), shareable(result["reference"]), result["features"]
    if "sampler" in images:
        last = images["seed"] + images["count"] - 1
        eta = f", eta {images['eta']:g}" if images["eta"] else ""
        what = f"{images['count']:,} samples of {images['model']} ({images['sampler']}, {images['num_inference_steps']} steps"
        what += f"{eta}, seeds {images['seed']} to {last}; weights: {images['weights']}, {images['weights_hash'][:8]})"
    elif "weights" in images:
        what = f"{images['count']:,} reconstructions by {images['model']} (weights: {images['weights']}, "
        what += f"{images['weights_hash'][:8]})"
    else:
        what = f"{images['count']:,} images of {images['images']} ({images['format']})"
    part = reference["part"].replace("_", "-")
    revision = f" at {reference['revision']}" if reference["revision"] else ""
    against = (
        f"{reference['images']:,} images of the {part} part of {reference['data']}{revision}, {reference['resolution']} px"
    )
    return f"{what} against {against}; features: {features['name']}, {features['resize']}."


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of a result, heading first: the metric, then a column for each set of images."""
    columns = list(next(iter(result["figures"].values()), {}))
    table = [["", *columns]]
    for name, measured in result["figures"].items():
        cells = [f"{m['value']:.4g} [{m['low']:.4g}, {m['high']:.4g}]" for m in measured.values()]
        table.append([f"{name} {'↑' if name in HIGHER_IS_BETTER else '↓'}", *cells])
    counts = [max(measured[column]["images"] for measured in result["figures"].values()) for column in columns]
    return [*table, ["images", *(f"{count:,}" for count in counts)]] if columns else []


def remarks(result: dict[str, Any]) -> list[str]:
    """The lines below the table: memorisation, codebook, notes."""
    lines = []
    if memory := result.get("memorisation"):
        near, one = ("{value:.1%} [{low:.1%}, {high:.1%}]".format(**memory[key]) for key in ("nearer", "as_near_as_1_percent"))
        lines.append(
            f"Memorisation: a sample is nearer to the {memory['train_images']:,} training images than a held-out image is in "
            f"{near} of comparisons (50%: like new images; towards 100%: copies), and {one} of the samples are as near as "
            f"the nearest 1% of the {memory['held_out_images']:,} held-out images."
        )
    if book := result.get("codebook"):
        lines.append(f"Codebook: {book['used']:.1%} of {book['codes']:,} codes in use, perplexity {book['perplexity']:,.0f}.")
    return [*lines, *(f"Note: {note}." for note in result["notes"])]


def screen(images: dict[str, Any], result: dict[str, Any]) -> str:
    """The table in columns of equal width."""
    table = rows(result)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([headline(images, result), "", *lines, "", *remarks(result)]).rstrip()


def markdown(images: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The section for the run's README.md."""
    parts = [SECTION, ""]
    for result in results:
        cells = rows(result)
        cells[1:1] = [["---"] * len(cells[0])] if cells else []
        table = [f"| {' | '.join(row)} |" for row in cells]
        parts += [headline(images, result), "", *table, "", *(f"{line}\n" for line in remarks(result))]
    anchors = any("real images" in measured for result in results for measured in result["figures"].values())
    return "\n".join([*parts, INTERVALS, *([ANCHORS] if anchors else []), ""])


# ---------------------------------------------------------------------------------------------------------- the run folder


def slug(name: str) -> str:
    """`FD (efficientnet-lite0)` -> `fd_efficientnet-lite0`."""
    return re.sub(r"[^a-z0-9-]+", "_", name.lower()).strip("_")


def main_metrics(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The metrics of the samples or reconstructions, without the anchors: full names and values."""
    name = result["features"]["name"]
    metrics = {key: next(iter(measured.values())) for key, measured in result["figures"].items()}
    metrics |= {NEARER: result["memorisation"]["nearer"]} if "memorisation" in result else {}
    return [(f"{key} ({name})" if key in OF_FEATURES else key, measured) for key, measured in metrics.items()]


def add_to_metrics(run: Path, results: list[dict[str, Any]]) -> None:
    """Add columns evaluation_... to the last row of metrics.csv, which belongs to the step of the weights."""
    table = read_metrics(run / "metrics.csv")
    if not table:
        return
    table[-1].update(
        {f"evaluation_{slug(name)}": measured["value"] for result in results for name, measured in main_metrics(result)}
    )
    write_metrics(run / "metrics.csv", table)


def add_to_report(run: Path, images: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Write the section Evaluation of README.md and the metrics of the model card, replacing those of an earlier evaluation."""
    data = parsing.read_yaml(run / "config.yaml")["data"]
    ours = [_eval_result(name, measured, images, result, data) for result in results for name, measured in main_metrics(result)]
    model_card.add_evaluation(run, markdown(images, results), ours)


def _eval_result(
    name: str, measured: dict[str, Any], images: dict[str, Any], result: dict[str, Any], data: dict[str, Any]
) -> EvalResult:
    recipe: dict[str, Any] = {
        key: images[key] for key in ("sampler", "num_inference_steps", "eta", "seed", "weights") if key in images
    }
    return EvalResult(
        task_type="unconditional-image-generation",
        dataset_type=hub_id(data["name"]) or Path(data["name"]).name,
        dataset_name=Path(data["name"]).name,
        dataset_split=result["reference"]["part"].replace("_", "-"),
        dataset_revision=data.get("revision"),
        metric_type=slug(name),
        metric_name=f"{name}, {measured['images']:,} images",
        metric_value=round(measured["value"], 5),
        metric_args={**recipe, "reference_images": result["reference"]["images"], "features": result["features"]["name"]},
    )
