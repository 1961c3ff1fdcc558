"""What a model is conditioned on: labels, read from a command line, dropped out in training, drawn for seeds; small images.

data/batch.py defines a condition, label_embedding.py what the network makes of it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from tinyldm.config.schema import ConditionConfig
from tinyldm.data.batch import UNCONDITIONAL, UNKNOWN, Condition
from tinyldm.errors import UserError
from tinyldm.models.classifier import NoisyClassifier
from tinyldm.portable.label_embedding import LabelEmbedding
from tinyldm.portable.low_resolution import add_noise
from tinyldm.portable.pipeline import AUGMENTATION_SEED, DEFAULT_AUGMENTATION
from tinyldm.randomness import Draw

NEXT = re.compile(r",(?=[^,=]*=)")  # the comma before the next name


def parse_labels(embedding: LabelEmbedding | NoisyClassifier | None, text: str | None) -> dict[str, int]:
    """The numbers of the labels in a text: `Smiling=true,hat=cap`, or for a model with a single label its value alone.

    Raises:
        UserError: for a text of another form, and for labels or values that this model does not have.
    """
    if text is None:
        return {}
    if embedding is None:
        raise UserError(f"labels is {text!r}, but this model has no labels: remove it")
    names = list(embedding.values)
    if len(names) == 1 and (text == "unknown" or text in embedding.values[names[0]]):
        pairs = [(names[0], text)]
    else:  # a value may hold a comma, but no name follows it
        pairs = [(name.strip(), value.strip()) for name, _, value in (part.partition("=") for part in re.split(NEXT, text))]
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise UserError(f"labels is {text!r}, which gives {', '.join(sorted(twice))} twice")
    try:
        return embedding.numbers(dict(pairs))
    except ValueError as error:
        form = "" if "=" in text or len(names) == 1 else f" (write it as {names[0]}={embedding.values[names[0]][0]})"
        raise UserError(f"labels is {text!r}: {error}{form}") from error


def condition_for(embedding: LabelEmbedding | None, seeds: Sequence[int], given: dict[str, int]) -> Condition:
    """The condition for seeds: see LabelEmbedding.draw. Empty for a model without labels."""
    return UNCONDITIONAL if embedding is None else Condition(embedding.draw(seeds, given))


def renumber(labels: torch.Tensor, values: Mapping[str, Sequence[str]], known: Mapping[str, Sequence[str]]) -> torch.Tensor:
    """Numbers (B, A) of the values of `known`, from numbers (B, K) of `values`; UNKNOWN for names and values that one lacks.

    Args:
        values, known: for each label its name and the names of its values.
    """
    numbers, names = torch.full((len(labels), len(known)), UNKNOWN), list(values)
    for column, (name, wanted) in enumerate(known.items()):
        if name in values:
            found = [wanted.index(value) if value in wanted else UNKNOWN for value in values[name]]
            numbers[:, column] = torch.tensor([*found, UNKNOWN])[labels[:, names.index(name)]]  # -1 is the last one
    return numbers


def clean(condition: Condition) -> Condition:
    """The condition with its low-resolution images as they are, without noise."""
    if condition.low_resolution is None:
        return condition
    return replace(condition, augmentation=torch.zeros(len(condition.low_resolution), device=condition.low_resolution.device))


def with_small(condition: Condition, small: torch.Tensor, level: float | None, seeds: Sequence[int]) -> Condition:
    """The condition with low-resolution images (B, C, S, S), as the network sees them, and noise from these seeds in them.

    Args:
        level: of the noise; None: that of DEFAULT_AUGMENTATION.
    """
    random = [torch.Generator().manual_seed(AUGMENTATION_SEED + seed) for seed in seeds]
    noise = torch.stack([torch.randn(small.shape[1:], generator=generator) for generator in random]).to(small)
    levels = torch.full((len(small),), DEFAULT_AUGMENTATION if level is None else level, device=small.device)
    return augment(replace(condition, low_resolution=small), levels, noise)


def preview_condition(embedding: LabelEmbedding | None, count: int) -> Condition:
    """The condition of `count` pictures: the classes in turn if there is one label with no more of them, else as for seeds."""
    if embedding is None:
        return UNCONDITIONAL
    values = next(iter(embedding.values.values()))
    if len(embedding.values) > 1 or len(values) > count:
        return condition_for(embedding, range(count), {})
    return Condition((torch.arange(count) % len(values))[:, None])


def without_labels(condition: Condition) -> Condition:
    """The same condition with all labels unknown: what an unconditional model gets."""
    if condition.labels is None:
        return condition
    unknown = torch.full_like(condition.labels, UNKNOWN)
    return replace(condition, labels=unknown, other_labels=None if condition.other_labels is None else unknown)


def drop_labels(condition: Condition, config: ConditionConfig, draw: Draw) -> Condition:
    """The condition with labels dropped at random, so that the network learns to do without (Ho & Salimans 2022, algorithm 1).

    All labels of an image are dropped together with probability `config.dropout`, and each one of several with probability
    `config.dropout_each`.
    """
    if condition.labels is None:
        return condition
    count, columns = condition.labels.shape
    dropped = draw.uniform(count)[:, None] < config.dropout
    if columns > 1:
        dropped = dropped | (draw.uniform(count * columns).view(count, columns) < config.dropout_each)
    return replace(condition, labels=condition.labels.masked_fill(dropped, UNKNOWN))


def augment(condition: Condition, levels: torch.Tensor, noise: torch.Tensor) -> Condition:
    """The condition with noise added to its low-resolution images.

    Args:
        levels: (B,), from 0 to 1.
        noise: standard normal, of the shape of the low-resolution images.
    """
    assert condition.low_resolution is not None
    return replace(condition, low_resolution=add_noise(condition.low_resolution, levels, noise), augmentation=levels)
