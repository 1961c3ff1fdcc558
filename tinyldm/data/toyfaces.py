"""toyfaces: a labelled data set of cartoon faces, drawn on the fly, for demos and tests that must not download.

A face is a pure function of `(seed, index)`: a random generator picks labels and pose, and some fifty filled polygons
draw them, so the same face can be had at any resolution. To look at a grid of faces:

    python -m tinyldm.data.toyfaces faces.png

In Python, `draw(0, 7, 64)` is face 7, `attributes(0, 7)` its labels and `draw(0, 7, 64, hat="crown")` the same person
wearing a crown; `load("train", 64)` streams images and labels through the `datasets` interface.
"""

import io
import itertools
import sys
from collections.abc import Iterator
from functools import cache

import datasets
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
INK: Color = (40, 30, 38)
WHITE: Color = (252, 252, 250)
GOLD: Color = (248, 196, 44)
RED: Color = (214, 52, 60)

SKINS = {
    "pale": (255, 226, 205), "light": (246, 200, 164), "tan": (222, 165, 118), "brown": (180, 118, 80),
    "dark": (136, 88, 62),
}  # fmt: skip
HAIR_COLORS = {
    "black": (42, 36, 44), "brown": (106, 62, 34), "red": (190, 76, 30), "blond": (250, 208, 72),
    "gray": (172, 174, 182), "pink": (240, 112, 164), "blue": (52, 96, 200),
}  # fmt: skip
EYE_COLORS = {"brown": (98, 56, 24), "blue": (44, 128, 214), "green": (52, 146, 84)}
BACKGROUND_COLORS = {
    "sky": (132, 200, 240), "mint": (140, 222, 184), "sand": (246, 222, 160), "rose": (250, 178, 186),
    "lilac": (190, 172, 240), "coral": (240, 120, 96), "teal": (32, 132, 138), "navy": (48, 58, 112),
}  # fmt: skip
CLOTH_COLORS = (
    RED, (38, 92, 180), (44, 148, 92), GOLD, WHITE, (124, 72, 164), (52, 56, 68), (240, 132, 40),
)  # fmt: skip
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

# Outlines are arrays of complex numbers x + iy, y down: scaling, rotating and moving one takes a multiply and an add.
ANGLE = np.linspace(0, 2 * np.pi, 49)
COS, SIN = np.cos(ANGLE), np.sin(ANGLE)
CIRCLE = COS + 1j * SIN
SQUARE = np.sign(COS) * np.abs(COS) ** 0.4 + 1j * np.sign(SIN) * np.abs(SIN) ** 0.4  # with round corners
BELL = np.where(SIN < 0, CIRCLE, SQUARE)
CURLS = 1 + 0.07 * np.abs(np.sin(4.5 * ANGLE))
SPIKES = np.where(np.arange(17) % 2, 1.32, 1.02) * np.exp(1j * np.linspace(np.pi, 2 * np.pi, 17))
BOTTOM, TOP = slice(0, 25), slice(24, 49)  # halves of the outlines above: right to left, then left to right
ACROSS = np.linspace(1, -1, 21)  # right to left
AROUND = np.concatenate([ACROSS, -ACROSS])
BEND = 1 - AROUND**2
EDGE = np.repeat([-0.5, 0.5], 21) * np.sqrt(1 - AROUND**4)
HAIRLINES = {
    "short": -0.36 * (1 - ACROSS**6),
    "spiky": -0.3 - 0.06 * (np.arange(21) % 4 // 2) + 0.3 * ACROSS**8,
    "afro": -0.34 + 0.34 * ACROSS**6 - 0.05 * np.abs(np.sin(9 * ACROSS)),
    "bob": -0.24 + 0.5 * ACROSS**12,
    "bun": -0.4 + 0.36 * ACROSS**4,
}


def stretch(outline: np.ndarray, rx: float, ry: float) -> np.ndarray:
    return rx * outline.real + 1j * (ry * outline.imag)


def oval(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return complex(x, y) + rx * COS + 1j * (ry * SIN)


def stroke(x: float, y: float, rx: float, bend: float, thick: float, slope: float = 0.0) -> np.ndarray:
    """Outline of a horizontal line of half-width `rx` with round ends; its middle is `bend` lower than its ends."""
    return complex(x, y) + rx * AROUND + 1j * (bend * BEND + thick * EDGE + slope * AROUND)


def mix(a: Color, b: Color, t: float) -> Color:
    return (int(a[0] + t * (b[0] - a[0])), int(a[1] + t * (b[1] - a[1])), int(a[2] + t * (b[2] - a[2])))


def darken(color: Color, t: float) -> Color:
    return mix(color, (30, 10, 40), t)


@cache
def unlike(colors: tuple[Color, ...], *others: Color) -> list[Color]:
    """The `colors` easily told from each of `others`."""
    return [c for c in colors if all(sum(abs(c[i] - other[i]) for i in range(3)) > 130 for other in others)]


def pick(u: float, values):
    """The value at position `u` in [0, 1)."""
    return values[int(u * len(values))]


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
    factor = max(2, min(4, 384 // resolution))  # supersampling, against aliasing
    size = factor * resolution
    backdrop = BACKGROUND_COLORS[labels["background_color"]]
    image = Image.new("RGB", (size, size), backdrop)
    if labels["background"] == "gradient":
        column = np.linspace(mix(backdrop, WHITE, 0.45), darken(backdrop, 0.3), size).astype(np.uint8)
        image = Image.fromarray(np.repeat(column[:, None], size, axis=1))
    paint(image, labels, u)
    image = image.reduce(factor)

    # Light falls off across the picture, towards a slightly blue shadow.
    ramp = np.linspace((256, 256, 256), (184, 178, 204), resolution).astype(np.uint16)
    shade = {"left": ramp[None], "right": ramp[None, ::-1], "top": ramp[:, None]}[labels["light"]]
    return Image.fromarray((np.asarray(image) * shade >> 8).astype(np.uint8))


def paint(image: Image.Image, labels: dict[str, str], u: list[float]) -> None:
    """Draw onto `image` from back to front. In the coordinates used, picture and head are about [-1, 1] x [-1, 1]."""
    canvas, half = ImageDraw.Draw(image), image.width / 2
    style, hat, beard, glasses = labels["hair_style"], labels["hat"], labels["beard"], labels["glasses"]

    # Colors.
    skin, hair, iris = SKINS[labels["skin"]], HAIR_COLORS[labels["hair_color"]], EYE_COLORS[labels["eye_color"]]
    backdrop = BACKGROUND_COLORS[labels["background_color"]]
    cloth = pick(u[0], unlike(CLOTH_COLORS, backdrop, hair, skin))
    hat_color = pick(u[1], unlike(CLOTH_COLORS, backdrop, hair))
    back_hair, shadow = darken(hair, 0.35), mix(skin, (104, 16, 24), 0.28)
    soft_shadow = mix(skin, shadow, 0.55)

    # Pose and proportions: half-width `w` and half-height `h` of the head, sideways shift `fx` of the features of a
    # turned head, height `ey` and half-distance `gap` of the eyes.
    scale, x0, y0 = 0.94 + 0.16 * u[2], 0.2 * u[3] - 0.1, 0.06 + 0.08 * u[4]
    tilt, turn, nod = 0.36 * u[5] - 0.18, 2 * u[6] - 1, 0.06 * u[7] - 0.03
    w, h, jaw = 0.46 + 0.08 * u[8], 0.53 + 0.06 * u[9], 0.4 * u[10] - 0.15
    fx, ey, gap = 0.12 * turn, nod - 0.03, 0.215 + 0.02 * u[11]
    move, place = half * scale, half * complex(1 + x0, 1 + y0) - (0.5 + 0.5j)

    def fill(outline: ArrayLike, color: Color) -> None:
        canvas.polygon((np.multiply(outline, move) + place).view(np.float64).tolist(), color)

    if labels["background"] == "disc":
        fill(oval(0, -0.05, 0.92, 0.92), mix(backdrop, WHITE, 0.5))
    body = 0.74 + 0.14 * u[12]
    fill(stretch(BELL, body, 0.5) + 1.16j, cloth)
    if labels["clothes"] == "striped":
        for y, reach in ((0.83, 0.73), (1.02, 0.94)):
            fill(stroke(0, y, reach * body, -0.03, 0.1), darken(cloth, 0.5) if cloth in (WHITE, GOLD) else WHITE)

    # All that follows tilts about the neck.
    move, neck = move * complex(np.cos(tilt), np.sin(tilt)), 0.55j
    place += neck * (half * scale - move)

    # Hair behind the head, neck, ears, head.
    if style == "afro":
        fill(CURLS * stretch(CIRCLE, w + 0.26, 0.72 if hat == "none" else 0.55) - 0.12j, back_hair)
    elif style in ("bob", "long"):
        low = 0.0 if style == "bob" else 0.2
        fill(stretch(BELL, w + 0.16, h + 0.06 + low) + 0.1 * w * COS * SIN + 1j * low, back_hair)
    elif style == "bun":
        fill(oval(-fx, -h - 0.16, 0.25, 0.22), hair)
        fill(stroke(-fx, -h - 0.02, 0.2, -0.02, 0.07), back_hair)
    elif style == "pigtails":
        for side in (-1, 1):
            fill(CURLS * stretch(CIRCLE, 0.22, 0.32) + complex(side * (w + 0.2), 0.15), hair)
    fill(stroke(0, 0.5, 0.2, 0, 0.62), shadow)
    if labels["clothes"] == "scarf":
        scarf = pick(u[13], unlike(CLOTH_COLORS, cloth, backdrop, skin))
        fill(stroke(0.2, 0.9, 0.12, 0, 0.6), darken(scarf, 0.25))
        fill(stroke(0, 0.66, 0.36, 0.1, 0.24), scarf)
    for side in (-1, 1):
        fill(oval(side * w - 0.5 * fx, 0.06, 0.1, 0.14), soft_shadow)
    head = w * COS * (1 + jaw * np.maximum(SIN, 0)) + 1j * h * SIN
    fill(head, soft_shadow)
    lit = {"left": (0.94, 1, -0.06 * w), "right": (0.94, 1, 0.06 * w), "top": (1, 0.93, -0.07j * h)}[labels["light"]]
    fill(stretch(head, *lit[:2]) + lit[2], skin)
    if beard == "full":
        fill(np.concatenate([1.03 * head[BOTTOM], -w * ACROSS + 0.2j * (1 - ACROSS**6)]), hair)
        fill(oval(1.1 * fx, 0.34 + nod, 0.27, 0.11), skin)
    elif u[14] < 0.5:
        for side in (-1, 1):
            fill(oval(side * 0.29 + fx, 0.2 + nod, 0.09, 0.06), mix(skin, (240, 90, 100), 0.35))

    # Mouth and nose.
    mouth, mx, my, mw = labels["mouth"], 1.1 * fx, 0.33 + nod, 0.17 + 0.06 * u[15]
    if mouth == "grin":
        fill(oval(mx, my - 0.06, mw + 0.03, 0.22)[BOTTOM], (96, 22, 36))
        fill(oval(mx, my - 0.06, mw, 0.09)[BOTTOM], WHITE)
    elif mouth == "open":
        fill(oval(mx, my + 0.02, 0.11, 0.12), (96, 22, 36))
        fill(oval(mx, my + 0.08, 0.07, 0.05), (226, 96, 104))
    else:
        bend = {"smile": 0.15, "neutral": 0.0, "frown": -0.15}[mouth]
        lip = darken(mix((190, 50, 60), (120, 30, 50), u[16]), 0.5 if sum(skin) < 400 else 0)
        fill(stroke(mx, my - bend / 2, mw, bend, 0.08), lip)
    if beard == "mustache":
        for side in (-1, 1):
            fill(stroke(mx + side * 0.11, my - 0.12, 0.15, -0.05, 0.12, side * 0.05), hair)
    fill(oval(1.6 * fx, 0.14 + nod, 0.06 + 0.03 * u[17], 0.05 + 0.03 * u[18]), shadow)

    # Eyes and eyebrows.
    big, gaze = 0.13 + 0.03 * u[19], 0.08 * u[20] - 0.04 + 0.02 * turn
    for side in (-1, 1):
        narrow = 1 - 0.2 * max(0.0, side * turn)  # the far eye of a turned head
        x, rx = side * gap + fx, big * narrow
        if labels["eyes"] == "closed":
            fill(stroke(x, ey + 0.05, rx, -0.11, 0.065), INK)
        else:
            fill(oval(x, ey, rx + 0.02, big + 0.02), shadow)
            fill(oval(x, ey, rx, big), WHITE)
            fill(oval(x + gaze, ey + 0.01, 0.088 * narrow, 0.095), iris)
            fill(oval(x + gaze, ey + 0.01, 0.05 * narrow, 0.055), INK)
            fill(oval(x + gaze - 0.03, ey - 0.035, 0.026, 0.026), WHITE)
        if labels["eyes"] == "sleepy":
            fill(oval(x, ey, rx + 0.02, big + 0.02)[TOP], soft_shadow)
            fill(stroke(x, ey, rx + 0.02, 0, 0.045), INK)
        slope = side * (0.1 * u[21] - 0.05)
        fill(stroke(x, ey - big - 0.09, 0.13, -0.04, 0.05 + 0.04 * u[22], slope), back_hair)

    # Hair in front, then the shine on it or on the bald head.
    part = 0.7 * u[23] - 0.35
    if style != "bald":
        outer = stretch(SPIKES, w, h) if style == "spiky" else oval(0, -0.04, w + 0.05, h + 0.07)[TOP]
        curtain = -0.48 + 0.52 * ((ACROSS - part) / (1 + abs(part))) ** 2  # long hair and pigtails: parted
        fringe = HAIRLINES[style] + 0.2 * part * ACROSS if style in HAIRLINES else curtain
        reach = np.sqrt(1 - (fringe / h) ** 2)  # half-width of the head along the hairline
        fill(np.concatenate([outer, (w - 0.01) * np.clip(ACROSS, -reach, reach) + 1j * fringe]), hair)
    if hat == "none":
        shine = {"left": -1, "right": 1, "top": 0}[labels["light"]]
        top = skin if style == "bald" else hair
        fill(stroke(0.2 * shine, 0.07 - h, 0.18, -0.04, 0.06, 0.05 * shine), mix(top, WHITE, 0.35))

    # Glasses.
    if glasses != "none":
        frame = pick(u[24], [INK] * 6 + [darken(color, 0.2) for color in unlike(CLOTH_COLORS, skin, WHITE)])
        for side in (-1, 1):
            x, narrow = side * gap + fx, 1 - 0.15 * max(0.0, side * turn)
            lens = stretch(CIRCLE, 0.2 * narrow, 0.2) if glasses == "round" else stretch(SQUARE, 0.2 * narrow, 0.165)
            if glasses == "sunglasses":
                fill(lens + complex(x, ey + 0.02), INK)
                fill(stroke(x - 0.03, ey - 0.04, 0.07, 0, 0.05, -0.05), (110, 116, 140))
            else:  # a ring: around the outside, and back around the inside
                fill(np.concatenate([lens, 0.7 * lens[::-1]]) + complex(x, ey + 0.02), frame)
            hinge, ear = x + side * 0.17 * narrow, side * (w + 0.02)
            fill(stroke((hinge + ear) / 2, ey - 0.01, abs(ear - hinge) / 2, 0, 0.06), frame)
        fill(stroke(fx, ey, 0.06, -0.03, 0.06), frame)

    # Hat.
    rim, hx = darken(hat_color, 0.35), 0.5 * fx
    trim = RED if hat_color == WHITE else WHITE
    if hat == "cap":
        fill(oval(0, -0.24, w + 0.09, h - 0.02)[TOP], hat_color)
        fill(stroke(1.8 * fx, -0.28, w + 0.06, -0.06, 0.16), rim)
        fill(oval(hx, -0.53, 0.1, 0.1), trim)
    elif hat == "beanie":
        fill(oval(0, -0.24, w + 0.09, h + 0.02)[TOP], hat_color)
        fill(stroke(0, -0.3, w + 0.12, -0.04, 0.22), rim)
        fill(oval(0, -h - 0.26, 0.14, 0.13), trim)
    elif hat == "top hat":
        fill([-w - 0.02 - 0.94j, w + 0.02 - 0.94j, w - 0.06 - 0.36j, 0.06 - w - 0.36j], INK)
        fill([0.04 - w - 0.55j, w - 0.04 - 0.55j, w - 0.06 - 0.36j, 0.06 - w - 0.36j], hat_color)
        fill(stroke(0, -0.34, w + 0.24, -0.03, 0.13), INK)
    elif hat == "crown":
        teeth = (w - 0.04) * np.linspace(-1.05, 1.05, 9) + np.where(np.arange(9) % 2, -0.62j, -0.95j)
        fill([*teeth, w - 0.08 - 0.38j, 0.08 - w - 0.38j], GOLD)
        for x in (-0.25, 0, 0.25):
            fill(oval(x + hx, -0.5, 0.06, 0.06), RED if hat_color == GOLD else hat_color)
    elif hat == "party hat":
        fill([hx - 1.02j, 0.36 - 0.4j, -0.36 - 0.4j], hat_color)
        fill([0.6 * hx + 0.14 - 0.78j, 0.27 - 0.54j, -0.3 - 0.5j, 0.6 * hx - 0.15 - 0.74j], trim)
        fill(oval(hx, -1.0, 0.11, 0.11), GOLD)


def examples(shards: list[tuple[int, int]], resolution: int, seed: int) -> Iterator[dict]:
    """Yield image and labels of every index in the ranges `shards`. BMP, unlike PNG, takes no time to encode."""
    for start, stop in shards:
        for index in range(start, stop):
            buffer = io.BytesIO()
            draw(seed, index, resolution).save(buffer, "BMP")
            yield {"image": {"bytes": buffer.getvalue(), "path": None}, **attributes(seed, index)}


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
    grid(0, 8, 12, 96).save(sys.argv[1])
