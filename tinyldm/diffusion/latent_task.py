"""Training a denoiser on latents: kept ones, or encoded as the images come."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import LDMPipeline

from tinyldm.config.schema import TrainLDM
from tinyldm.data.images import ImageBatches, Images
from tinyldm.data.sources import open_sources
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import load_first_stage
from tinyldm.first_stage.latent_batches import EncodedBatches, LatentBatches
from tinyldm.first_stage.latent_store import open_store
from tinyldm.randomness import Draw


class LatentTask(DiffusionTask):
    """See DiffusionTask: x_0 are latents, scaled to unit variance."""

    card = "ldm"

    def __init__(self, config: TrainLDM, accelerator: Accelerator):
        data, device = config.data, accelerator.device
        stage = load_first_stage(config.first_stage)
        stage.check_resolution(data.resolution)
        if stage.model.config.in_channels != data.channels:
            raise UserError(f"the first stage is for {stage.model.config.in_channels} channels; set data.channels to it")
        stage.model.to(device)
        sources = open_sources(data, config.seed)
        process, batch_size = (accelerator.process_index, accelerator.num_processes), config.train.batch_size
        held_out = open_store(data, sources[1], "held-out", config.seed, stage, accelerator, False)
        self.images: ImageBatches | None = None
        if config.first_stage.keep_latents:
            self.store = open_store(data, sources[0], "train", config.seed, stage, accelerator, data.random_flip)
            self.stream, std = LatentBatches(self.store, config.seed, batch_size, process), self.store.std
            self.examples_per_epoch = len(self.store)
        else:
            images = Images(sources[0], data.resolution, data.num_workers, data.channels)
            self.images = ImageBatches(images, config.seed, batch_size, process)
            self.stream, std = EncodedBatches(self.images, stage, device, data.random_flip, config.seed), held_out.std
            # Counting a stream means reading it.
            self.examples_per_epoch = self.images.length = sources[0].length() if config.train.max_steps is None else None
        if (message := stage.choose_scale(1 / std)) and accelerator.is_main_process:
            print(message)
        self.first_stage, self.scale = stage.model, stage.scaling_factor
        self.built_on = f"{stage.fingerprint()} x {self.scale:.6g}"
        count = min(config.train.num_eval_images, len(held_out))
        super().__init__(config, accelerator, held_out.get(np.arange(count)) * self.scale)

    @property
    def corrupt(self) -> int:
        """Images that could not be read so far."""
        return self.images.images.corrupt if self.images else self.store.corrupt

    def x0(self, batch: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, None]:
        """Latents (B, C, h, w), scaled."""
        return batch * self.scale, None

    def export(self, folder: Path) -> None:
        """pipeline/, a standard LDMPipeline folder."""
        model = self.model()
        LDMPipeline(vqvae=model.first_stage, unet=model.unet, scheduler=model.scheduler).save_pretrained(folder / "pipeline")

    def facts(self) -> dict[str, Any]:
        """See DiffusionTask.facts."""
        length = self.images.length if self.images else len(self.store)
        stage = {"first_stage": self.config.first_stage.path, "scaling_factor": self.scale}
        return {**super().facts(), "train_images": length, **stage}
