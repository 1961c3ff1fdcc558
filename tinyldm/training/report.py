"""report.html of a run: pictures by step, curves, the data and the recipe on one page that needs no network."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from tinyldm import __version__, pictures
from tinyldm.config import parsing
from tinyldm.config.paths import shareable
from tinyldm.errors import UserError
from tinyldm.training.run_folder import read_metrics

TEMPLATES = Path(__file__).parents[2] / "model_cards"
KINDS = {
    "vq": "first stage",
    "ldm": "latent diffusion model",
    "ddpm": "diffusion model on pixels",
    "classifier": "classifier for guidance",
}
TITLES = {"vq": "Held-out images, each above its reconstruction", "classifier": "Accuracy over the noise"}
SLIDES = 24  # pictures behind the slider
POINTS = 500  # of each curve
PICTURE_BYTES = 3 << 20  # of all pictures, before base64 adds a third
SIDES = (1024, 768, 512, 384, 256)  # pixels that pictures are scaled down to until they fit


def render(run: Path, card: dict[str, Any]) -> str:
    """The page. Pictures are embedded as given, or smaller, so that it stays below 5 MB.

    Args:
        card: the content of the run's card.json.
    """
    values, template = card["values"], card["template"]
    names = thinned(sorted((run / "samples").glob("step-*.png")), SLIDES)
    stage = first_stage_picture(run)
    slides = embedded([*names, *([stage] if stage else [])])
    reconstructions = slides.pop() if stage else None
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html").render(
        name=run.resolve().name,
        kind=KINDS[template].capitalize(),
        version=__version__,
        tiles=tiles(values),
        pictures=slides,
        slides=[*slides[:-1], *({**slide, "data": ""} for slide in slides[-1:])],  # the script takes the last one from the page
        pictures_title=TITLES.get(template, "Samples from fixed noise, by step"),
        figures=values["figures"],
        remarks=values["remarks"].replace("`", ""),
        panels=[chart(panel) for panel in pictures.panels(finite(read_metrics(run / "metrics.csv")))],
        reconstructions=reconstructions,
        first_stage=values.get("first_stage"),
        evaluation=blocks(card["evaluation"]["section"]) if card["evaluation"] else None,
        data=about_data(run),
        config=values["config"],
    )


def tiles(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers at the top of the page."""
    found = [
        ("parameters", f"{values['parameters']:,}"),
        ("steps", f"{values['steps']:,} of {values['images_per_step']:,} images"),
        ("images seen", f"{values['images']:,}"),
        ("time", f"{values['duration']}, {values['images_per_second']:.1f} images/s"),
        ("hardware", values["hardware"]),
    ]
    if values["train_images"]:
        found.insert(3, ("epochs", f"{values['images'] / values['train_images']:.1f} of {values['train_images']:,} images"))
    return found


def thinned(items: list[Any], most: int) -> list[Any]:
    """At most so many items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without values that cannot be drawn."""
    return [{key: value for key, value in row.items() if math.isfinite(value)} for row in rows]


def chart(panel: pictures.Panel) -> dict[str, Any]:
    """A panel as the page's script draws it."""
    series = [{"name": name, "points": thinned(points, POINTS)} for name, points in panel.series.items()]
    unit = panel.unit + ("; q1: least noise" if "q1" in panel.series else "")
    return {"title": panel.title, "unit": unit, "range": panel.range, "series": series}


def embedded(files: list[Path]) -> list[dict[str, Any]]:
    """The pictures as data URIs with their steps: the files as they are if they fit, else JPEGs of a smaller side."""
    contents, kind = [file.read_bytes() for file in files], "png"
    for side in SIDES:
        if sum(map(len, contents)) <= PICTURE_BYTES:
            break
        contents, kind = [_jpeg(file, side) for file in files], "jpeg"
    return [
        {"step": int(file.stem.removeprefix("step-")), "data": f"data:image/{kind};base64,{base64.b64encode(content).decode()}"}
        for file, content in zip(files, contents, strict=True)
    ]


def _jpeg(file: Path, side: int) -> bytes:
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return content.getvalue()


def first_stage_picture(run: Path) -> Path | None:
    """The last picture of the run that trained this one's first stage, if that run is on this machine."""
    try:
        path = (parsing.read_yaml(run / "config.yaml").get("first_stage") or {}).get("path")
    except UserError:
        return None
    return max((Path(path) / "samples").glob("step-*.png"), default=None) if path else None


def blocks(section: str) -> list[dict[str, Any]]:
    """Tables and paragraphs of an evaluation's Markdown, without its heading."""
    found: list[dict[str, Any]] = []
    for line in section.splitlines():
        if line.startswith("|"):
            if not found or "table" not in found[-1]:
                found.append({"table": []})
            row = [cell.strip() for cell in line.strip("|").split("|")]
            if set(row) != {"---"}:
                found[-1]["table"].append(row)
        elif line and not line.startswith("## "):
            found.append({"text": line})
        elif not line and found and "table" in found[-1]:
            found.append({"text": ""})
    return [block for block in found if block.get("table") or block.get("text")]


def about_data(run: Path) -> list[tuple[str, str]]:
    """What the run understood of its data."""
    try:
        data = shareable(json.loads((run / "data.json").read_text()))
    except (OSError, ValueError):
        return []
    held_out = data["held_out"]
    found = [("data set", f"{data['name']} ({data['kind']}), column {data['column']}, split {data['split']}")]
    counts = [f"{data[key]:,} {key}" for key in ("found", "read") if data[key] is not None]
    found += [("images", ", ".join(counts))] if counts else []
    found.append(("held out", (f"{held_out['images']:,}: " if held_out["images"] is not None else "") + held_out["how"]))
    found += [(f"ignored, {reason}", f"{count:,}") for reason, count in data["ignored"].items()]
    for name, label in data["labels"].items():
        listed = [
            value["name"] + ("" if value["count"] is None else f" ({value['count']:,})") for value in label["values"][:20]
        ]
        found.append((f"label {name}", ", ".join(listed) + (", ..." if len(label["values"]) > 20 else "")))
    return found
