"""What the trainings of denoisers and classifiers read: x_0 as latents or as pixels, with labels and a held-out part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from tinyldm.config.schema import ConditionConfig, FirstStageConfig, Training
from tinyldm.data.augment import augment_images
from tinyldm.data.batch import Batch
from tinyldm.data.columns import LabelColumn
from tinyldm.data.description import Description
from tinyldm.data.images import ImageBatches, Images, first_examples, mirror_half, to_float
from tinyldm.data.small import shrink
from tinyldm.data.sources import balanced_labels
from tinyldm.data.subsets import random_rows
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import AutoencoderModel, load_first_stage
from tinyldm.first_stage.latent_batches import EncodedBatches, LatentBatches
from tinyldm.first_stage.latent_store import open_store
from tinyldm.portable.low_resolution import enlarge
from tinyldm.randomness import Draw
from tinyldm.training import checkpoint
from tinyldm.training.accelerator import rank_of
from tinyldm.training.task import image_batches, open_data

SHARE = 0.25  # of the GPU's free memory that latents may take


class TrainingData(ABC):
    """The data of a training, opened.

    Attributes:
        stream: position -> endless training batches from there on.
        length: see Task.examples_per_epoch.
        held_out: x_0 (N, C, S, S) as networks see them, with their conditions.
        labels: the columns of labels.
        description, readers, kept, built_on: see Task.
        first_stage: decodes x_0; None for pixels.
    """

    stream: Callable[[int], Generator[Batch, None, None]]
    length: int | None
    held_out: Batch
    labels: Sequence[LabelColumn]
    description: Description
    readers: list[Any]
    kept: dict[str, float]
    built_on: str = ""
    first_stage: AutoencoderModel | None = None

    @abstractmethod
    def example(self, batch: Batch, draw: Draw) -> Batch:
        """The x_0 (B, C, S, S) of a batch as networks see them, with their conditions."""

    @abstractmethod
    def count(self) -> int | None:
        """See Task.train_images."""


class PixelData(TrainingData):
    """x_0 are images in [-1, 1].

    Args:
        condition: how labels are balanced, and the side of the smaller images. None: as for an ordinary model.
    """

    def __init__(self, config: Training, accelerator: Accelerator, condition: ConditionConfig | None = None):
        data, wanted = config.data, condition or ConditionConfig()
        self.config, self.small, balanced = config.data, wanted.low_resolution, wanted.balanced
        train, held_out, self.description = open_data(config, accelerator)
        if balanced:
            train.balance = balanced_labels(train, balanced)
        self.stream = self.batches = image_batches(config, train, accelerator)
        self.length, self.kept, self.labels = self.batches.length, {}, train.labels
        held_out_images = Images.of(held_out, data)
        self.readers = [self.batches.images, held_out_images]
        evaluated = first_examples(held_out_images, config.train.num_eval_images)
        self.held_out = self.with_small(Batch(to_float(evaluated.x), evaluated.condition))

    def example(self, batch: Batch, draw: Draw) -> Batch:
        """Images (B, C, S, S), half of them mirrored with `data.random_flip`."""
        images, condition = to_float(batch.x), batch.condition
        images = mirror_half(images, draw) if self.config.random_flip else images
        if self.config.augment:
            images, changes = augment_images(images, self.config.augment, draw)
            condition = replace(condition, changes=changes)
        return self.with_small(Batch(images, condition))

    def with_small(self, batch: Batch) -> Batch:
        """The batch with its smaller images, if they are wanted."""
        if self.small is None:
            return batch
        small = enlarge(shrink(batch.x, self.small), batch.x.shape[-1])
        return Batch(batch.x, replace(batch.condition, low_resolution=small))

    def count(self) -> int | None:
        """See TrainingData.count."""
        return self.batches.length


class LatentData(TrainingData):
    """x_0 are latents, scaled to unit variance, either stored or encoded while the images are read.

    Args:
        condition: see PixelData.
    """

    def __init__(
        self,
        config: Training,
        first_stage: FirstStageConfig,
        accelerator: Accelerator,
        condition: ConditionConfig | None = None,
    ):
        data, rank, wanted = config.data, rank_of(accelerator), condition or ConditionConfig()
        small, balanced = wanted.low_resolution, wanted.balanced
        stage = load_first_stage(first_stage)
        stage.check_resolution(data.resolution)
        if stage.in_channels != data.channels:
            raise UserError(f"the first stage takes images with {stage.in_channels} channels: set data.channels to that number")
        stage.model.to(accelerator.device)
        train, held_out_source, self.description = open_data(config, accelerator)
        held_out = open_store(data, held_out_source, "held-out", config.seed, stage, accelerator, False, small)
        self.images: ImageBatches | None = None
        if first_stage.keep_latents:
            self.store = open_store(data, train, "train", config.seed, stage, accelerator, data.random_flip, small)
            balance = None
            if balanced and self.store.labels is not None:
                balance = self.store.labels[:, data.labels.index(balanced)]
            pinned = not self._moved(first_stage.store_on_device, accelerator) and accelerator.device.type == "cuda"
            self.stream = LatentBatches(self.store, config.seed, config.train.batch_size, rank, balance, pinned)
            std = self.store.std
            self.length = len(self.store)
        else:
            if balanced:
                train.balance = balanced_labels(train, balanced)
            self.images = ImageBatches(Images.of(train, data), config.seed, config.train.batch_size, rank)
            how = data.random_flip, config.seed, small, data.augment
            self.stream = EncodedBatches(self.images, stage, accelerator.device, *how)
            std = held_out.std
            # Counting a stream means reading it.
            self.length = self.images.length = train.length() if config.train.max_steps is None else None
        kept = checkpoint.kept(config)  # a picture more or less in the data must not change the scale of a run
        if "latent_scale" in kept:
            stage.scaling_factor = kept["latent_scale"]
        elif (message := stage.choose_scale(1 / std)) and accelerator.is_main_process:
            print(message)
        self.readers = [self.images.images if self.images else self.store, held_out]
        if self.description.held_out is None:
            self.description.held_out = len(held_out) + held_out.corrupt
        self.scale, self.built_on, self.first_stage = stage.scaling_factor, stage.fingerprint(), stage.model
        self.kept, self.labels = {"latent_scale": self.scale}, train.labels
        evaluated = held_out.batch(random_rows(len(held_out), config.train.num_eval_images))
        self.held_out = self.example(evaluated, Draw(0, 0, 0))

    def _moved(self, wanted: bool | str, accelerator: Accelerator) -> bool:
        """Move the store to the device if that is wanted, and say so."""
        if wanted == "auto":
            gpu = accelerator.device.type == "cuda"
            wanted = gpu and self.store.nbytes <= SHARE * torch.cuda.mem_get_info(accelerator.device)[0]
        if wanted:
            self.store.move_to(accelerator.device)
            if accelerator.is_main_process:
                print(f"the latents of the training images ({self.store.nbytes / 1e6:,.0f} MB) stay on {accelerator.device}")
        return bool(wanted)

    def example(self, batch: Batch, draw: Draw) -> Batch:
        """Latents (B, C, h, w), scaled."""
        small = batch.condition.low_resolution
        scaled = None if small is None else small * self.scale
        return Batch(batch.x * self.scale, replace(batch.condition, low_resolution=scaled))

    def count(self) -> int | None:
        """See TrainingData.count."""
        return self.images.length if self.images else len(self.store) + self.store.corrupt
