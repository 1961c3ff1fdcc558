"""toyfaces: a labelled data set of cartoon faces, drawn on the fly, for demos and tests that must not download.

A face is a pure function of `(seed, index)`: a random generator picks labels and pose, and toyfaces_painter.py paints them
at any resolution. To look at a grid of faces:

    python -m tinyldm.data.toyfaces faces.png

In Python, `draw(0, 7, 64)` is face 7, `attributes(0, 7)` its labels and `draw(0, 7, 64, hat="crown")` the same person
wearing a crown; `load("train", 64)` streams images and labels through the `datasets` interface.
"""

import functools
import io
import itertools
import sys
from collections.abc import Iterator

import datasets
import numpy as np
from PIL import Image

from tinyldm.data.toyfaces_painter import BACKGROUND_COLORS, EYE_COLORS, HAIR_COLORS, SKINS, paint, pick, unlike
from tinyldm.errors import UserError, boundary, one_line_errors

HAIR_STYLES = ("bald", "short", "spiky", "afro", "bob", "long", "bun", "pigtails")
EYES = ("round", "sleepy", "closed")
MOUTHS = ("smile", "grin", "neutral", "frown", "open")
BEARDS = ("none", "mustache", "full")
GLASSES = ("none", "round", "square", "sunglasses")
HATS = ("none", "cap", "beanie", "top hat", "crown", "party hat")
CLOTHES = ("plain", "striped", "scarf")
BACKGROUNDS = ("plain", "gradient", "disc")
LIGHTS = ("left", "right", "top")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skin": tuple(SKINS), "hair_style": HAIR_STYLES, "hair_color": tuple(HAIR_COLORS), "eyes": EYES,
    "eye_color": tuple(EYE_COLORS), "mouth": MOUTHS, "beard": BEARDS, "glasses": GLASSES, "hat": HATS,
    "clothes": CLOTHES, "background": BACKGROUNDS, "background_color": tuple(BACKGROUND_COLORS), "light": LIGHTS,
}  # fmt: skip
FIRST_SHARE = {"eyes": 0.7, "beard": 0.75, "glasses": 0.4, "hat": 0.45}  # probability of the first value; else uniform
SPLITS = {"train": (0, 10_000), "validation": (10**9, 1_000)}  # first index and default length
SHARDS = 8
KEPT_SIDE = 64  # pixels: all faces of this side take 135 MB


def sample(seed: int, index: int) -> tuple[dict[str, str], list[float]]:
    """Labels of a face, and 26 numbers uniform in [0, 1) for what has no label: pose, proportions, other colors."""
    numbers = np.random.default_rng([seed, index]).random(len(ATTRIBUTES) + 26).tolist()
    labels = {}
    for (name, values), u in zip(ATTRIBUTES.items(), numbers, strict=False):
        share = FIRST_SHARE.get(name, 1 / len(values))
        labels[name] = values[0] if u < share else pick((u - share) / (1 - share), values[1:])
    if labels["hair_style"] in ("spiky", "bun"):
        labels["hat"] = "none"  # a hat would hide the style
    backdrops = unlike(tuple(BACKGROUND_COLORS.values()), HAIR_COLORS[labels["hair_color"]], SKINS[labels["skin"]])
    names = {color: name for name, color in BACKGROUND_COLORS.items()}
    labels["background_color"] = names[pick(numbers[-1], backdrops)]  # so that the head stands out
    return labels, numbers[len(ATTRIBUTES) :]


def attributes(seed: int, index: int) -> dict[str, str]:
    """Labels of face `index` >= 0: for every name in `ATTRIBUTES`, one of its values."""
    return sample(seed, index)[0]


def draw(seed: int, index: int, resolution: int, **changes: str) -> Image.Image:
    """Draw face `index` >= 0 as an RGB image of `resolution` x `resolution` pixels, 16 to 512.

    `changes` replace labels, as in `hat="none"`, and leave the pose and the proportions as they were.
    """
    labels, u = sample(seed, index)
    labels |= changes
    return paint(labels, u, resolution)


def examples(shards: list[tuple[int, int]], resolution: int, seed: int) -> Iterator[dict]:
    """Yield image and labels of every index in the ranges `shards`. Small faces are drawn once."""
    example = _drawn_once if resolution <= KEPT_SIDE else _example
    for start, stop in shards:
        for index in range(start, stop):
            yield dict(example(seed, index, resolution))


def _example(seed: int, index: int, resolution: int) -> dict:
    buffer = io.BytesIO()
    draw(seed, index, resolution).save(buffer, "BMP")  # unlike PNG, it takes no time to encode
    return {"image": {"bytes": buffer.getvalue(), "path": None}, **attributes(seed, index)}


_drawn_once = functools.lru_cache(sum(count for _, count in SPLITS.values()))(_example)


def load(split: str, resolution: int, seed: int = 0, num_examples: int | None = None) -> datasets.IterableDataset:
    """Stream a split, "train" (10,000 faces) or "validation" (1,000), or its first `num_examples` faces.

    Examples have an `image`, `resolution` pixels square, and a `ClassLabel` for each name in `ATTRIBUTES`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; toyfaces has {' and '.join(SPLITS)}")
    first, length = SPLITS[split]
    length = length if num_examples is None else num_examples
    bounds = [first + length * i // SHARDS for i in range(SHARDS + 1)]
    labels = {name: datasets.ClassLabel(names=list(values)) for name, values in ATTRIBUTES.items()}
    return datasets.IterableDataset.from_generator(
        examples,
        features=datasets.Features({"image": datasets.Image(), **labels}),
        gen_kwargs={"shards": list(itertools.pairwise(bounds)), "resolution": resolution, "seed": seed},
    )


def grid(seed: int, rows: int, columns: int, resolution: int) -> Image.Image:
    """The first `rows` x `columns` faces in one picture."""
    sheet = Image.new("RGB", (columns * resolution, rows * resolution))
    for i in range(rows * columns):
        sheet.paste(draw(seed, i, resolution), (i % columns * resolution, i // columns * resolution))
    return sheet


if __name__ == "__main__":
    with one_line_errors():
        match sys.argv[1:]:
            case ["-h" | "--help"]:
                print((__doc__ or "").strip())
            case [file] if not file.startswith("-"):
                with boundary(f"{file} cannot be written", "give a picture's name, such as faces.png"):
                    grid(0, 8, 12, 96).save(file)
            case _:
                raise UserError("give one file to draw to: python -m tinyldm.data.toyfaces faces.png")
