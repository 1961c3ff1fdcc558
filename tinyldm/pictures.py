"""Pictures: grids, strips, animations and loss curves."""

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from tinyldm.errors import UserError
from tinyldm.manifest import LOCK, Manifest, list_in_run

CURVES = {"loss": "training", "eval_loss_as_trained": "held out, averaged weights"}
PANELS = {  # column of metrics.csv: title and unit of its panel in loss.png
    "loss": ("loss with the training's weights", "loss as trained"),
    "eval_loss": ("held-out loss, to compare runs by", "loss, not weighted as trained"),
    "eval_loss_q": ("held-out loss by quarter of the timesteps", "loss, not weighted as trained"),
    "eval_accuracy": ("held-out accuracy over all labels", "accuracy"),
    "eval_accuracy_q": ("held-out accuracy by quarter of the timesteps", "accuracy"),
    "eval_accuracy_of_": ("held-out accuracy by label", "accuracy"),
    "eval_fd": ("held-out Frechet distance", "Frechet distance"),
    "eval_nearer": ("samples nearer to the training images than held-out ones", "share (0.5: like new images)"),
    "eval_bits": ("held-out bound", "bits per dimension"),
    "eval_psnr": ("held-out PSNR", "dB"),
    "eval_ssim": ("held-out SSIM", "structural similarity"),
    "eval_perplexity": ("codebook perplexity on held-out images", "codes in use"),
    "eval_codes_used": ("codes in use on held-out images", "share"),
}
SHARED = ("eval_loss_q", "eval_accuracy_q", "eval_accuracy_of_")  # columns that begin so share a panel
MIN_SIDE = 128  # pixels; grids enlarge smaller images to at least this side


def grid(images: torch.Tensor, columns: int | None = None) -> Image.Image:
    """Tile uint8 images (N, 3, H, W) into one picture. Small images are enlarged by an integer factor."""
    images = images.cpu()
    columns = columns or max(1, round(math.sqrt(len(images))))
    factor = max(1, MIN_SIDE // images.shape[-1]) if len(images) <= 144 else 1
    padding = 2
    tiled = make_grid(images, nrow=columns, padding=padding, pad_value=255)
    tiled = tiled.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return to_pil(tiled)


def to_pil(image: torch.Tensor) -> Image.Image:
    """uint8 (3, H, W) -> RGB image; (1, H, W) -> grey image."""
    return to_pil_image(image.cpu())


def save_gif(frames: list[Image.Image], path: Path, seconds: float = 4.0) -> None:
    """Save an animation that pauses on its last frame."""
    each = max(20, round(1000 * seconds / len(frames)))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[each] * (len(frames) - 1) + [1500], loop=0)


def pyplot() -> Any:
    """matplotlib.pyplot without a screen. Imported late: it is slow, and only the end of a run needs it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


class Panel(NamedTuple):
    """Curves that share axes.

    Attributes:
        series: the name of each curve and its points (step, value).
        range: the values to show. The first steps of a training loss are cut off, which would flatten the rest.
    """

    title: str
    unit: str
    series: dict[str, list[tuple[int, float]]]
    range: tuple[float, float]


def panels(rows: list[dict[str, Any]]) -> list[Panel]:
    """The curves of a metrics.csv: the loss that is trained, of both parts of the data, then each held-out metric.

    The four quarters of the timesteps share a panel, and so do the labels of a classifier.
    """
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in rows for key in row if key == "loss" or key.startswith("eval_")):
        shared = "loss" if key == "eval_loss_as_trained" else next((name for name in SHARED if key.startswith(name)), key)
        groups.setdefault(shared, []).append(key)
    found = []
    for name, keys in groups.items():
        series = {
            CURVES.get(key, re.sub("^eval_(loss|accuracy)_(of_)?", "", key)): [
                (row["step"], row[key]) for row in rows if key in row
            ]
            for key in keys
        }
        values = sorted(value for points in series.values() for _, value in points)
        low, high = values[0], values[-1]
        if "loss" in keys:
            trained = sorted(value for _, value in series[CURVES["loss"]])
            high = max([trained[int(0.98 * (len(trained) - 1))], *(row[key] for key in keys[1:] for row in rows if key in row)])
        margin = 0.05 * (high - low + 1e-9)
        heading, unit = PANELS.get(name, (name.replace("eval_", "held-out "), name.removeprefix("eval_")))
        found.append(Panel(heading, unit, series, (low - margin, high + margin)))
    return found


def curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot a metrics.csv. See panels."""
    plt, found = pyplot(), panels(rows)
    columns = min(3, max(1, len(found)))
    lines = math.ceil(max(1, len(found)) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.2 * lines), squeeze=False)
    for axis in axes.flat[max(1, len(found)) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, found, strict=False):
        for label, points in panel.series.items():
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=label)
        axis.set_title(panel.title, size=10)
        axis.set_xlabel("optimizer steps")
        axis.set_ylabel(panel.unit)
        axis.grid(alpha=0.3)
        if len(panel.series) > 1:
            axis.legend(title="q1: least noise" if "q1" in panel.series else None, fontsize=8, title_fontsize=8)
        if "training" in panel.series and len(panel.series["training"]) > 1:
            axis.set_ylim(*panel.range)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def accuracy_curves(way: list[float], accuracies: dict[str, list[float]], guessing: list[float], path: Path) -> None:
    """Plot the accuracies of a classifier over the noise, each with a dotted line for what guessing gives.

    Args:
        way: parts of the way from image to noise, 0 to 1.
        accuracies: for each label one value for each part.
        guessing: one value for each label.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, values), guess in zip(accuracies.items(), guessing, strict=True):
        (line,) = axis.plot(way, values, marker=".", label=name)
        axis.axhline(guess, color=line.get_color(), linestyle=":", linewidth=1)
    axis.set(xlabel="way from image to noise", ylabel="held-out accuracy (dotted: guessing)", xlim=(0, 1))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)
    plt.close(figure)


class OutputFolder:
    """The folder that sample.py writes its pictures to. Use it as a context: it is locked against a second one.

    Raises:
        UserError: if it already holds pictures and `overwrite` is false; if it holds pictures of others in the places of new
            ones; if another program writes to it; or if it cannot be written.
    """

    SUMMARIES = (
        "grid.png",
        "samples.npz",
        "denoising.png",
        "denoising.gif",
        "edited.png",
        "interpolation.png",
        "interpolation.gif",
    )

    def __init__(self, path: str, overwrite: bool):
        self.path, self.images, self.overwrite = Path(path), Path(path) / "images", overwrite
        self.manifest = Manifest(self.path)
        self.old, self.new = self._find_old(), not self.path.exists()
        try:
            self.images.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir {path} cannot be written ({error.strerror}): choose another") from error
        self.batches: list[torch.Tensor] = []

    def __enter__(self) -> Self:
        self._lock = FileLock(self.path / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another program writes to {self.path}: choose another output_dir") from None
        self.old = self._find_old()  # another program may just have finished
        return self

    def __exit__(self, *exception: object) -> None:
        (self.path / LOCK).unlink(missing_ok=True)
        self._lock.release()
        if self.new and not self.batches:  # leave no empty folders
            with suppress(OSError):
                self.images.rmdir()
                self.path.rmdir()

    def _find_old(self) -> list[Path]:
        """The pictures of an earlier sample.py."""
        mine, foreign = (
            [f for f in files if self._is_picture(f)] for files in (self.manifest.files(), self.manifest.foreign())
        )
        if not self.overwrite and (mine or foreign or any(self.images.glob("*"))):
            raise UserError(f"{self.path} holds pictures already: choose another output_dir, or use --overwrite true")
        if foreign:
            raise UserError(f"{foreign[0]} was not written by sample.py and is not replaced: choose another output_dir")
        return mine

    def _is_picture(self, file: Path) -> bool:
        inside = file.relative_to(self.path).as_posix()
        return inside in self.SUMMARIES or re.fullmatch(r"images/(seed|frame)-\d{6,}\.png", inside) is not None

    def add(self, batch: torch.Tensor, first: int, name: str = "seed") -> None:
        """Save uint8 images (B, 3, H, W) as images/seed-N.png, N from `first` on. The first call deletes the old pictures."""
        if not self.batches:
            self.manifest.remove(self.old)
            self.images.mkdir(exist_ok=True)
        number = first + sum(map(len, self.batches))
        files = [self.images / f"{name}-{number + i:06d}.png" for i in range(len(batch))]
        self.manifest.own_all(files)
        if not self.batches:
            list_in_run(self.path)
        for file, image in zip(files, batch, strict=True):
            to_pil(image).save(file)
        self.batches.append(batch)

    def finish(self) -> None:
        """Write grid.png and samples.npz.

        The npz holds arr_0, uint8 (N, H, W, 3), which common evaluation suites read.
        """
        images = torch.cat(self.batches)
        grid(images[:100]).save(self.manifest.own(self.path / "grid.png"))
        np.savez(self.manifest.own(self.path / "samples.npz"), images.permute(0, 2, 3, 1).numpy())

    def strip(self, frames: list[torch.Tensor]) -> None:
        """Write denoising.png and denoising.gif. Each row of the picture goes from noise to image."""
        rows = torch.stack(frames, 1)  # (B, frames, 3, H, W)
        grid(rows.flatten(0, 1), len(frames)).save(self.manifest.own(self.path / "denoising.png"))
        save_gif([grid(frame) for frame in frames], self.manifest.own(self.path / "denoising.gif"))

    def edited(self, images: torch.Tensor, columns: int) -> None:
        """Write edited.png: what was given, beside what was made of it."""
        grid(images, columns).save(self.manifest.own(self.path / "edited.png"))

    def interpolation(self, images: torch.Tensor) -> None:
        """Write interpolation.png, one row of images, and interpolation.gif."""
        grid(images, len(images)).save(self.manifest.own(self.path / "interpolation.png"))
        save_gif([grid(image[None]) for image in images], self.manifest.own(self.path / "interpolation.gif"))
