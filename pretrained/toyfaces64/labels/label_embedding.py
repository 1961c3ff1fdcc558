"""The embedding of labels that a conditional UNet2DModel takes as its class embedding.

A copy of this file travels with every conditional model, so that plain diffusers can load it: it imports nothing of tinyldm.
"""

import difflib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

UNKNOWN = -1  # the number of a label that is missing, or dropped in training
ENOUGH = 50  # examples to draw labels from: with fewer, images would be alike


class LabelEmbedding(ModelMixin, ConfigMixin):
    """Adds up one learned vector per label. An unknown label has a vector of its own.

    Args:
        columns: for each label its name and the names of its values: [["hat", ["none", "cap"]], ...].
        width: length of the vectors: four times the width of the UNet's first block.
        num_rows: number of examples whose labels are kept in the buffer `rows` (num_rows, A), to draw labels from.
    """

    @register_to_config
    def __init__(self, columns: list[Any], width: int, num_rows: int = 1):
        super().__init__()
        self.values: dict[str, list[str]] = {name: list(values) for name, values in columns}
        std = len(columns) ** -0.5  # so that the sum has unit variance
        initial = [std * torch.randn(len(values) + 1, width) for values in self.values.values()]
        self.vectors = nn.ParameterList(nn.Parameter(vectors) for vectors in initial)
        self.register_buffer("rows", torch.full((num_rows, len(columns)), UNKNOWN))

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Numbers of labels (B, A), UNKNOWN to number of values - 1 -> vectors (B, width)."""
        return torch.stack([F.embedding(labels[:, i] + 1, vectors) for i, vectors in enumerate(self.vectors)]).sum(0)

    def numbers(self, labels: Mapping[str, Any]) -> dict[str, int]:
        """See numbers_of."""
        return numbers_of(self.values, labels)

    def draw(self, seeds: Sequence[int], given: Mapping[str, int]) -> torch.Tensor:
        """Labels (B, A) for these seeds, on the CPU: those of an example that has the given ones, chosen by the seed alone.

        So labels that are not given have the shares that they have in the data, together with the given ones. Where fewer
        than ENOUGH examples have these, each other label is that of another one of them. Where none has all of them, those
        with the most are taken.
        """
        rows, columns = self.rows.cpu(), [list(self.values).index(name) for name in given]
        numbers = torch.tensor(list(given.values()), dtype=rows.dtype)
        shared = (rows[:, columns] == numbers).sum(1)
        rows = rows[shared == shared.max()]
        labels = torch.stack([_choose(rows, random.Random(f"labels of seed {seed}")) for seed in seeds])
        labels[:, columns] = numbers
        return labels


def _choose(rows: torch.Tensor, chance: random.Random) -> torch.Tensor:
    if len(rows) >= ENOUGH:
        return rows[chance.randrange(len(rows))]
    return torch.stack([column[chance.randrange(len(rows))] for column in rows.T])


def numbers_of(values: Mapping[str, Sequence[str]], labels: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of labels given by name, as {"hat": "cap", "Smiling": True}; "unknown" is UNKNOWN.

    Args:
        values: for each label of the model the names of its values.

    Raises:
        ValueError: for a label or value that the model does not have.
    """
    numbers = {}
    for name, value in labels.items():
        if name not in values:
            raise ValueError(f"this model has no label {name!r}; it has: {', '.join(values)}")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        known = {"unknown": UNKNOWN, **{known: number for number, known in enumerate(values[name])}}
        if text not in known:
            near = difflib.get_close_matches(text, values[name], 1)
            listed = ", ".join(values[name][:20]) + (", ..." if len(values[name]) > 20 else "")
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"label {name} has no value {text!r}{hint}; it has: {listed}")
        numbers[name] = known[text]
    return numbers
