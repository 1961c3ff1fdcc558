"""Training a denoiser on latents that were encoded once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, LDMPipeline
from diffusers.training_utils import EMAModel
from torch import nn

from tinyldm import pictures
from tinyldm.config import TrainLDM
from tinyldm.denoiser import make_denoiser, make_scheduler, use_xformers
from tinyldm.first_stage import load_first_stage
from tinyldm.latents import LatentBatches, open_store
from tinyldm.objective import diffusion_loss, draw_timesteps, error_in_v
from tinyldm.randomness import Draw, derive_seed
from tinyldm.sampling import Model, denoise, generators, initial_noise, to_images
from tinyldm.sources import open_sources
from tinyldm.trainer import Losses

BINS = 4  # held-out loss by quarter of the timesteps: where does the model learn?


class DiffusionTask:
    """See trainer.Task."""

    card = "ldm"

    def __init__(self, config: TrainLDM, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        device = accelerator.device
        self.first_stage = load_first_stage(config.first_stage)
        side = self.first_stage.check_resolution(config.data.resolution)
        torch.manual_seed(config.seed)
        unet = make_denoiser(config.unet, side, self.first_stage.channels)
        use_xformers(unet, config.train)
        self.networks: dict[str, nn.Module] = {"unet": unet}
        self.learning_rates = {"unet": config.train.learning_rate}
        self.scheduler = make_scheduler(config.scheduler)

        self.first_stage.model.to(device)
        sources = open_sources(config.data, config.seed)
        mirrored = (config.data.random_flip, False)
        with accelerator.main_process_first():  # the others find the store that the main process has built
            train, held_out = (
                open_store(config.data, source, part, config.seed, self.first_stage, device, flip)
                for source, part, flip in zip(sources, ("train", "held-out"), mirrored, strict=True)
            )
        if (message := self.first_stage.choose_scale(1 / train.std)) and accelerator.is_main_process:
            print(message)
        self.scale = self.first_stage.scaling_factor
        self.built_on = f"{self.first_stage.fingerprint()} x {self.scale:.6g}"
        self.stream = LatentBatches(
            train, config.seed, config.train.batch_size, (accelerator.process_index, accelerator.num_processes)
        )
        self.examples_per_epoch, self.corrupt = len(train), train.corrupt

        # Held-out images, noise and timesteps are the same at each evaluation, so that its losses can be compared.
        count = min(config.train.num_eval_images, len(held_out))
        fixed = torch.Generator().manual_seed(derive_seed("held out", config.seed))
        self.eval_latents = held_out.get(torch.arange(count).numpy()) * self.scale
        self.eval_noise = torch.randn(self.eval_latents.shape, generator=fixed)
        spread = (torch.randperm(count, generator=fixed) + 0.5) / count
        self.eval_timesteps = (spread * config.scheduler.num_train_timesteps).long()

    def batches(self, start: int) -> Iterator[torch.Tensor]:
        """Latents (B, C, h, w), unscaled."""
        return self.stream(start)

    def losses(self, batch: torch.Tensor, step: int, draw: Draw) -> Losses:
        """The diffusion loss of a batch at timesteps and with noise drawn for it."""
        x0 = batch * self.scale
        noise = draw.normal(x0.shape)
        timesteps = draw_timesteps(self.scheduler, len(x0), draw)
        errors = diffusion_loss(self.networks["unet"], self.scheduler, x0, noise, timesteps, self.config.diffusion.snr_gamma)
        yield "unet", errors.mean(), {"loss": errors.mean()}

    def after_step(self, step: int, draw: Draw, ema: EMAModel) -> None:
        """Nothing to do."""

    def evaluate(self, process: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Sums of the error in units of v, in all and by quarter of the timesteps."""
        rank, processes = process
        device = self.accelerator.device
        sums = torch.zeros(2, BINS, device=device)
        parts = (self.eval_latents, self.eval_noise, self.eval_timesteps)
        mine = [part[rank::processes].split(self.config.train.batch_size) for part in parts if len(part) > rank]
        unet = self.accelerator.unwrap_model(self.networks["unet"])  # processes may hold unequal shares
        for x0, noise, timesteps in zip(*mine, strict=True):
            x0, noise, timesteps = x0.to(device), noise.to(device), timesteps.to(device)
            errors = diffusion_loss(unet, self.scheduler, x0, noise, timesteps, None)
            errors = errors * error_in_v(self.scheduler, timesteps)
            bins = timesteps * BINS // self.scheduler.config.num_train_timesteps
            sums[0].index_add_(0, bins, errors)
            sums[1].index_add_(0, bins, torch.ones_like(errors))
        return {"errors": sums[0], "count": sums[1]}

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Means: `eval_loss`, and `eval_loss_q1` (least noise) to `eval_loss_q4`."""
        errors, count = sums["errors"].tolist(), sums["count"].tolist()
        quarters = {f"eval_loss_q{i + 1}": errors[i] / count[i] for i in range(BINS) if count[i]}
        return {"eval_loss": sum(errors) / sum(count), **quarters}

    def model(self) -> Model:
        """What sampling needs, around the current weights; the sampler that is shipped is DDIM."""
        sampler = DDIMScheduler.from_config(self.scheduler.config)
        return Model(self.accelerator.unwrap_model(self.networks["unet"]), sampler, self.first_stage.model)

    def picture(self, path: Path) -> None:
        """Images from fixed noise, from generators of their own."""
        model, random = self.model(), generators(0, self.config.diffusion.preview_images)
        x0 = denoise(model, initial_noise(model.unet, random), self.config.diffusion.preview_steps)
        pictures.grid(to_images(model, x0)).save(path)

    def export(self, folder: Path) -> None:
        """pipeline/, a standard LDMPipeline folder."""
        model = self.model()
        LDMPipeline(vqvae=model.first_stage, unet=model.unet, scheduler=model.scheduler).save_pretrained(folder / "pipeline")

    def facts(self) -> dict[str, Any]:
        """For model_cards/ldm.md."""
        channels, side = self.eval_latents.shape[1:3]
        return {
            "latent_shape": f"{channels} x {side} x {side}",
            "train_images": self.examples_per_epoch,
            "corrupt": self.corrupt,
            "first_stage": self.config.first_stage.path,
            "scaling_factor": self.scale,
            "prediction_type": self.config.scheduler.prediction_type,
            "snr_gamma": self.config.diffusion.snr_gamma,
            "eval_images": len(self.eval_latents),
        }
