"""Training a denoiser on latents that were encoded once."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import LDMPipeline

from tinyldm.config import TrainLDM
from tinyldm.diffusion_task import DiffusionTask
from tinyldm.errors import UserError
from tinyldm.first_stage import load_first_stage
from tinyldm.latents import LatentBatches, open_store
from tinyldm.randomness import Draw
from tinyldm.sources import open_sources


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
        mirrored = (data.random_flip, False)
        with accelerator.main_process_first():  # the others find the store that the main process has built
            train, held_out = (
                open_store(data, source, part, config.seed, stage, device, flip)
                for source, part, flip in zip(sources, ("train", "held-out"), mirrored, strict=True)
            )
        if (message := stage.choose_scale(1 / train.std)) and accelerator.is_main_process:
            print(message)
        self.first_stage, self.scale = stage.model, stage.scaling_factor
        self.built_on = f"{stage.fingerprint()} x {self.scale:.6g}"
        process = (accelerator.process_index, accelerator.num_processes)
        self.stream = LatentBatches(train, config.seed, config.train.batch_size, process)
        self.examples_per_epoch, self.corrupt = len(train), train.corrupt
        count = min(config.train.num_eval_images, len(held_out))
        super().__init__(config, accelerator, held_out.get(torch.arange(count).numpy()) * self.scale)

    def x0(self, batch: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, None]:
        """Latents (B, C, h, w), scaled."""
        return batch * self.scale, None

    def export(self, folder: Path) -> None:
        """pipeline/, a standard LDMPipeline folder."""
        model = self.model()
        LDMPipeline(vqvae=model.first_stage, unet=model.unet, scheduler=model.scheduler).save_pretrained(folder / "pipeline")

    def facts(self) -> dict[str, Any]:
        """See DiffusionTask.facts."""
        return {**super().facts(), "first_stage": self.config.first_stage.path, "scaling_factor": self.scale}
