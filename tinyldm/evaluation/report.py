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
from tinyldm.evaluation.sweep import LABEL_ACCURACY, best
from tinyldm.evaluation.workspace import REAL, SAMPLES
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest
from tinyldm.training import model_card
from tinyldm.training.run_folder import read_metrics, write_metrics

SECTION = "## Evaluation"
HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "Inception score", "PSNR", "SSIM", LABEL_ACCURACY)
NEARER = "nearer to the training part than held-out images"
OF_FEATURES = ("precision", "recall", "density", "coverage", NEARER, LABEL_ACCURACY)  # get the network's name added
INTERVALS = "In brackets: the 95% interval over other sets of as many images against the same reference."
ABOUT_LABELS = (
    "Label accuracy: the share of images whose label a linear probe on the features reads, the mean over the label's values. "
    "The probe has learned from the training part; its accuracy on held-out real images is the ceiling. plain: the share of "
    "all images."
)
ABOUT_VALUES = (
    "Frechet distance by value of a label: samples against reference images of the value, beside as many real images. With few "
    "images all distances are large: compare within a row."
)
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
        settings = [f"{images['num_inference_steps']} steps", *([f"eta {images['eta']:g}"] if images["eta"] else [])]
        if "guidance_scale" in images:
            settings.append(f"guidance scale {images['guidance_scale']:g} ({images['guide']})")
        if "labels" in images:
            settings.append(f"labels {images['labels']}")
        what = f"{images['count']:,} samples of {images['model']} ({images['sampler']}, {', '.join(settings)}, "
        what += f"seeds {images['seed']} to {last}; weights: {images['weights']}, {images['weights_hash'][:8]})"
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
        table.append([_heading(name), *map(_cell, measured.values())])
    counts = [max(measured[column]["images"] for measured in result["figures"].values()) for column in columns]
    return [*table, ["images", *(f"{count:,}" for count in counts)]] if columns else []


def _heading(name: str) -> str:
    return f"{name} {'↑' if name in HIGHER_IS_BETTER else '↓'}"


def _cell(figure: dict[str, float] | None, form: str = ".4g") -> str:
    if figure is None:
        return ""
    low, high = figure["low"], figure["high"]
    if form.endswith("%"):  # of a normal interval around a share
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{figure['value']:{form}} [{low:{form}}, {high:{form}}]"


def tables(result: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """The tables of a result, each below a sentence about it: the main one, labels, values of labels, the sweep."""
    found = [("", rows(result))]
    if labels := result.get("labels"):
        found.append((ABOUT_LABELS, _label_rows(labels)))
    if values := result.get("values"):
        found.append((ABOUT_VALUES, _value_rows(values)))
    if sweep := result.get("sweep"):
        found.append((f"{sweep[0]['key']}, each value with the same noise{_best(result)}.", _sweep_rows(sweep)))
    return [(about, table) for about, table in found if table]


def _label_rows(labels: dict[str, Any]) -> list[list[str]]:
    table = [["label", "values", "samples ↑", "real images ↑", "ratio", "plain: samples", "plain: real images"]]
    lines = [*labels["columns"].items(), ("mean", labels["mean"])]
    for name, found in lines if len(lines) > 2 else lines[:1]:
        shares = [_cell(found["balanced"][column], ".1%") for column in (SAMPLES, REAL)]
        plain = [f"{found['plain'][column]['value']:.1%}" for column in (SAMPLES, REAL)]
        ratio = "" if found["ratio"] is None else f"{found['ratio']:.1%}"
        table.append([name, str(found.get("values", "")), *shares, ratio, *plain])
    return table


def _value_rows(values: list[dict[str, Any]]) -> list[list[str]]:
    table = [["value", "samples ↓", "real images ↓", "samples", "real images", "reference"]]
    for found in values:
        figures = [found["figures"].get(column) for column in (SAMPLES, REAL)]
        counts = [str(figure["images"]) if figure else "" for figure in figures]
        table.append([f"{found['label']}={found['value']}", *map(_cell, figures), *counts, str(found["reference"])])
    return table


def _sweep_rows(sweep: list[dict[str, Any]]) -> list[list[str]]:
    names = list(sweep[0]["figures"])
    lines = [[f"{found['value']:g}", *(f"{found['figures'][name]['value']:.4g}" for name in names)] for found in sweep]
    return [[sweep[0]["key"], *map(_heading, names)], *lines]


def _best(result: dict[str, Any]) -> str:
    sweep = result["sweep"]
    name = next(iter(sweep[0]["figures"]))
    number = best(sweep, name) if name not in HIGHER_IS_BETTER else None
    return "" if number is None else f"; the smallest {name} is that of {sweep[number]['value']:g}"


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
    lines = [headline(images, result), ""]
    for about, table in tables(result):
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += [about, ""] if about else []
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        lines.append("")
    return "\n".join([*lines, *remarks(result)]).rstrip()


def markdown(images: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The section for the run's README.md."""
    parts = [SECTION, ""]
    for result in results:
        parts += [headline(images, result), ""]
        for about, cells in tables(result):
            lines = [f"| {' | '.join(row)} |" for row in (cells[0], ["---"] * len(cells[0]), *cells[1:])]
            parts += [*([about, ""] if about else []), *lines, ""]
        parts += [f"{line}\n" for line in remarks(result)]
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
    metrics |= {LABEL_ACCURACY: result["labels"]["mean"]["balanced"][SAMPLES]} if result.get("labels") else {}
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
    recipe = parsing.read_yaml(run / "config.yaml")
    ours = [
        _eval_result(name, measured, images, result, recipe) for result in results for name, measured in main_metrics(result)
    ]
    model_card.add_evaluation(run, markdown(images, results), ours)


def _eval_result(
    name: str, measured: dict[str, Any], images: dict[str, Any], result: dict[str, Any], config: dict[str, Any]
) -> EvalResult:
    data = config["data"]
    settings: dict[str, Any] = {
        key: images[key]
        for key in ("sampler", "num_inference_steps", "eta", "guidance_scale", "labels", "seed", "weights")
        if key in images
    }
    return EvalResult(
        task_type=model_card.task(config),
        dataset_type=hub_id(data["name"]) or Path(data["name"]).name,
        dataset_name=Path(data["name"]).name,
        dataset_split=result["reference"]["part"].replace("_", "-"),
        dataset_revision=data.get("revision"),
        metric_type=slug(name),
        metric_name=f"{name}, {measured['images']:,} images",
        metric_value=round(measured["value"], 5),
        metric_args={**settings, "reference_images": result["reference"]["images"], "features": result["features"]["name"]},
    )
