"""What the page can do with a model: a table of actions. Each is a call of sample.py, so it draws what sample.py draws.

keys = {"model": "runs/demo", "seed": 3, **ACTIONS["Draw"].keys(folder, 4)}
for picture in play(model, read(keys)):
    ...  # the last one is what `python sample.py --model=runs/demo --seed=3 --num_images=4` writes as grid.png
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from tinyldm.config.parsing import parse
from tinyldm.config.schema import Sample
from tinyldm.data.given import parse_box
from tinyldm.drawing.actions import act
from tinyldm.errors import UserError
from tinyldm.models.model import Model, to_images
from tinyldm.pictures import grid

FRAMES = 12  # pictures of a denoising


class Action(NamedTuple):
    """A tab of the page.

    Attributes:
        about: what it does, in one or two sentences.
        fits: whether a model can do it.
        keys: (an empty folder for images, the values of its own controls) -> keys of sample.py.
    """

    about: str
    fits: Callable[[Model], bool]
    keys: Callable[..., dict[str, Any]]


def draw(folder: Path, count: int) -> dict[str, Any]:
    """`count` images of the seeds from `seed` on."""
    return {"num_images": count}


def between(folder: Path, start: int, end: int) -> dict[str, Any]:
    """Images on the way from one seed to another."""
    return {"interpolate": f"[{start},{end}]"}


def change(folder: Path, image: Image.Image | None, box: str, strength: float, count: int) -> dict[str, Any]:
    """Variations of an image, or with a box left,top,right,bottom a new part there."""
    if image is None:
        raise UserError("there is no image to change: upload one, or take the one of the seed")
    keys = {"image": save(image, folder / "image.png"), "num_images": count}
    if not box.strip():
        return {**keys, "strength": strength}
    if (parsed := parse_box(box)) is None:  # sample.py takes any other text for the name of a file
        raise UserError(f"the box is {box!r}: give left,top,right,bottom in pixels of the model's images, such as 8,8,24,24")
    return {**keys, "mask": ",".join(map(str, parsed))}


def enlarge(folder: Path, image: Image.Image | None) -> dict[str, Any]:
    """An image, enlarged."""
    if image is None:
        raise UserError("there is no image to enlarge: upload one")
    return {"upscale": save(image, folder / "image.png")}


def save(image: Image.Image, file: Path) -> str:
    """Save an image and name its file."""
    image.convert("RGB").save(file)
    return str(file)


def from_noise(model: Model) -> bool:
    """Whether a model draws from noise alone, and so is no super-resolution stage."""
    return model.low_resolution is None


ACTIONS = {
    "Draw": Action("The pictures of a seed and of those after it, as they emerge from noise.", from_noise, draw),
    "Interpolate": Action("The way from one seed to another, along the sphere of noise.", from_noise, between),
    "Edit": Action("Variations of an image. With a box, only the part in it is drawn anew.", from_noise, change),
    "Enlarge": Action("A small image, drawn larger.", lambda model: not from_noise(model), enlarge),
}


def arguments(keys: Mapping[str, Any]) -> list[str]:
    """The arguments of sample.py for these keys; a key that is None or empty keeps its default."""
    return [f"--{key}={value}" for key, value in keys.items() if value not in (None, "")]


def read(keys: Mapping[str, Any]) -> Sample:
    """The settings, checked as sample.py checks them.

    Raises:
        UserError: for a value that does not fit, or one that contradicts another.
    """
    return parse(Sample, None, arguments(keys))


class _Left(Exception):
    """Nobody looks at the pictures any more."""


def play(model: Model, config: Sample, notes: list[str] | None = None) -> Iterator[Image.Image]:
    """Pictures of the denoising while it runs, then the one that sample.py would write.

    Args:
        notes: gets what the user should know.

    Raises:
        UserError: as drawing.actions.act.
    """
    made: queue.Queue[Image.Image | BaseException | None] = queue.Queue()
    left = threading.Event()
    each = max(1, config.num_inference_steps // FRAMES)

    def watch(drawing: Model, step: int, x: torch.Tensor) -> None:
        if left.is_set():
            raise _Left
        if step % each == 0 and step < config.num_inference_steps:
            images = to_images(drawing, x).cpu().expand(-1, 3, -1, -1)
            made.put(grid(torch.cat([*result.rows, images]), result.columns))  # beside what was given

    def work() -> None:
        try:
            images = torch.cat(list(result.batches))
            made.put(grid(torch.cat(result.rows) if result.rows else images, result.columns))
            made.put(None)
        except BaseException as error:  # raised where the pictures are looked at
            made.put(error)

    result = act(model, config, watch)
    threading.Thread(target=work, name="drawing", daemon=True).start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
        if notes is not None:
            notes.extend(result.notes)
    finally:
        left.set()
