"""Sheets of a model whose images are of one colour, which says what it was given."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.support import models
from tinyldm.config.schema import SamplerSettings
from tinyldm.evaluation import sheets
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model
from tinyldm.portable.label_embedding import LabelEmbedding

SETTINGS = SamplerSettings(num_inference_steps=2, guidance_scale=1.0)
LEVEL = 1 / 127.5  # one of 255 levels of grey, in the network's units
SIDE = 32


class Painter(nn.Module):
    """Predicts an x_0 of one colour: the vector of the labels, or without labels a constant."""

    def __init__(self, grey: float = 0.0):
        super().__init__()
        self.weight, self.grey = nn.Parameter(torch.zeros(1)), grey  # the weight gives device and dtype
        self.config = SimpleNamespace(sample_size=SIDE, in_channels=3)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None) -> SimpleNamespace:
        colour = torch.full((len(x), 3), self.grey) if class_labels is None else class_labels
        return SimpleNamespace(sample=colour[:, :, None, None].expand(x.shape))


def painter(columns: list, rows: list[list[int]]) -> Model:
    """A model whose red is 10 levels above the middle for each number of the first label; green and blue of the next ones."""
    embedding = LabelEmbedding(columns, 3, len(rows))
    embedding.rows = torch.tensor(rows)
    for channel, vectors in enumerate(embedding.vectors):
        vectors.data.zero_()
        if channel < 3:
            vectors.data[1:, channel] = 10 * LEVEL * (1 + torch.arange(len(vectors) - 1))  # unknown: 0
    return Model(Denoiser(Painter(), embedding), models.process(prediction_type="sample"), None)


def colours(sheet: sheets.Sheet) -> np.ndarray:
    """(rows, columns, 3): how many tens of levels each tile is above the middle, from the finished picture."""
    picture = np.asarray(sheet.draw()).astype(int)
    rows, columns = len(sheet.beside), len(sheet.captions)
    top, left = picture.shape[0] - (SIDE + 2) * 4 * rows - 8, picture.shape[1] - (SIDE + 2) * 4 * columns - 8
    middle = (SIDE + 4) * 2
    tiles = picture[top + middle :: (SIDE + 2) * 4, left + middle :: (SIDE + 2) * 4][:rows, :columns]
    return np.round((tiles - 127.5) / 10).astype(int)


def test_each_column_has_one_value_and_the_other_labels_of_the_seed():
    model = painter([["hat", ["none", "cap", "crown"]], ["hair", ["bald", "long"]]], [[0, 0], [1, 1], [2, 0], [2, 1]])
    sheet = sheets.label_sheet(model, SETTINGS, seed=5, rows=4)
    assert [" ".join(lines) for lines in sheet.captions] == ["hat none", "hat cap", "hat crown", "hair bald", "hair long"]
    own = 1 + model.labels.draw(range(5, 9), {}).numpy()
    assert len(np.unique(own, axis=0)) > 1
    found = colours(sheet)
    assert found[..., 2].any() == False  # noqa: E712
    assert np.array_equal(found[:, :3, 0], [[1, 2, 3]] * 4) and np.array_equal(found[:, :3, 1], own[:, [1, 1, 1]])
    assert np.array_equal(found[:, 3:, 1], [[1, 2]] * 4) and np.array_equal(found[:, 3:, 0], own[:, [0, 0]])


def test_labels_that_the_settings_give_are_those_of_all_columns_but_their_own():
    model = painter([["hat", ["none", "cap", "crown"]], ["hair", ["bald", "long"]]], [[0, 0], [1, 1], [2, 0], [2, 1]])
    given = SamplerSettings(num_inference_steps=2, guidance_scale=1.0, labels="hat=crown")
    found = colours(sheets.label_sheet(model, given, seed=0, rows=3))
    assert (found[:, 3:, 0] == 3).all() and np.array_equal(found[:, :3, 0], [[1, 2, 3]] * 3)


def test_many_values_are_spread_over_the_labels_with_their_last_values():
    columns = [[name, [f"{name}{v}" for v in range(count)]] for name, count in (("a", 2), ("b", 30), ("c", 9))]
    sheet = sheets.label_sheet(painter(columns, [[0, 0, 0]]), SETTINGS, seed=0, rows=1)
    shown = [value for _, value in sheet.captions]
    assert shown == ["a0", "a1", *(f"b{v}" for v in range(23, 30)), *(f"c{v}" for v in range(2, 9))]


def test_guidance_rises_from_column_to_column_with_the_labels_of_the_seed():
    """The vector of a label is a guided w times, since that of unknown is 0."""
    model = painter([["hat", ["none", "cap"]]], [[0], [1]])
    sheet = sheets.guidance_sheet(model, SETTINGS, seed=0, rows=4)
    assert [lines[0] for lines in sheet.captions] == ["no guidance", "scale 1.5", "scale 2", "scale 3", "scale 4"]
    own = 1 + model.labels.draw(range(4), {}).numpy()
    assert set(own.ravel()) == {1, 2}
    assert np.array_equal(colours(sheet)[:, 2:, 0], own * [2, 3, 4])
    assert sheet.beside[0] == ["seed 0", f"hat {['none', 'cap'][own[0, 0] - 1]}"]


def test_a_guide_needs_no_labels():
    process = models.process(prediction_type="sample")
    model = Model(Denoiser(Painter(grey=30 * LEVEL)), process, None, Denoiser(Painter(grey=10 * LEVEL)))
    (sheet,) = sheets.of_model(model, SETTINGS, 0)
    assert (colours(sheet)[:, [0, 2, 3, 4], 0] == [3, 5, 7, 9]).all() and sheet.beside[3] == ["seed 3"]
    assert not list(sheets.of_model(Model(model.denoiser, process, None), SETTINGS, 0))


@pytest.mark.parametrize("line", ["x", "a label with a very long name, and its value"])
def test_captions_stay_in_their_columns(line):
    grid = sheets.pictures.grid(torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8), 2)
    plain, written = (np.asarray(sheets.captioned(grid, [[text], [""]], [[""], [""]])).astype(int) for text in ("", line))
    columns = np.flatnonzero((plain != written).any((0, 2)))
    width = grid.width // 2
    assert len(columns) and width <= columns.min() and columns.max() < 2 * width
