"""Training a denoiser on the pixels themselves (Ho et al. 2020), with its bound in bits per dimension."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline

from tinyldm.config.schema import TrainDDPM
from tinyldm.data.images import Examples, ImageBatches, Images, first_examples, mirror_half, to_float
from tinyldm.data.sources import open_sources
from tinyldm.diffusion.bound import prior_bits, step_bits
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.randomness import Draw, derive_seed

TIMESTEPS_PER_IMAGE = 8  # of the bound's steps, at each evaluation


class PixelTask(DiffusionTask):
    """See DiffusionTask: x_0 are images in [-1, 1]."""

    card, built_on = "ddpm", ""

    def __init__(self, config: TrainDDPM, accelerator: Accelerator):
        data = config.data
        sources = open_sources(data, config.seed)
        self.images, held_out = (Images(part, data.resolution, data.num_workers, data.channels) for part in sources)
        process = (accelerator.process_index, accelerator.num_processes)
        self.stream = ImageBatches(self.images, config.seed, config.train.batch_size, process)
        # Counting a stream means reading it.
        self.examples_per_epoch = self.stream.length = sources[0].length() if config.train.max_steps is None else None
        images, labels = first_examples(held_out, config.train.num_eval_images)
        self.classes = sources[0].classes
        super().__init__(config, accelerator, to_float(images), labels if self.classes else None, self.classes)

    @property
    def corrupt(self) -> int:
        """Images that could not be read so far."""
        return self.images.corrupt

    def x0(self, batch: Examples, draw: Draw) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images (B, C, S, S), half of them mirrored where that is wanted."""
        images = to_float(batch.images)
        if self.config.data.random_flip:
            images = mirror_half(images, draw)
        return images, batch.labels if self.config.data.label_column else None

    def evaluate(self, process: tuple[int, int]) -> dict[str, torch.Tensor]:
        """See DiffusionTask.evaluate; and sums of the terms of the bound."""
        sums = super().evaluate(process)
        unet, device = self.accelerator.unwrap_model(self.networks["unet"]), self.accelerator.device
        steps = self.scheduler.config.num_train_timesteps
        fixed = torch.Generator().manual_seed(derive_seed("bound", self.config.seed, process[0]))
        terms = {key: torch.zeros((), device=device) for key in ("prior", "steps", "decoder")}
        for x0, _, _, *labels in self.my_held_out(process):
            classes = labels[0] if labels else None
            terms["prior"] += prior_bits(self.scheduler, x0).sum()
            for part in range(TIMESTEPS_PER_IMAGE + 1):
                # Timestep 0 once, it is the decoder; the others in as many equal parts, one of each part for each image.
                spread = (part - 1 + torch.rand(len(x0), generator=fixed)) / TIMESTEPS_PER_IMAGE
                timesteps = (1 + spread * (steps - 1)).long().clamp(max=steps - 1) if part else torch.zeros(len(x0)).long()
                timesteps, noise = timesteps.to(device), torch.randn(x0.shape, generator=fixed).to(device)
                x_t = self.scheduler.add_noise(x0, noise, timesteps)
                predicted = unet(x_t, timesteps, class_labels=classes).sample.float()
                bits = step_bits(self.scheduler, predicted, x0, x_t, timesteps).sum()
                terms["steps" if part else "decoder"] += bits * ((steps - 1) / TIMESTEPS_PER_IMAGE if part else 1)
        return {**sums, **terms}

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """See DiffusionTask.summarize; and `eval_bits` per dimension with its three terms."""
        terms = {f"eval_bits_{key}": float(sums[key] / sums["count"].sum()) for key in ("prior", "steps", "decoder")}
        return {**super().summarize(sums), "eval_bits": sum(terms.values()), **terms}

    def export(self, folder: Path) -> None:
        """pipeline/, a standard DDPMPipeline folder; its DDPMScheduler knows learned variances too."""
        unet = self.accelerator.unwrap_model(self.networks["unet"])
        DDPMPipeline(unet=unet, scheduler=self.scheduler).save_pretrained(folder / "pipeline")

    def facts(self) -> dict[str, Any]:
        """See DiffusionTask.facts."""
        scheduler = self.config.scheduler
        return {
            **super().facts(),
            "train_images": self.stream.length,
            "schedule": f"{scheduler.beta_schedule}, {scheduler.num_train_timesteps} timesteps",
            "timesteps": scheduler.num_train_timesteps,
            "variance": scheduler.variance_type,
            "classes": self.classes,
            "timesteps_per_image": TIMESTEPS_PER_IMAGE,
        }
