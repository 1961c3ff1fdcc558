"""Fine-tuning on few pictures of one kind, beside training from nothing on the same pictures.

    python -m benchmarks.fine_tuning --base runs/toyfaces16      # an hour and a half on one CPU core

The base has learned all cartoon faces; the pictures are faces with a crown. While it trains, each run measures its Frechet
distance to other faces with a crown, and which share of its samples is nearer to the training pictures than to those (0.5: it
copies nothing).
"""

import itertools
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from tqdm.auto import tqdm

from benchmarks.measure import RESULTS, record, use_all_cores
from benchmarks.page_tables import fine_tuning
from tinyldm import pictures
from tinyldm.config.parsing import parse
from tinyldm.config.schema import Features, TrainDDPM
from tinyldm.data import toyfaces
from tinyldm.diffusion.pixel_task import PixelTask
from tinyldm.training.run_folder import read_metrics
from tinyldm.training.trainer import run_training

KIND = ("hat", "crown")
CAREFUL = ("--data.augment", "0.15", "--unet.dropout", "0.1")
FIRST = 2 * 10**9  # index of the first face; the data sets of the base end before


def main(
    base: str = "runs/toyfaces16",
    recipe: str = "configs/toyfaces16-ddpm.yaml",
    counts: list[int] | None = None,
    steps: int = 300,
    steps_from_nothing: int = 3000,
    images: int = 256,
    features: Features = "efficientnet-lite0",
    runs: str = "runs/fine-tuning",
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        base: a run of the recipe.
        recipe: a recipe of train_ddpm.py on toyfaces.
        counts: numbers of pictures. None: 50, 300, 1000.
        steps: of each fine-tuning.
        steps_from_nothing: of the training from nothing, on the most pictures.
        images: images per distance. Fewer images make it larger.
        features: feature network of the distances; see evaluate.py.
        runs: folder for the trainings and their pictures. A run that is finished is not trained again.
        output: folder for the picture and the JSON file.
    """
    use_all_cores()
    counts, curves = counts or [50, 300, 1000], {}
    kinds = {"plain": ["--init_from", base], "careful": ["--init_from", base, *CAREFUL]}
    plans = {f"{count} {kind}": (count, steps, more) for count in counts for kind, more in kinds.items()}
    plans[f"{max(counts)} from nothing"] = (max(counts), steps_from_nothing, [])
    for name, (count, length, more) in tqdm(plans.items(), unit="run"):
        folder = Path(runs) / name.replace(" ", "-")
        if not (folder / "pipeline").exists():
            data = Path(runs) / f"pictures-{count}"
            train = {"max_steps": length, "lr_warmup_steps": length // 10, "ema_decay": 0.99, "log_with": "none"}
            train |= {f"{what}_steps": length for what in ("eval", "sample", "checkpointing")}
            train |= {"metrics_steps": max(1, length // 10), "metrics_features": features, "num_metrics_images": images}
            words = [word for key, value in train.items() for word in (f"--train.{key}", str(value))]
            words += ["--data.name", str(data), "--output_dir", str(folder), "--overwrite", "true"]
            config = parse(TrainDDPM, "", ["--config", recipe, *words, *more])
            draw(data / "train", FIRST, count, config.data.resolution)
            draw(data / "validation", 2 * FIRST, 1000, config.data.resolution)
            run_training(config, PixelTask)
        curves[name] = measured(folder / "metrics.csv")
    figures = {"base": Path(base).name, "kind": "=".join(KIND), "counts": counts, "images": images, "features": features}
    figures |= {"steps": steps, "steps_from_nothing": steps_from_nothing, "curves": curves}
    record("fine_tuning", figures, output, small=steps < 100)
    picture(curves, Path(output) / "fine_tuning.png")
    print(fine_tuning(figures))


def draw(folder: Path, first: int, count: int, side: int) -> None:
    """Save the first faces of KIND from an index on, as far as they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    of_kind = (index for index in itertools.count(first) if toyfaces.attributes(0, index)[KIND[0]] == KIND[1])
    for index in itertools.islice(of_kind, count):
        if not (file := folder / f"{index}.png").exists():
            toyfaces.draw(0, index, side).save(file)


def measured(file: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv with a distance: step, fd, nearer (None where it was not measured)."""
    rows = [row for row in read_metrics(file) if "eval_fd" in row]
    return [{"step": row["step"], "fd": row["eval_fd"], "nearer": row.get("eval_nearer")} for row in rows]


def picture(curves: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """The distance of each run by step."""
    plot = pictures.pyplot()
    figure, axis = plot.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in curves.items():
        style = ":" if "nothing" in name else "--" if "careful" in name else "-"
        axis.plot([row["step"] for row in rows], [row["fd"] for row in rows], style, marker=".", label=name)
    axis.set(xlabel="step", ylabel="Frechet distance to faces with a crown", xscale="log")
    axis.legend()
    figure.savefig(file, dpi=110)
    plot.close(figure)


if __name__ == "__main__":
    auto_cli(main)
