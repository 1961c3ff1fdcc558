"""Plots of seen-unseen curves, and of real, generated and hallucinated features in two dimensions."""

from pathlib import Path

import numpy as np

from tinyldm.files import replace_text
from tinyldm.pictures import pyplot
from zsl.metrics import Curve

CLASSES = 10  # unseen classes in a plot of features: as many as there are colours that are easy to distinguish
POINTS = 30  # points per class and kind


def curves(file: Path, named: dict[str, Curve]) -> None:
    """Draw seen-unseen curves as a PNG, and write their points to a .csv with the same name."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.5, 4.5))
    for name, curve in named.items():
        axis.plot(100 * curve.unseen, 100 * curve.seen, label=f"{name}: AUC {100 * curve.area:.1f}%", linewidth=1.4)
    axis.set_xlabel("accuracy on unseen images, %")
    axis.set_ylabel("accuracy on seen images, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    lines = ["name,offset,seen,unseen"]
    for name, curve in named.items():
        lines += [f"{name},{o:g},{s:g},{u:g}" for o, s, u in zip(curve.offsets, curve.seen, curve.unseen, strict=True)]
    replace_text(file.with_suffix(".csv"), "\n".join(lines) + "\n")


def features(
    file: Path,
    real: np.ndarray,
    labels: np.ndarray,
    generated: np.ndarray,
    hallucinated: np.ndarray,
    names: list[str],
    title: str,
) -> None:
    """Draw real and generated features of the first unseen classes, and hallucinated features, by PCA and t-SNE.

    Args:
        real, labels: features (N, D) and labels (N,) in 0..C-1 of unseen images.
        generated: generated features of the same classes (C, S, D).
        hallucinated: hallucinated features, which belong to no class (M, D).
        names: names of the classes (C,).
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    plt = pyplot()
    shown = [index for index in range(len(names)) if (labels == index).any()][:CLASSES]
    parts = [hallucinated[: POINTS * len(shown)]]
    for index in shown:
        parts += [real[labels == index][:POINTS], generated[index, :POINTS]]
    points = np.concatenate(parts).astype(np.float64)
    flat = PCA(min(50, *points.shape), random_state=0).fit_transform(points)
    planes = {"PCA": flat[:, :2]}
    if len(points) > 10:
        planes["t-SNE"] = TSNE(perplexity=min(30, len(points) / 4), random_state=0, init="pca").fit_transform(flat)
    figure, axes = plt.subplots(1, len(planes), figsize=(5.5 * len(planes) + 1.5, 5.2), squeeze=False)
    ends = np.cumsum([len(part) for part in parts])
    for axis, (name, plane) in zip(axes.flat, planes.items(), strict=True):
        chunks = np.split(plane, ends[:-1])
        axis.scatter(*chunks[0].T, s=10, color="0.75", marker="x", label="hallucinated", linewidth=0.8)
        for place, index in enumerate(shown):
            colour = plt.get_cmap("tab10")(place)
            axis.scatter(*chunks[1 + 2 * place].T, s=14, color=colour, label=names[index])
            axis.scatter(*chunks[2 + 2 * place].T, s=18, facecolors="none", edgecolors=[colour], marker="^", linewidth=0.8)
        axis.set_title(name, size=10)
        axis.set_xticks([])
        axis.set_yticks([])
    axes.flat[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{title}: unseen classes, real ● and generated △, and hallucinated × features", size=10)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)
