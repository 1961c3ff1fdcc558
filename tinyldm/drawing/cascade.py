"""Super-resolution stages and chains of them (Ho et al. 2022): each stage draws a larger version of the last one's images."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from tinyldm.config.schema import SamplerSettings
from tinyldm.data.batch import UNCONDITIONAL, Condition
from tinyldm.data.images import to_float
from tinyldm.drawing.sampling import Watch, denoise, generators, initial_noise, sample
from tinyldm.errors import UserError
from tinyldm.models.conditioning import renumber, with_small
from tinyldm.models.model import Model, encoded, to_images
from tinyldm.portable.low_resolution import enlarge


def check_chain(models: Sequence[Model], names: Sequence[str]) -> None:
    """Raise UserError for models that do not fit one after the other."""
    if models[0].low_resolution is not None:
        raise UserError(f"{names[0]} is a super-resolution stage: give it small images with --upscale, or name it in --then")
    for (before, first), (after, second) in pairwise(zip(models, names, strict=True)):
        if after.low_resolution is None:
            raise UserError(f"{second} is not a super-resolution stage: train one with condition.low_resolution")
        if (side := after.low_resolution.config.side) != before.side:
            raise UserError(f"{second} enlarges images of {side} px, but {first} draws {before.side} px")


def as_seen(model: Model, small: torch.Tensor) -> torch.Tensor:
    """uint8 images (B, 3, s, s) -> (B, C, S, S), as the network of a stage sees them: enlarged, and encoded if it has a first
    stage."""
    return encoded(model, enlarge(to_float(small.to(model.device)), model.side))


def upscale(
    model: Model,
    small: torch.Tensor,
    seeds: Sequence[int],
    settings: SamplerSettings,
    condition: Condition = UNCONDITIONAL,
    watch: Watch | None = None,
) -> torch.Tensor:
    """uint8 images (B, 3, S, S) that a stage draws from small ones.

    Args:
        small: uint8 (B, 3, s, s).
        seeds: of the noise of each image.
        condition: the labels.
        watch: see sampling.denoise.
    """
    random = [generator for seed in seeds for generator in generators(seed, 1)]
    seen = with_small(condition, as_seen(model, small), settings.augmentation, seeds)
    x0 = denoise(model, initial_noise(model, random), settings, random, seen, watch)
    return to_images(model, x0).cpu().expand(-1, 3, -1, -1)


def same_labels(source: Model, labels: torch.Tensor | None, model: Model, count: int) -> Condition:
    """The labels (count, A) of one model as a condition of another, by their names and values; unknown where it lacks them."""
    if model.labels is None or labels is None or source.labels is None:
        return model.named_labels(count)
    return Condition(renumber(labels, source.labels.values, model.labels.values))


def sample_chain(
    models: Sequence[Model],
    num_images: int,
    batch_size: int,
    seed: int,
    settings: SamplerSettings,
    watch: Watch | None = None,
) -> Iterator[torch.Tensor]:
    """uint8 batches (B, 3, S, S) of the last model: the first one draws, each next one enlarges. Labels go through all.

    For `watch` see sampling.denoise; each model in turn calls it."""
    first, *rest = models
    for start, images in zip(
        range(0, num_images, batch_size), sample(first, num_images, batch_size, seed, settings, watch), strict=True
    ):
        seeds = range(seed + start, seed + start + len(images))
        drawn = first.condition(seeds, settings).labels
        for model in rest:
            labels = same_labels(first, drawn, model, len(seeds))
            guided = model.labels is not None or model.guide is not None
            own = replace(settings, labels=None, guidance_scale=settings.guidance_scale if guided else None)
            images = upscale(model, images.expand(-1, 3, -1, -1), seeds, own, labels, watch)
        yield images
