"""Sweeps that change one factor of a config at a time, with trainings of equal wall-clock time, a table and a picture. A killed
sweep resumes from the table.

Several processes can share a sweep, one on each core or GPU: each starts the next free training. The first training of a
variant determines the number of steps for all its seeds.

The outer loop is over seeds, the inner loop over variants. So at any time, all variants have about as many trainings. With many
variants, only the best of one seed may continue with the next one. Their means are then biased by that selection. A variant is
compared with the base of the same seed, which has the same held-out images, noise and timesteps. The error comes from the
spread of these differences over the seeds, pooled over all variants.
"""

import contextlib
import csv
import dataclasses
import math
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.measure import Clock, record, steps_in, train_steps
from tinyldm.config.schema import Training
from tinyldm.pictures import pyplot
from tinyldm.training.trainer import count_parameters

BASE = "base"
Row = dict[str, Any]


@dataclass
class Variant:
    """The base with some keys changed.

    Attributes:
        factor: the factor that it changes.
        args: command-line arguments.
        kind: the task, if no key selects it.
    """

    factor: str
    name: str
    args: list[str] = field(default_factory=list)
    kind: type[Clock] | None = None


@dataclass
class Figure:
    """The metric that ranks the variants: a column of the table, and its title in the picture."""

    name: str
    title: str
    higher_is_better: bool

    def ranked(self, summaries: list[Row]) -> list[Row]:
        """Rows of a summary, best first."""
        return sorted(summaries, key=lambda row: row["difference"], reverse=self.higher_is_better)


def run_all(
    variants: list[Variant],
    make: Callable[[Variant, str], Training],
    kind: type[Clock],
    seconds: float,
    seeds: int,
    table: Path,
    figure: Figure,
    best: int,
) -> list[Row]:
    """Train all variants and seeds that are not in the table yet.

    Args:
        variants: the first is the base.
        make: (variant, output_dir) -> config.
        seconds: length of each training.
        table: a CSV with one row per training.
        figure: ranks the variants.
        best: number of variants, besides the base, that are trained with another seed.
    """
    if other := {row["budget"] for row in read(table)} - {seconds}:
        raise SystemExit(f"{table} has trainings of {min(other):g} s: choose another output, or --seconds {min(other):g}")
    locks = table.with_suffix(".locks")
    locks.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for variant in going_on(variants, read(table), seed, figure, best):
            name = re.sub(r"\W+", "-", f"{variant.factor}-{variant.name}-{seed}")
            with taken(locks / name) as mine:
                known = {row["seed"]: row for row in read(table) if is_of(row, variant)}
                if seed in known or not mine:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    config, task = dataclasses.replace(make(variant, folder), seed=seed), variant.kind or kind
                    steps = int(known[0]["steps"]) if 0 in known else steps_in(config, task, seconds)
                    trainer = train_steps(config, task, steps)
                last = {key: value for row in trainer.run.rows for key, value in row.items() if key.startswith("eval_")}
                network = trainer.accelerator.unwrap_model(trainer.task.networks[trainer.state.main])
                row = {"factor": variant.factor, "variant": variant.name, "seed": seed, "budget": seconds}
                row |= {"steps": float(trainer.state.step), "parameters": float(count_parameters(network))}
                row |= {"images_a_second": trainer.images_per_step / trainer.task.seconds_a_step(), **last}
                with FileLock(locks / "table"):
                    write(table, [*read(table), row])
                print(f"{variant.factor}: {variant.name}, seed {seed}: {last}", flush=True)
    rows = [(row, number) for row in read(table) for number, variant in enumerate(variants) if is_of(row, variant)]
    return [row for row, _ in sorted(rows, key=lambda pair: (pair[0]["seed"], pair[1]))]


def chosen_from(variants: list[Variant], only: list[str] | None) -> list[Variant]:
    """The base and the factors or variants that `only` names; all variants if it is None."""
    return [each for each in variants if only is None or {each.factor, each.name} & {BASE, *only}]


def going_on(variants: list[Variant], rows: list[Row], seed: int, figure: Figure, best: int) -> list[Variant]:
    """All variants for the first seed; for later seeds the base and the best variants of the earlier seeds."""
    if not seed:
        return variants
    before = [row for row in rows if row["seed"] < seed and any(is_of(row, variant) for variant in variants)]
    ranked = [row for row in figure.ranked(summary(before, figure.name)) if row["factor"] != BASE]
    return [variants[0], *(variant for variant in variants if any(is_of(row, variant) for row in ranked[:best]))]


@contextlib.contextmanager
def taken(file: Path) -> Iterator[bool]:
    """Try to lock a file, which is named after a training. Yields whether it worked."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_of(row: Row, variant: Variant) -> bool:
    """Whether a row of the table is a training of this variant."""
    return (row["factor"], row["variant"]) == (variant.factor, variant.name)


def read(table: Path) -> list[Row]:
    """The rows of the table; empty if it does not exist."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    words = ("factor", "variant")
    return [
        {key: value if key in words else int(value) if key == "seed" else float(value) for key, value in row.items()}
        for row in rows
    ]


def write(table: Path, rows: list[Row]) -> None:
    """Write all rows to a new file, then rename it."""
    aside = table.with_suffix(".aside")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    aside.rename(table)


def summary(rows: list[Row], figure: str) -> list[Row]:
    """For each variant: means over seeds, mean difference from the base of the same seeds, its standard error, number of seeds.

    The error is None if no variant has two seeds.
    """
    base = {row["seed"]: row[figure] for row in rows if row["factor"] == BASE}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["seed"] in base:
            groups.setdefault((row["factor"], row["variant"]), []).append(row)
    differences = {key: [row[figure] - base[row["seed"]] for row in group] for key, group in groups.items()}
    means = {key: sum(values) / len(values) for key, values in differences.items()}
    squares = [(value - means[key]) ** 2 for key, values in differences.items() if key[0] != BASE for value in values]
    freedom = sum(len(values) - 1 for key, values in differences.items() if key[0] != BASE)
    deviation = math.sqrt(sum(squares) / freedom) if freedom else None
    summaries = []
    for (factor, name), group in groups.items():
        row = {"factor": factor, "variant": name, "seeds": len(group), "difference": means[factor, name]}
        row |= {key: sum(each[key] for each in group) / len(group) for key in group[0] if isinstance(group[0][key], float)}
        row["images_a_second"] = min(group, key=lambda each: each["seed"])["images_a_second"]  # it determined the steps
        row["error"] = None if deviation is None or factor == BASE else deviation / math.sqrt(len(group))
        summaries.append(row)
    return summaries


def tell(rows: list[Row], figure: Figure, seconds: float, seeds: int, name: str, output: str, small: bool, script: str) -> None:
    """Draw OUTPUT/NAME.png and write NAME.json."""
    summaries = summary(rows, figure.name)
    better = "right" if figure.higher_is_better else "left"
    label = f"{figure.title} after {seconds:g} s, minus the base's\n({better} is better)"
    picture(summaries, label, Path(output) / f"{name}.png")
    figures = {"seconds": seconds, "seeds": seeds, "figure": figure.name, "picture": f"{name}.png", "variants": summaries}
    record(name, figures, output, small, script)


def picture(summaries: list[Row], label: str, file: Path) -> None:
    """Plot differences from the base, with two standard errors, grouped by factor."""
    plt = pyplot()
    rows = [row for row in summaries if row["factor"] != BASE]
    figure, axis = plt.subplots(figsize=(7.5, 1.1 + 0.24 * len(rows)))
    colours = {factor: f"C{i % 10}" for i, factor in enumerate(dict.fromkeys(row["factor"] for row in rows))}
    reach = 1.5 * statistics.quantiles([abs(row["difference"]) for row in rows], n=20)[-2] if len(rows) > 20 else math.inf
    for height, row in enumerate(rows):
        if abs(row["difference"]) > reach:  # an outlier would squeeze all others
            right = row["difference"] > 0
            place = {"transform": axis.get_yaxis_transform(), "ha": "right" if right else "left", "va": "center"}
            axis.text(0.99 if right else 0.01, height, f"{row['difference']:+.2f}", fontsize=8, **place)
            continue
        error = 2 * row["error"] if row["error"] is not None else None
        axis.errorbar(row["difference"], height, xerr=error, fmt="o", color=colours[row["factor"]], capsize=2, markersize=4)
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [f"{row['factor']}: {row['variant']}" for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(plt.MaxNLocator(6))
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
