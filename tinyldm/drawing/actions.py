"""What sample.py can do with a model: draw, enlarge, vary, fill, invert. Each action yields the images to save, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from tinyldm.config.schema import Sample
from tinyldm.data.given import parse_box, read_images, read_mask
from tinyldm.drawing import editing, sampling
from tinyldm.drawing.cascade import check_chain, sample_chain, upscale
from tinyldm.errors import UserError
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model, to_images

FRAMES, FRAMES_ACROSS = 12, 4  # of the way between two images


@dataclass
class Result:
    """What an action makes besides its images.

    Attributes:
        count: number of images.
        batches: uint8 (B, 3, S, S), drawn as they are asked for.
        columns: of the picture of `rows`, or of the frames.
        name: of the files of the images, before their number.
        rows: what was given beside what was made, images (N, 3, S, S). Filled while the batches are drawn, as is the rest.
        between: frames from the first given image to the second.
        notes: what the user should know.
    """

    count: int
    batches: Iterator[torch.Tensor]
    columns: int = 0
    rows: list[torch.Tensor] = field(default_factory=list)
    between: list[torch.Tensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    name: str = "seed"


def act(model: Model, config: Sample, watch: sampling.Watch | None = None) -> Result:
    """Start the action that the config asks for.

    Args:
        watch: see sampling.denoise; `invert` does not call it.

    Raises:
        UserError: for images that cannot be read, and settings that do not fit the model.
    """
    model.sampler(config)
    if config.upscale is not None:
        return _upscale(model, config, watch)
    if config.then is not None:
        return _chain(model, config, watch)
    check_chain([model], [config.model])
    if config.invert is not None:
        return _invert(model, config)
    if config.image is not None:
        return _edit(model, config, watch)
    if config.interpolate is not None:
        return _interpolate(model, *config.interpolate, config, watch)
    batches = sampling.sample(model, config.num_images, config.batch_size, config.seed, config, watch)
    return Result(config.num_images, batches)


def _interpolate(model: Model, seed_a: int, seed_b: int, config: Sample, watch: sampling.Watch | None) -> Result:
    between: list[torch.Tensor] = []

    def batches() -> Iterator[torch.Tensor]:
        between.append(sampling.interpolate(model, seed_a, seed_b, config, FRAMES, watch))
        yield from between

    return Result(FRAMES, batches(), FRAMES_ACROSS, between=between, name="frame")


def load_chain(model: Model, config: Sample) -> list[Model]:
    """The model and the stages of `config.then`, which may be None.

    Raises:
        UserError: see load_model and check_chain.
    """
    names = [name.strip() for name in config.then.split(",")] if config.then is not None else []
    models = [model, *(load_model(name, str(model.device), model.dtype) for name in names)]
    check_chain(models, [config.model, *names])
    return models


def _chain(model: Model, config: Sample, watch: sampling.Watch | None) -> Result:
    """Images of several models, each of which enlarges those of the one before."""
    models = load_chain(model, config)
    batches = sample_chain(models, config.num_images, config.batch_size, config.seed, config, watch)
    return Result(config.num_images, batches)


def _upscale(model: Model, config: Sample, watch: sampling.Watch | None) -> Result:
    """The given images, enlarged."""
    assert config.upscale is not None
    if model.low_resolution is None:
        raise UserError(f"{config.model} is not a super-resolution stage: train one with condition.low_resolution")
    side = model.low_resolution.config.side
    small, notes = read_images(config.upscale, side)
    rows: list[torch.Tensor] = []

    def batches() -> Iterator[torch.Tensor]:
        for first in range(0, len(small), config.batch_size):
            part = small[first : first + config.batch_size]
            seeds = range(config.seed + first, config.seed + first + len(part))
            made = upscale(model, part, seeds, config, model.named_labels(len(part), config), watch)
            enlarged = F.interpolate(part.float(), size=model.side, mode="nearest-exact").to(torch.uint8)
            rows.append(torch.stack([enlarged, made], 1).flatten(0, 1))
            yield made

    return Result(len(small), batches(), 2, rows, notes=notes)


def _edit(model: Model, config: Sample, watch: sampling.Watch | None) -> Result:
    """Variations of the given images, or with a mask new content in a part of them: `num_images` of each."""
    assert config.image is not None
    given, notes = read_images(config.image, model.side)
    mask = None
    if config.mask is not None:
        box = parse_box(config.mask)
        mask, more = (editing.box_mask(box, model.side), []) if box else read_mask(config.mask, model.side)
        notes += more
    rows: list[torch.Tensor] = []

    def batches() -> Iterator[torch.Tensor]:
        for image in given.split(1):
            rows.append(image)
            if mask is not None:
                rows.append(torch.where(mask.bool(), torch.tensor(255, dtype=torch.uint8), image))
            else:
                x0 = editing.to_x0(model, image)
            for first in range(0, config.num_images, config.batch_size):
                count = min(config.batch_size, config.num_images - first)
                random, condition = sampling.generators(config.seed + first, count), model.named_labels(count, config)
                if mask is not None:
                    again = config.resample_jump, config.resample_repeats
                    images = image.expand(count, -1, -1, -1)
                    made = editing.fill(model, images, mask.expand(count, -1, -1, -1), config, random, condition, *again, watch)
                else:
                    start = x0.expand(count, -1, -1, -1)
                    x = editing.vary(model, start, config.strength, config, random, condition, watch)
                    made = to_images(model, x).cpu()
                rows.append(made)
                yield made

    columns = config.num_images + 1 + (mask is not None)
    return Result(config.num_images * len(given), batches(), columns, rows, notes=notes)


def _invert(model: Model, config: Sample) -> Result:
    """The given images as noise and back, and what lies between the first two."""
    assert config.invert is not None
    read = [read_images(path.strip(), model.side) for path in config.invert.split(",")]
    given, notes = torch.cat([images for images, _ in read]), [note for _, more in read for note in more]
    rows: list[torch.Tensor] = []
    between: list[torch.Tensor] = []

    def batches() -> Iterator[torch.Tensor]:
        noises = []
        for images in given.split(config.batch_size):
            noise, back = editing.invert(model, images, model.named_labels(len(images), config))
            noises.append(noise)
            notes.append(f"the way to noise and back: {editing.psnr(images, back):.1f} dB")
            rows.extend([images, back])
            yield back
        if len(given) > 1:
            noise = torch.cat(noises)[:2]
            between.append(editing.between(model, noise, FRAMES, model.named_labels(FRAMES, config)))

    return Result(len(given), batches(), len(given), rows, between, notes)
