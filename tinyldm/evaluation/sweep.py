"""Measures a model with several values of one key of its sampler, such as the guidance scale, from the same noise."""

from pathlib import Path
from typing import Any

import numpy as np

from tinyldm import pictures
from tinyldm.evaluation.labels import LabelMetrics
from tinyldm.evaluation.models import draw
from tinyldm.evaluation.workspace import SAMPLES, START_OVER, Workspace
from tinyldm.metrics.chunks import Arrays
from tinyldm.models.model import Model

LABEL_ACCURACY = "label accuracy"
TOGETHER = (("precision", "recall"), ("density", "coverage"))  # figures that share a panel


def run(
    workspace: Workspace, model: Model, samples: Arrays, reference: np.ndarray, labels: LabelMetrics | None
) -> list[dict[str, Any]]:
    """The chosen metrics for each value of `config.sweep`; also saves sweep.png.

    Samples and features of each value have folders of their own, so an interrupted sweep resumes. A value that the config
    itself has is not drawn again.

    Args:
        samples: features of the samples with the config's own settings.
        reference: (M, D).
        labels: None: no label accuracy.

    Returns:
        For each value the key, the value and the figures by name.
    """
    config, count, results = workspace.config, len(samples["features"]), []
    for key, value, settings in config.swept:
        name, arrays = f"{key}-{value:g}", samples
        if model.sampler_facts(settings) != model.sampler_facts(config):
            folder = workspace.manifest.own_folder(workspace.output / "sweep" / name)
            images = draw(settings, model, count, folder, START_OVER, f"drawing with {key} {value:g}")
            arrays = workspace.own_features(f"{SAMPLES}-{name}", images, count, workspace.network.embed)
        figures = workspace.compare(arrays, reference, config.chosen)
        if labels and (found := labels.accuracies(arrays["features"])):
            figures[LABEL_ACCURACY] = found["mean"]["balanced"][SAMPLES]
        results.append({"key": key, "value": value, "figures": figures})
    plot(results, workspace.network.frechet, workspace.manifest.own(workspace.output / "sweep.png"))
    return results


def best(results: list[dict[str, Any]], frechet: str) -> int | None:
    """The number of the value with the smallest Frechet distance; None where it was not measured."""
    if frechet not in results[0]["figures"]:
        return None
    return int(np.argmin([result["figures"][frechet]["value"] for result in results]))


def plot(results: list[dict[str, Any]], frechet: str, path: Path) -> None:
    """Curves of all figures over the swept values, with their intervals. The value with the best distance is marked."""
    plt = pictures.pyplot()
    results = sorted(results, key=lambda result: result["value"])
    values, names = [result["value"] for result in results], list(results[0]["figures"])
    shared = {name: group for group in TOGETHER for name in group}
    panels = list(dict.fromkeys(shared.get(name, (name,)) for name in names))
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False)
    marked = best(results, frechet)
    for axis, panel in zip(axes.flat, panels, strict=True):
        for name in panel:
            found = [result["figures"][name] for result in results]
            axis.plot(values, [figure["value"] for figure in found], marker=".", label=name)
            axis.fill_between(values, *([figure[end] for figure in found] for end in ("low", "high")), alpha=0.15)
        if marked is not None:
            axis.axvline(values[marked], color="grey", linestyle=":", label=f"best distance: {values[marked]:g}")
        axis.set_title(" and ".join(panel), size=10)
        axis.set_xlabel(results[0]["key"])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
