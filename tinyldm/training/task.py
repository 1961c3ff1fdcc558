"""What one training adds to the loop of trainer.py: a `Task`. See first_stage/task.py and diffusion/task.py."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from tinyldm.config.schema import Training
from tinyldm.data.batch import Batch
from tinyldm.data.description import Description
from tinyldm.data.images import ImageBatches, Images
from tinyldm.data.kept import LIMIT, KeptImages
from tinyldm.data.sources import Source, open_sources
from tinyldm.randomness import Draw
from tinyldm.training.accelerator import rank_of

Losses = Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]


class Task(ABC):
    """What is trained, on what, against which losses.

    Attributes:
        card: the template in model_cards/ for its report.
        built_on: identifies the frozen parts that the networks are trained over; a run cannot continue over others.
        networks: by name; the first one is averaged, evaluated and exported. The trainer replaces them by the prepared
            (distributed, mixed-precision) ones.
        learning_rates: the peak for each network.
        examples_per_epoch: images in an epoch; None where `max_steps` is given and a stream does not know.
        buffers: tensors beside the networks that a checkpoint holds; restored in place.
        kept: numbers that were measured at the start of the run. A resumed run takes them over: see checkpoint.kept.
        data: what was understood of the data.
        max_steps: the last step; set by the trainer before the first one.
        readers: what reads or has read the images, each with the names of the `unreadable` ones.
    """

    card: str
    built_on: str = ""
    networks: dict[str, nn.Module]
    learning_rates: dict[str, float]
    examples_per_epoch: int | None
    buffers: dict[str, torch.Tensor]
    kept: dict[str, float]
    data: Description
    readers: list[Any]
    max_steps: int

    @property
    def unreadable(self) -> list[str]:
        """Names of the images that this rank could not read so far."""
        return [name for reader in self.readers for name in reader.unreadable]

    @property
    @abstractmethod
    def train_images(self) -> int | None:
        """Number of training images; None while a stream does not know."""

    @abstractmethod
    def batches(self, position: int) -> Generator[Batch, None, None]:
        """Endless micro-batches of this rank.

        Args:
            position: how many images all ranks have seen before.
        """

    @abstractmethod
    def losses(self, batch: Batch, step: int, draw: Draw) -> Losses:
        """(network's name, its loss, numbers to log), one for each network that learns in this step; the trainer calls
        backward on each before it asks for the next."""

    @abstractmethod
    def after_step(self, step: int, draw: Draw, ema: EMAModel) -> None:
        """Called after the optimizers' step."""

    @abstractmethod
    def evaluate(self) -> dict[str, torch.Tensor]:
        """Sums over this rank's share of the held-out images (and their `count`); `summarize` gets them added up."""

    @abstractmethod
    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Held-out figures from the sums of all ranks, `eval_loss` among them."""

    @abstractmethod
    def picture(self, path: Path) -> None:
        """Draw what the network does now, without touching the training's random numbers."""

    def rehearse(self) -> None:
        """Run once, before the training, what would otherwise first run hours later: a picture."""
        with TemporaryDirectory() as folder:
            self.picture(Path(folder) / "picture.png")

    @abstractmethod
    def make_images(self, count: int) -> Iterator[torch.Tensor]:
        """This rank's share of `count` images, always of the same seeds, in uint8 batches (B, 3, H, W)."""

    def finish(self, distance: Callable[[Iterator[torch.Tensor]], float]) -> dict[str, float]:
        """Called after the last step, with the averaged weights. Returns figures to log.

        Args:
            distance: the Frechet distance between uint8 batches (B, 3, H, W) of all ranks and the held-out images.
        """
        return {}

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the model that a user loads, from the current weights, as one folder in `folder`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What its template names beyond what the trainer knows."""


def open_data(config: Training, accelerator: Accelerator) -> tuple[Source, Source, Description]:
    """The training part, the held-out part, and what was understood of the data, which the main rank prints.

    Raises:
        UserError: see `open_sources`.
    """
    train, held_out = open_sources(config.data, config.seed)
    assert train.description
    if accelerator.is_main_process:
        print("\n".join(train.description.lines()))
    return train, held_out, train.description


def image_batches(config: Training, source: Source, accelerator: Accelerator) -> ImageBatches:
    """Batches of the training images. They are decoded once where all of them fit in memory and are needed again; the main rank
    says so."""
    data, train = config.data, config.train
    batches = ImageBatches(Images.of(source, data), config.seed, train.batch_size, rank_of(accelerator))
    batches.length = source.length() if train.max_steps is None else None  # counting a stream means reading it
    count = batches.length or source.known_length()
    each, size = data.channels * data.resolution**2, "at most 1 GiB"
    if count is not None:
        per_step = train.batch_size * train.gradient_accumulation_steps * accelerator.num_processes
        seen = train.max_steps * per_step if train.max_steps else (train.num_epochs or 0) * count
        if seen <= count or count * each > LIMIT:
            return batches
        size = f"{count * each / 1e6:,.1f} MB"
    batches.images.kept = KeptImages()
    if accelerator.is_main_process:
        print(f"the training images stay in memory once they are decoded: {size}")
    return batches
