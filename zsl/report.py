"""The report of a run: results.csv, tables, and README.md, which is also the model card. Every number comes from the run."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tinyldm.config import parsing
from tinyldm.config.paths import shareable
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest
from tinyldm.training.accelerator import default_device, hardware
from zsl.baselines import BASELINES
from zsl.config import Train
from zsl.data import Dataset
from zsl.protocols import METRICS, PROTOCOLS, Result

TEMPLATE = Path(__file__).parent.parent / "model_cards" / "zsl.md"
TITLES = {
    "top1": "top-1",
    "per_class_top1": "per class",
    "seen": "S",
    "unseen": "U",
    "h": "H",
    "auc": "AUC",
}


def write_results(folder: Path, results: list[Result]) -> None:
    """Write results.csv: one line per method, seed, protocol and metric. Values are fractions of 1."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(Result._fields)
    writer.writerows(results)
    replace_text(Manifest(folder).own(folder / "results.csv"), table.getvalue())


def read_results(file: Path) -> list[Result]:
    """Read the file of write_results."""
    with file.open(newline="") as opened:
        return [
            Result(
                row["method"],
                int(row["seed"]),
                row["protocol"],
                row["metric"],
                float(row["value"]),
                float(row["weight"]) if row["weight"] else None,
                row["chosen"],
            )
            for row in csv.DictReader(opened)
        ]


# ---------------------------------------------------------------------------------------------------------------- tables


def values(results: Iterable[Result], method: str, protocol: str, metric: str) -> dict[int, float]:
    """Seed -> value in percent."""
    return {r.seed: 100 * r.value for r in results if (r.method, r.protocol, r.metric) == (method, protocol, metric)}


def means(results: list[Result], protocol: str) -> list[list[str]]:
    """One row per method, `mean ± deviation` over the seeds in percent, after a header row."""
    rows = [["method", *(TITLES[metric] for metric in METRICS)]]
    for method in dict.fromkeys(result.method for result in results):
        cells = (list(values(results, method, protocol, metric).values()) for metric in METRICS)
        rows.append([method, *(_mean(cell) for cell in cells)])
    return rows


def paired(results: list[Result], protocol: str, metric: str, against: str) -> list[list[str]]:
    """Compare each generative method with `against` by the differences at equal seeds, after a header row.

    `p` is from a two-sided t-test of the differences (n - 1 degrees of freedom). `ahead` counts positive differences.
    """
    from scipy.stats import ttest_1samp

    rows = [["method", f"{TITLES[metric]} minus {against}", "p", "ahead"]]
    other = values(results, against, protocol, metric)
    for method in dict.fromkeys(result.method for result in results):
        mine = values(results, method, protocol, metric)
        differences = [mine[seed] - other[seed] for seed in mine if seed in other]
        if method in (against, *BASELINES) or not differences:
            continue
        spread = len(differences) > 1 and np.std(differences) > 0
        p = f"{ttest_1samp(differences, 0).pvalue:.2g}" if spread else "-"
        ahead = sum(difference > 0 for difference in differences)
        rows.append([method, _mean(differences, sign="+"), p, f"{ahead} of {len(differences)}"])
    return rows


def best_baseline(results: list[Result], protocol: str, metric: str) -> str:
    """The baseline with the best mean, which generative methods are compared with."""
    return max(BASELINES, key=lambda name: np.mean(list(values(results, name, protocol, metric).values()) or [-1.0]))


def table(results: list[Result]) -> str:
    """Tables of both protocols for the terminal."""
    parts = []
    for protocol in PROTOCOLS:
        rows = means(results, protocol)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        parts.append("\n".join([f"{protocol} protocol, percent, mean ± deviation over seeds", *lines]))
    return "\n\n".join(parts)


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table of rows. The first row is the header."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def _mean(cell: list[float], sign: str = "") -> str:
    if not cell:
        return "-"
    return f"{np.mean(cell):{sign}.1f}" + (f" ± {np.std(cell, ddof=1):.1f}" if len(cell) > 1 else "")


# ------------------------------------------------------------------------------------------------------------ the report


def write(folder: Path, config: Train, data: Dataset, vectors: np.ndarray, results: list[Result], pictures: list[str]) -> None:
    """Write README.md from model_cards/zsl.md.

    Args:
        pictures: file names in the folder.
    """
    name = (config.hub.repo_id or folder.resolve().name).split("/")[-1]
    eval_results = [
        EvalResult(
            task_type="image-classification",
            task_name="zero-shot classification of unseen classes",
            dataset_type=data.name,
            dataset_name=data.name + (" (SIMULATED features)" if data.simulated else ""),
            metric_type="accuracy",
            metric_name=f"{method.name}: top-1 of {len(data.unseen)} unseen classes, honest, mean of {len(top1)} seeds",
            metric_value=round(float(np.mean(list(top1.values()))), 2),
        )
        for method in config.methods
        if (top1 := values(results, method.name, "honest", "top1"))
    ]
    card_data = ModelCardData(
        model_name=name,
        license="other",
        license_name="follows-the-training-data",
        tags=["tinyldm", "zero-shot-learning", *dict.fromkeys(method.family for method in config.methods)],
        eval_results=eval_results or None,
    )
    protocols = []
    for protocol in PROTOCOLS:
        baseline = best_baseline(results, protocol, "top1")
        against = [paired(results, protocol, metric, "gazsl") for metric in ("top1", "auc")] if "gazsl" in config.method else []
        against.append(paired(results, protocol, "top1", baseline))
        protocols.append((protocol, markdown(means(results, protocol)), [markdown(rows) for rows in against if len(rows) > 1]))
    chosen = [
        f"{method.name}: "
        + ", ".join(sorted({f"{r.weight:g}" for r in results if r.method == method.name and r.protocol == protocol}))
        + f" ({protocol})"
        for method in config.methods
        for protocol in PROTOCOLS
        if method.divergence and any(r.method == method.name and r.protocol == protocol for r in results)
    ]
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        name=name,
        data=data,
        seen=len(data.seen),
        unseen=len(data.unseen),
        chance=100 / len(data.unseen),
        images=len(data.labels),
        feature_dim=data.features.shape[1],
        text_dim=vectors.shape[1],
        config=config,
        preprocessing=config.preprocessing,
        protocols=protocols,
        chosen=chosen,
        pictures=pictures,
        hardware=hardware(torch.device(default_device(config.device))),
        torch_version=torch.__version__,
        recipe=parsing.dump(shareable(parsing.to_dict(config))).strip(),
    )
    replace_text(Manifest(folder).own(folder / "README.md"), card.content)
