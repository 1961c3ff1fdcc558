"""Sheets: pictures of the same seeds under several conditions, one a column. Labels in turn, or rising guidance scales.

label_sheet(model, settings, seed=0).draw().save("labels.png")
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image, ImageDraw, ImageFont

from tinyldm import pictures
from tinyldm.config.schema import SamplerSettings
from tinyldm.data.batch import UNKNOWN, Condition
from tinyldm.drawing.sampling import denoise, generators, initial_noise
from tinyldm.metrics.chunks import Batches
from tinyldm.models.model import Model, to_images

ROWS, COLUMNS = 8, 16  # at most 144 tiles, which pictures.grid enlarges
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
FONT, LINE = 14, 18  # height of the captions and their lines, in pixels


@dataclass
class Sheet:
    """A picture with a row for each seed and a column for each condition.

    Attributes:
        name: of its file, without the ending.
        captions: the lines above each column.
        settings: the sampler of each column.
        conditions: the condition of all rows, for each column.
        beside: the lines to the left of each row.
    """

    name: str
    model: Model
    seed: int
    captions: list[list[str]]
    settings: list[SamplerSettings]
    conditions: list[Condition]
    beside: list[list[str]]

    @property
    def count(self) -> int:
        """The number of tiles."""
        return len(self.captions) * len(self.beside)

    def batches(self, position: int = 0, limit: int | None = None) -> Batches:
        """See ImageSet: the tiles, column by column. `position` is the start of a column; columns are drawn to the end."""
        rows = len(self.beside)
        for column in range(position // rows, len(self.captions)):
            random = generators(self.seed, rows)
            noise = initial_noise(self.model, random)
            x_0 = denoise(self.model, noise, self.settings[column], random, self.conditions[column])
            yield to_images(self.model, x_0).cpu().expand(-1, 3, -1, -1), (column + 1) * rows

    def draw(self) -> Image.Image:
        """The picture."""
        return self.picture(torch.cat([batch for batch, _ in self.batches()]))

    def picture(self, tiles: torch.Tensor) -> Image.Image:
        """The picture of tiles uint8 (N, 3, H, W) in the order of `batches`."""
        columns = len(self.captions)
        by_row = tiles.unflatten(0, (columns, -1)).transpose(0, 1).flatten(0, 1)
        return captioned(pictures.grid(by_row, columns), self.captions, self.beside)


def label_sheet(model: Model, settings: SamplerSettings, seed: int, rows: int = ROWS) -> Sheet:
    """Each value of each label in a column; the other labels are those of the seed.

    Of more than COLUMNS values, each label gets an equal number of columns, for its last values: `true`, or rare ones.
    """
    embedding = model.labels
    assert embedding is not None
    condition = model.condition(range(seed, seed + rows), settings)
    drawn = condition.labels
    assert drawn is not None
    ranked = sorted((len(values) - v, i, v) for i, values in enumerate(embedding.values.values()) for v in range(len(values)))
    shown = sorted((i, v) for _, i, v in ranked[:COLUMNS])
    conditions = []
    for i, v in shown:
        labels = drawn.clone()
        labels[:, i] = v
        conditions.append(replace(condition, labels=labels))
    named = list(embedding.values.items())
    captions = [[named[i][0], named[i][1][v]] for i, v in shown]
    beside = [[f"seed {seed + row}"] for row in range(rows)]
    return Sheet("labels", model, seed, captions, [settings] * len(shown), conditions, beside)


def guidance_sheet(model: Model, settings: SamplerSettings, seed: int, rows: int = ROWS) -> Sheet:
    """Rising guidance scales, each in a column; the labels are those of the seed.

    Raises:
        UserError: while drawing, for a model with neither a guide nor labels.
    """
    condition, beside = model.condition(range(seed, seed + rows), settings), [[f"seed {seed + row}"] for row in range(rows)]
    if model.labels is not None and condition.labels is not None:
        for lines, numbers in zip(beside, condition.labels.tolist(), strict=True):
            known = zip(model.labels.values.items(), numbers, strict=True)
            lines += [f"{name} {values[number]}" for (name, values), number in known if number != UNKNOWN]
    captions = [["no guidance" if scale == 1 else f"scale {scale:g}"] for scale in SCALES]
    changed = [replace(settings, guidance_scale=scale) for scale in SCALES]
    return Sheet("guidance", model, seed, captions, changed, [condition] * len(SCALES), beside)


def of_model(model: Model, settings: SamplerSettings, seed: int) -> Iterator[Sheet]:
    """The sheets that a model has: of labels where it has some, of guidance where it has labels or a guide."""
    if model.labels is not None:
        yield label_sheet(model, settings, seed)
    if model.labels is not None or model.guide is not None:
        yield guidance_sheet(model, settings, seed)


def captioned(picture: Image.Image, above: list[list[str]], beside: list[list[str]]) -> Image.Image:
    """A grid with lines of text above each column, and to the left of each row as far as they fit."""
    width, height = picture.width // len(above), picture.height // len(beside)
    top = LINE * max(map(len, above)) + 4
    whole = Image.new("RGB", (picture.width + width, picture.height + top), "white")
    whole.paste(picture, (width, top))
    pen = ImageDraw.Draw(whole)
    for column, lines in enumerate(above):
        _write(pen, lines, width * (column + 1.5), 2, width - 4)
    for row, lines in enumerate(beside):
        _write(pen, lines[: height // LINE], width / 2, top + height * row + 4, width - 4)
    return whole


def _write(pen: ImageDraw.ImageDraw, lines: list[str], x: float, y: float, width: float) -> None:
    """Lines of text centred at x, from y on down. A line that is too wide gets a smaller font, and then is cut."""
    for number, line in enumerate(lines):
        font = ImageFont.load_default(FONT)
        if (length := pen.textlength(line, font)) > width:
            font = ImageFont.load_default(max(9.0, FONT * width / length))
        while pen.textlength(line, font) > width:
            line = line[:-2] + "…"
        pen.text((x, y + LINE * number), line, "black", font, anchor="ma")
