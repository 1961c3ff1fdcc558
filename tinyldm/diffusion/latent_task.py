"""Training a denoiser on latents, either stored or encoded while the images are read."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tinyldm.config.schema import TrainLDM
from tinyldm.data.batch import Batch
from tinyldm.data.images import ImageBatches, Images
from tinyldm.data.sources import balanced_labels
from tinyldm.data.subsets import random_rows
from tinyldm.diffusion.export import save_pipeline
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import load_first_stage
from tinyldm.first_stage.latent_batches import EncodedBatches, LatentBatches
from tinyldm.first_stage.latent_store import open_store
from tinyldm.randomness import Draw
from tinyldm.training import checkpoint
from tinyldm.training.accelerator import rank_of
from tinyldm.training.task import open_data


class LatentTask(DiffusionTask):
    """See DiffusionTask: x_0 are latents, scaled to unit variance."""

    card = "ldm"

    def __init__(self, config: TrainLDM, accelerator: Accelerator):
        data, rank, self.first_stage_path = config.data, rank_of(accelerator), config.first_stage.path
        stage = load_first_stage(config.first_stage)
        stage.check_resolution(data.resolution)
        if stage.in_channels != data.channels:
            raise UserError(f"the first stage takes images with {stage.in_channels} channels: set data.channels to that number")
        stage.model.to(accelerator.device)
        train, held_out_source, self.data = open_data(config, accelerator)
        held_out = open_store(data, held_out_source, "held-out", config.seed, stage, accelerator, False)
        self.images: ImageBatches | None = None
        stream: Callable[[int], Generator[Batch, None, None]]
        if config.first_stage.keep_latents:
            self.store = open_store(data, train, "train", config.seed, stage, accelerator, data.random_flip)
            balance = None
            if (name := config.condition.balanced) and self.store.labels is not None:
                balance = self.store.labels[:, data.labels.index(name)]
            stream = LatentBatches(self.store, config.seed, config.train.batch_size, rank, balance)
            std = self.store.std
            length: int | None = len(self.store)
        else:
            if config.condition.balanced:
                train.balance = balanced_labels(train, config.condition.balanced)
            images = Images.of(train, data)
            self.images = ImageBatches(images, config.seed, config.train.batch_size, rank)
            stream, std = EncodedBatches(self.images, stage, accelerator.device, data.random_flip, config.seed), held_out.std
            # Counting a stream means reading it.
            length = self.images.length = train.length() if config.train.max_steps is None else None
        self.kept = checkpoint.kept(config)  # a picture more or less in the data must not change the scale of a run
        if "latent_scale" in self.kept:
            stage.scaling_factor = self.kept["latent_scale"]
        elif (message := stage.choose_scale(1 / std)) and accelerator.is_main_process:
            print(message)
        self.readers = [self.images.images if self.images else self.store, held_out]
        if self.data.held_out is None:
            self.data.held_out = len(held_out) + held_out.corrupt
        self.scale = stage.scaling_factor
        self.kept = {"latent_scale": self.scale}
        self.built_on = stage.fingerprint()
        evaluated = held_out.batch(random_rows(len(held_out), config.train.num_eval_images))
        scaled = Batch(evaluated.x * self.scale, evaluated.condition)
        super().__init__(config, accelerator, stream, length, scaled, train.labels, stage.model)

    @property
    def train_images(self) -> int | None:
        """See Task.train_images."""
        return self.images.length if self.images else len(self.store) + self.store.corrupt

    def x0(self, batch: Batch, draw: Draw) -> torch.Tensor:
        """Latents (B, C, h, w), scaled."""
        return batch.x * self.scale

    def export(self, folder: Path) -> None:
        """pipeline/, without labels a standard LDMPipeline folder."""
        save_pipeline(folder / "pipeline", "LDMPipeline", self.model(), self.process.sampler(self.process.deterministic))

    def facts(self) -> dict[str, Any]:
        """See DiffusionTask.facts."""
        stage = {"first_stage": self.first_stage_path, "scaling_factor": self.scale}
        return {**super().facts(), **stage}
