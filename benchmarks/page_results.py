"""The tables of docs/results.md, docs/zsl-results.md and the journal, from the runs in docs/results/.

A run has evaluation.json and metrics.csv (images) or results.csv (zero-shot learning). What no such file says, the machine
and the time, is in docs/results/recipes.yaml.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from benchmarks.page_tables import table
from tinyldm.evaluation.report import rows, tables
from tinyldm.training.run_folder import read_metrics
from zsl import report

RUNS = Path(__file__).parent.parent / "docs" / "results"
LABELLED = ("faces64-labels", "toyfaces64")
FEW = (4, 2)  # pictures of a grid that the table of recipes shows: across, down
GRID, LINE = 8, 2  # pictures across in samples.png, pixels between them before it was enlarged


def evaluation(run: str, folder: Path = RUNS) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was evaluated, and its only result."""
    found = json.loads((folder / run / "evaluation.json").read_text())
    return found["images"], found["results"][0]


def seen(run: str) -> int:
    """Images that the training saw."""
    return int(read_metrics(RUNS / run / "metrics.csv")[-1]["images"])


def listed() -> dict[str, dict[str, Any]]:
    """The runs in the table of recipes."""
    return yaml.safe_load((RUNS / "recipes.yaml").read_text())


def recipes() -> str:
    """The table of recipes."""
    head = ["samples", "recipe and command", "hardware, time", "images seen", "Frechet distance"]
    lines = []
    for run, told in listed().items():
        figures = next(iter(evaluation(run)[1]["figures"].values()))
        name, *others = figures
        distance = f"{name} {figures[name]['value']:.1f} [{figures[name]['low']:.1f}, {figures[name]['high']:.1f}]"
        distance += "".join(f"<br>{other} {figures[other]['value']:.1f}" for other in others)
        picture = f"![{told['what']}](results/{run}/few.png)" if run in grids() else ""
        recipe = f"{told['what']}<br>`{told['command']}`"
        lines.append([picture, recipe, f"{told['hardware']}<br>{told['time']}", f"{seen(run):,}", distance])
    return table(head, lines)


def few_recipes() -> str:
    """The README's table: the runs whose entry names a `recipe`."""
    lines = []
    for run, told in listed().items():
        if "recipe" in told:
            figures = next(iter(evaluation(run)[1]["figures"].values()))
            best, found = figures.get("reconstructions", figures["real images"])["value"], figures["samples"]
            distance = f"{found['value']:.1f} ± {(found['high'] - found['low']) / 2:.1f}"
            link = f"[`{told['recipe']}`](configs/{told['recipe']}.yaml)"
            time = f"{told['hardware']}: {told['time']}"
            lines.append([link, told["what"], time, distance, f"{best:.1f}"])
    return table(["recipe", "what", "hardware, time", "Frechet distance", "best possible"], lines)


def demo_guidance() -> str:
    """The README's sentence on the demo's guide."""
    _, result = evaluation("demo")
    distance, guided = next(iter(result["figures"].items()))
    [plain] = [found["figures"][distance]["value"] for found in result["sweep"] if found["value"] == 1]
    return (
        "The model was guided by an early snapshot of itself, which the training keeps. Without guidance\n"
        f"(`--guidance_scale 1`) its Frechet distance is {plain:.1f}, with guidance {guided['samples']['value']:.1f}."
    )


def grids() -> dict[str, Path]:
    """The picture of samples of each run in the table. First stages have none."""
    files = {run: RUNS / run / told.get("grid", "samples.png") for run, told in listed().items()}
    return {run: file for run, file in files.items() if file.exists()}


def pictures() -> dict[Path, Image.Image]:
    """What few.png of each run in the table should be."""
    sides = {run: evaluation(run)[1]["reference"]["resolution"] for run in grids()}
    return {RUNS / run / "few.png": few(grid, sides[run]) for run, grid in grids().items()}


def few(grid: Path, side: int) -> Image.Image:
    """The first pictures of a grid of 8 across, at half its size. `side` is a picture's, before the grid was enlarged."""
    image = Image.open(grid)
    scale = image.width // (GRID * side + (GRID + 1) * LINE)
    width, height = (scale * (count * side + (count + 1) * LINE) for count in FEW)
    return image.crop((0, 0, width, height)).resize((width // 2, height // 2), Image.Resampling.BOX)


def evaluations() -> str:
    """All runs of images: each set of images that was compared with real ones, equal rows once."""
    found: dict[str, dict[str, str]] = {}
    head = [""]
    for file in sorted(RUNS.glob("*/evaluation.json")):
        _, result = evaluation(file.parent.name)
        heading, *cells = rows(result)
        if heading[1] == "reconstructions":
            continue
        head = ["", *(name for name, *_ in cells)] if len(cells) + 1 > len(head) else head
        for column, kind in enumerate(heading[1:], 1):
            where = f"{result['reference']['data'].split('/')[-1]}, {result['reference']['resolution']} px"
            of = f"real images of {where}" if kind == "real images" else f"{file.parent.name}: {kind}"
            named = {row[0]: row[column] for row in cells}
            if named not in found.values():
                found[of] = found.get(of, {}) | named
    return table(head, [[of, *(named.get(name, "") for name in head[1:])] for of, named in found.items()])


def first_stages() -> str:
    """The first stages by themselves."""
    lines, head = [], [""]
    for file in sorted(RUNS.glob("*-vq*/evaluation.json")):
        _, result = evaluation(file.parent.name)
        _, *cells = rows(result)
        head = ["first stage", *(name for name, *_ in cells)]
        lines.append([file.parent.name, *(cell for _, cell in cells)])
    return table(head, lines)


def guidance() -> str:
    """Runs by guidance scale."""
    parts = []
    for run in ("demo", "faces64-by-person", *LABELLED):
        [*_, (about, cells)] = tables(evaluation(run)[1])
        parts.append(f"`{run}`, {about[0].lower()}{about[1:]}\n\n{table(cells[0], cells[1:])}")
    return "\n\n".join(parts)


def label_accuracy() -> str:
    """What a probe reads from samples of the runs with labels."""
    head, lines = ["run", "label", "values", "samples", "real images", "ratio"], []
    for run in LABELLED:
        _, (_, cells), *_ = tables(evaluation(run)[1])
        lines += [[f"`{run}`", *row[:5]] for row in cells[1:]]
    return table(head, lines)


# -------------------------------------------------------------------------------------------------- zero-shot learning


def zsl(run: str) -> list[report.Result]:
    """The results of a run."""
    return report.read_results(RUNS / f"zsl-{run}" / "results.csv")


def columns(cells: list[list[str]], *names: str) -> dict[str, list[str]]:
    """Method -> the cells of these columns of a table of zsl.report."""
    chosen = [cells[0].index(name) for name in names]
    return {row[0]: [row[i] for i in chosen] for row in cells[1:]}


def difference(run: str, metric: str, against: str) -> dict[str, str]:
    """Method -> its difference from another under the honest protocol, with p and the seeds that are ahead."""
    return {method: f"{by} (p {p}; {ahead})" for method, by, p, ahead in report.paired(zsl(run), "honest", metric, against)[1:]}


def zsl_methods() -> str:
    """Flowers: the methods under both protocols. The divergences of CIZSL are in zsl_creativity."""
    honest = columns(report.means(zsl("flowers"), "honest"), "top-1", "H", "AUC")
    published = columns(report.means(zsl("flowers"), "published"), "top-1")
    less = difference("flowers", "top1", "prototype")
    head = ["method", "top-1", "H", "AUC", "top-1 minus prototype", "top-1, published protocol"]
    return table(head, [[name, *honest[name], less.get(name, ""), *published[name]] for name in honest if "cizsl-" not in name])


def zsl_creativity() -> str:
    """What the creativity loss adds to GAZSL, with and without neighbours."""
    lines = []
    for title, run in (("texts", "flowers"), ("texts and neighbours", "flowers-anchors")):
        top1, auc = (difference(run, metric, "gazsl") for metric in ("top1", "auc"))
        lines += [[title, name, top1[name], auc[name]] for name in top1]
    return table(["a class is described by", "method", "top-1 minus GAZSL", "AUC minus GAZSL"], lines)


def zsl_neighbours() -> str:
    """Classes described by their texts, or by the neighbours of their texts as well."""
    plain, more = (columns(report.means(zsl(run), "honest"), "top-1", "AUC") for run in ("flowers", "flowers-anchors"))
    head = ["method", "top-1, texts", "AUC", "top-1, texts and neighbours", "AUC"]
    return table(head, [[name, *plain[name], *more[name]] for name in more])


def zsl_faithful() -> str:
    """The published arithmetic on flowers."""
    return _means("flowers-faithful")


def zsl_cub() -> str:
    """The two splits of CUB with simulated features."""
    easy, hard = (columns(report.means(zsl(f"cub-simulated{end}"), "honest"), "top-1", "H") for end in ("", "-hard"))
    head = ["method", "easy: top-1", "H", "hard: top-1", "H"]
    return table(head, [[name, *easy[name], *hard[name]] for name in easy])


def _means(run: str) -> str:
    found = columns(report.means(zsl(run), "honest"), "top-1", "H", "AUC")
    return table(["method", "top-1", "H", "AUC"], [[name, *cells] for name, cells in found.items()])


BLOCKS = {
    f.__name__: f
    for f in (
        *(recipes, few_recipes, demo_guidance, evaluations, first_stages, guidance, label_accuracy),
        *(zsl_methods, zsl_creativity, zsl_neighbours, zsl_faithful, zsl_cub),
    )
}
