"""Paints the cartoon faces of toyfaces: some fifty filled polygons, from back to front, one function per feature."""

from functools import cache

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

# Outlines are arrays of complex numbers x + iy, y down: scaling, rotating and moving take a multiply and an add.
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
    """The `colors` that contrast with each of `others`."""
    return [c for c in colors if all(sum(abs(c[i] - other[i]) for i in range(3)) > 130 for other in others)]


def pick(u: float, values):
    """The value at position `u` in [0, 1)."""
    return values[int(u * len(values))]


class Painter:
    """Fills polygons on an image, and knows the face's labels, colors, pose and proportions.

    In the coordinates used, picture and head are about [-1, 1] x [-1, 1].

    Attributes:
        labels: the face's labels.
        u: its 26 numbers in [0, 1), for what has no label.
        w, h: half-width and half-height of the head.
        jaw: how much the lower half of the head is wider than the upper half.
        turn: how far the head is turned, from -1 (left) to 1 (right).
        fx: how far turning shifts the features sideways.
        nod: how far nodding shifts them down.
        ey, gap: height and half-distance of the eyes.
    """

    def __init__(self, image: Image.Image, labels: dict[str, str], u: list[float]):
        self.labels, self.u = labels, u
        self.canvas, self.half = ImageDraw.Draw(image), image.width / 2

        self.skin, self.hair = SKINS[labels["skin"]], HAIR_COLORS[labels["hair_color"]]
        self.backdrop = BACKGROUND_COLORS[labels["background_color"]]
        self.cloth = pick(u[0], unlike(CLOTH_COLORS, self.backdrop, self.hair, self.skin))
        self.back_hair, self.shadow = darken(self.hair, 0.35), mix(self.skin, (104, 16, 24), 0.28)
        self.soft_shadow = mix(self.skin, self.shadow, 0.55)

        self.scale, x0, y0 = 0.94 + 0.16 * u[2], 0.2 * u[3] - 0.1, 0.06 + 0.08 * u[4]
        self.angle, self.turn, self.nod = 0.36 * u[5] - 0.18, 2 * u[6] - 1, 0.06 * u[7] - 0.03
        self.w, self.h, self.jaw = 0.46 + 0.08 * u[8], 0.53 + 0.06 * u[9], 0.4 * u[10] - 0.15
        self.fx, self.ey, self.gap = 0.12 * self.turn, self.nod - 0.03, 0.215 + 0.02 * u[11]
        self.move: complex = self.half * self.scale
        self.place = self.half * complex(1 + x0, 1 + y0) - (0.5 + 0.5j)

    def fill(self, outline: ArrayLike, color: Color) -> None:
        """Fill a polygon, given as complex numbers."""
        self.canvas.polygon((np.multiply(outline, self.move) + self.place).view(np.float64).tolist(), color)

    def tilt(self) -> None:
        """Tilt everything filled from now on about the neck."""
        self.move, neck = self.move * complex(np.cos(self.angle), np.sin(self.angle)), 0.55j
        self.place += neck * (self.half * self.scale - self.move)


def paint(labels: dict[str, str], u: list[float], resolution: int) -> Image.Image:
    """Paint a face, from back to front."""
    factor = max(2, min(4, 384 // resolution))  # supersampling, against aliasing
    image = backdrop(labels, factor * resolution)
    face = Painter(image, labels, u)
    disc(face)
    body(face)
    face.tilt()
    hair_behind(face)
    neck(face)
    head(face)
    cheeks(face)
    mouth(face)
    nose(face)
    for side in (-1, 1):
        eye(face, side)
        eyebrow(face, side)
    hair_in_front(face)
    shine(face)
    glasses(face)
    hat(face)
    return light(image.reduce(factor), labels["light"])


def backdrop(labels: dict[str, str], size: int) -> Image.Image:
    color = BACKGROUND_COLORS[labels["background_color"]]
    if labels["background"] != "gradient":
        return Image.new("RGB", (size, size), color)
    column = np.linspace(mix(color, WHITE, 0.45), darken(color, 0.3), size).astype(np.uint8)
    return Image.fromarray(np.repeat(column[:, None], size, axis=1))


def light(image: Image.Image, source: str) -> Image.Image:
    """Light falls off across the picture, towards a slightly blue shadow."""
    ramp = np.linspace((256, 256, 256), (184, 178, 204), image.width).astype(np.uint16)
    shade = {"left": ramp[None], "right": ramp[None, ::-1], "top": ramp[:, None]}[source]
    return Image.fromarray((np.asarray(image) * shade >> 8).astype(np.uint8))


def disc(face: Painter) -> None:
    if face.labels["background"] == "disc":
        face.fill(oval(0, -0.05, 0.92, 0.92), mix(face.backdrop, WHITE, 0.5))


def body(face: Painter) -> None:
    width = 0.74 + 0.14 * face.u[12]
    face.fill(stretch(BELL, width, 0.5) + 1.16j, face.cloth)
    if face.labels["clothes"] == "striped":
        stripe = darken(face.cloth, 0.5) if face.cloth in (WHITE, GOLD) else WHITE
        for y, reach in ((0.83, 0.73), (1.02, 0.94)):
            face.fill(stroke(0, y, reach * width, -0.03, 0.1), stripe)


def hair_behind(face: Painter) -> None:
    style, w, h, fx = face.labels["hair_style"], face.w, face.h, face.fx
    if style == "afro":
        height = 0.72 if face.labels["hat"] == "none" else 0.55
        face.fill(CURLS * stretch(CIRCLE, w + 0.26, height) - 0.12j, face.back_hair)
    elif style in ("bob", "long"):
        low = 0.0 if style == "bob" else 0.2
        face.fill(stretch(BELL, w + 0.16, h + 0.06 + low) + 0.1 * w * COS * SIN + 1j * low, face.back_hair)
    elif style == "bun":
        face.fill(oval(-fx, -h - 0.16, 0.25, 0.22), face.hair)
        face.fill(stroke(-fx, -h - 0.02, 0.2, -0.02, 0.07), face.back_hair)
    elif style == "pigtails":
        for side in (-1, 1):
            face.fill(CURLS * stretch(CIRCLE, 0.22, 0.32) + complex(side * (w + 0.2), 0.15), face.hair)


def neck(face: Painter) -> None:
    """The neck, with a scarf around it."""
    face.fill(stroke(0, 0.5, 0.2, 0, 0.62), face.shadow)
    if face.labels["clothes"] == "scarf":
        scarf = pick(face.u[13], unlike(CLOTH_COLORS, face.cloth, face.backdrop, face.skin))
        face.fill(stroke(0.2, 0.9, 0.12, 0, 0.6), darken(scarf, 0.25))
        face.fill(stroke(0, 0.66, 0.36, 0.1, 0.24), scarf)


def head(face: Painter) -> None:
    """Ears, head and full beard."""
    w, h = face.w, face.h
    for side in (-1, 1):
        face.fill(oval(side * w - 0.5 * face.fx, 0.06, 0.1, 0.14), face.soft_shadow)
    outline = w * COS * (1 + face.jaw * np.maximum(SIN, 0)) + 1j * h * SIN
    face.fill(outline, face.soft_shadow)
    lit = {"left": (0.94, 1, -0.06 * w), "right": (0.94, 1, 0.06 * w), "top": (1, 0.93, -0.07j * h)}[face.labels["light"]]
    face.fill(stretch(outline, *lit[:2]) + lit[2], face.skin)
    if face.labels["beard"] == "full":
        face.fill(np.concatenate([1.03 * outline[BOTTOM], -w * ACROSS + 0.2j * (1 - ACROSS**6)]), face.hair)
        face.fill(oval(1.1 * face.fx, 0.34 + face.nod, 0.27, 0.11), face.skin)


def cheeks(face: Painter) -> None:
    if face.labels["beard"] != "full" and face.u[14] < 0.5:
        for side in (-1, 1):
            face.fill(oval(side * 0.29 + face.fx, 0.2 + face.nod, 0.09, 0.06), mix(face.skin, (240, 90, 100), 0.35))


def mouth(face: Painter) -> None:
    """The mouth, and a mustache above it."""
    kind, x, y, width = face.labels["mouth"], 1.1 * face.fx, 0.33 + face.nod, 0.17 + 0.06 * face.u[15]
    if kind == "grin":
        face.fill(oval(x, y - 0.06, width + 0.03, 0.22)[BOTTOM], (96, 22, 36))
        face.fill(oval(x, y - 0.06, width, 0.09)[BOTTOM], WHITE)
    elif kind == "open":
        face.fill(oval(x, y + 0.02, 0.11, 0.12), (96, 22, 36))
        face.fill(oval(x, y + 0.08, 0.07, 0.05), (226, 96, 104))
    else:
        bend = {"smile": 0.15, "neutral": 0.0, "frown": -0.15}[kind]
        lip = darken(mix((190, 50, 60), (120, 30, 50), face.u[16]), 0.5 if sum(face.skin) < 400 else 0)
        face.fill(stroke(x, y - bend / 2, width, bend, 0.08), lip)
    if face.labels["beard"] == "mustache":
        for side in (-1, 1):
            face.fill(stroke(x + side * 0.11, y - 0.12, 0.15, -0.05, 0.12, side * 0.05), face.hair)


def nose(face: Painter) -> None:
    face.fill(oval(1.6 * face.fx, 0.14 + face.nod, 0.06 + 0.03 * face.u[17], 0.05 + 0.03 * face.u[18]), face.shadow)


def eye(face: Painter, side: int) -> None:
    """The left (-1) or the right (1) eye; the far eye of a turned head is narrower."""
    big, gaze = 0.13 + 0.03 * face.u[19], 0.08 * face.u[20] - 0.04 + 0.02 * face.turn
    narrow = 1 - 0.2 * max(0.0, side * face.turn)
    x, y, rx = side * face.gap + face.fx, face.ey, big * narrow
    if face.labels["eyes"] == "closed":
        face.fill(stroke(x, y + 0.05, rx, -0.11, 0.065), INK)
    else:
        face.fill(oval(x, y, rx + 0.02, big + 0.02), face.shadow)
        face.fill(oval(x, y, rx, big), WHITE)
        face.fill(oval(x + gaze, y + 0.01, 0.088 * narrow, 0.095), EYE_COLORS[face.labels["eye_color"]])
        face.fill(oval(x + gaze, y + 0.01, 0.05 * narrow, 0.055), INK)
        face.fill(oval(x + gaze - 0.03, y - 0.035, 0.026, 0.026), WHITE)
    if face.labels["eyes"] == "sleepy":
        face.fill(oval(x, y, rx + 0.02, big + 0.02)[TOP], face.soft_shadow)
        face.fill(stroke(x, y, rx + 0.02, 0, 0.045), INK)


def eyebrow(face: Painter, side: int) -> None:
    big = 0.13 + 0.03 * face.u[19]
    x, slope = side * face.gap + face.fx, side * (0.1 * face.u[21] - 0.05)
    face.fill(stroke(x, face.ey - big - 0.09, 0.13, -0.04, 0.05 + 0.04 * face.u[22], slope), face.back_hair)


def hair_in_front(face: Painter) -> None:
    style, w, h, part = face.labels["hair_style"], face.w, face.h, 0.7 * face.u[23] - 0.35
    if style == "bald":
        return
    outer = stretch(SPIKES, w, h) if style == "spiky" else oval(0, -0.04, w + 0.05, h + 0.07)[TOP]
    curtain = -0.48 + 0.52 * ((ACROSS - part) / (1 + abs(part))) ** 2  # long hair and pigtails: parted
    fringe = HAIRLINES[style] + 0.2 * part * ACROSS if style in HAIRLINES else curtain
    reach = np.sqrt(1 - (fringe / h) ** 2)  # half-width of the head along the hairline
    face.fill(np.concatenate([outer, (w - 0.01) * np.clip(ACROSS, -reach, reach) + 1j * fringe]), face.hair)


def shine(face: Painter) -> None:
    """Light on the hair, or on a bald head."""
    if face.labels["hat"] == "none":
        side = {"left": -1, "right": 1, "top": 0}[face.labels["light"]]
        top = face.skin if face.labels["hair_style"] == "bald" else face.hair
        face.fill(stroke(0.2 * side, 0.07 - face.h, 0.18, -0.04, 0.06, 0.05 * side), mix(top, WHITE, 0.35))


def glasses(face: Painter) -> None:
    kind, fx, ey = face.labels["glasses"], face.fx, face.ey
    if kind == "none":
        return
    frame = pick(face.u[24], [INK] * 6 + [darken(color, 0.2) for color in unlike(CLOTH_COLORS, face.skin, WHITE)])
    for side in (-1, 1):
        x, narrow = side * face.gap + fx, 1 - 0.15 * max(0.0, side * face.turn)
        lens = stretch(CIRCLE, 0.2 * narrow, 0.2) if kind == "round" else stretch(SQUARE, 0.2 * narrow, 0.165)
        if kind == "sunglasses":
            face.fill(lens + complex(x, ey + 0.02), INK)
            face.fill(stroke(x - 0.03, ey - 0.04, 0.07, 0, 0.05, -0.05), (110, 116, 140))
        else:  # a ring: around the outside, and back around the inside
            face.fill(np.concatenate([lens, 0.7 * lens[::-1]]) + complex(x, ey + 0.02), frame)
        hinge, ear = x + side * 0.17 * narrow, side * (face.w + 0.02)
        face.fill(stroke((hinge + ear) / 2, ey - 0.01, abs(ear - hinge) / 2, 0, 0.06), frame)
    face.fill(stroke(fx, ey, 0.06, -0.03, 0.06), frame)


def hat(face: Painter) -> None:
    kind, w, h, x = face.labels["hat"], face.w, face.h, 0.5 * face.fx
    color = pick(face.u[1], unlike(CLOTH_COLORS, face.backdrop, face.hair))
    rim, trim = darken(color, 0.35), RED if color == WHITE else WHITE
    if kind == "cap":
        face.fill(oval(0, -0.24, w + 0.09, h - 0.02)[TOP], color)
        face.fill(stroke(1.8 * face.fx, -0.28, w + 0.06, -0.06, 0.16), rim)
        face.fill(oval(x, -0.53, 0.1, 0.1), trim)
    elif kind == "beanie":
        face.fill(oval(0, -0.24, w + 0.09, h + 0.02)[TOP], color)
        face.fill(stroke(0, -0.3, w + 0.12, -0.04, 0.22), rim)
        face.fill(oval(0, -h - 0.26, 0.14, 0.13), trim)
    elif kind == "top hat":
        face.fill([-w - 0.02 - 0.94j, w + 0.02 - 0.94j, w - 0.06 - 0.36j, 0.06 - w - 0.36j], INK)
        face.fill([0.04 - w - 0.55j, w - 0.04 - 0.55j, w - 0.06 - 0.36j, 0.06 - w - 0.36j], color)
        face.fill(stroke(0, -0.34, w + 0.24, -0.03, 0.13), INK)
    elif kind == "crown":
        teeth = (w - 0.04) * np.linspace(-1.05, 1.05, 9) + np.where(np.arange(9) % 2, -0.62j, -0.95j)
        face.fill([*teeth, w - 0.08 - 0.38j, 0.08 - w - 0.38j], GOLD)
        for jewel in (-0.25, 0, 0.25):
            face.fill(oval(jewel + x, -0.5, 0.06, 0.06), RED if color == GOLD else color)
    elif kind == "party hat":
        face.fill([x - 1.02j, 0.36 - 0.4j, -0.36 - 0.4j], color)
        face.fill([0.6 * x + 0.14 - 0.78j, 0.27 - 0.54j, -0.3 - 0.5j, 0.6 * x - 0.15 - 0.74j], trim)
        face.fill(oval(x, -1.0, 0.11, 0.11), GOLD)
