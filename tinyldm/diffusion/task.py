"""Training a denoiser, of latents or of pixels: what both have in common. See latent_task.py and pixel_task.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from torch import nn

from tinyldm import pictures
from tinyldm.config.schema import TrainDDPM, TrainLDM
from tinyldm.diffusion.bound import learns_variance
from tinyldm.diffusion.conditioning import cycle_labels
from tinyldm.diffusion.denoiser import make_denoiser, switch_on
from tinyldm.diffusion.model import Model, to_images
from tinyldm.diffusion.objective import diffusion_loss, held_out_error
from tinyldm.diffusion.process import LossHistory, draw_timesteps, make_scheduler
from tinyldm.diffusion.sampling import denoise, generators, initial_noise, sample
from tinyldm.randomness import Draw, derive_seed
from tinyldm.training.trainer import Losses

BINS = 4  # held-out loss by quarter of the timesteps: where does the model learn?


class DiffusionTask:
    """See trainer.Task. A subclass sets `stream`, `examples_per_epoch`, `corrupt` and `built_on` and says what x_0 is.

    Args:
        eval_x0: held-out images or latents (N, C, S, S), as the network sees them.
        eval_labels: their classes (N,), for a network that knows them.
        classes: their number.
    """

    card: str
    built_on: str
    first_stage: nn.Module | None = None

    def __init__(
        self,
        config: TrainLDM | TrainDDPM,
        accelerator: Accelerator,
        eval_x0: torch.Tensor,
        eval_labels: torch.Tensor | None = None,
        classes: int | None = None,
    ):
        self.config, self.accelerator = config, accelerator
        self.scheduler = make_scheduler(config.scheduler)
        torch.manual_seed(config.seed)
        channels, side = eval_x0.shape[1:3]
        unet = make_denoiser(config.unet, side, channels, classes, learns_variance(self.scheduler))
        switch_on(unet, config.train)
        self.networks: dict[str, nn.Module] = {"unet": unet}
        self.learning_rates = {"unet": config.train.learning_rate}
        self.history = LossHistory(config.scheduler.num_train_timesteps)
        self.buffers = {"history": self.history.losses} if config.diffusion.loss == "bound" else {}

        # Held-out images, noise and timesteps are the same at each evaluation, so that its losses can be compared.
        fixed = torch.Generator().manual_seed(derive_seed("held out", config.seed))
        noise = torch.randn(eval_x0.shape, generator=fixed)
        spread = (torch.randperm(len(eval_x0), generator=fixed) + 0.5) / len(eval_x0)
        timesteps = (spread * config.scheduler.num_train_timesteps).long()
        self.held_out = [eval_x0, noise, timesteps] + ([] if eval_labels is None else [eval_labels])

    def batches(self, start: int) -> Iterator[Any]:
        """What `stream` gives."""
        return self.stream(start)

    def x0(self, batch: Any, draw: Draw) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What is to be noised (B, C, S, S), and its labels (B,) or None."""
        raise NotImplementedError

    def timesteps(self, count: int, draw: Draw) -> torch.Tensor:
        """Which ones (count,) a batch learns from."""
        return draw_timesteps(self.scheduler, count, draw)

    def losses(self, batch: Any, step: int, draw: Draw) -> Losses:
        """The diffusion loss of a batch at timesteps and with noise drawn for it."""
        x0, labels = self.x0(batch, draw)
        noise = draw.normal(x0.shape)
        kind, gamma = self.config.diffusion.loss, self.config.diffusion.snr_gamma
        if kind == "bound":
            timesteps, weights = (part.to(x0.device) for part in self.history.draw(len(x0), draw))
        else:
            timesteps, weights = self.timesteps(len(x0), draw), 1.0
        losses = diffusion_loss(self.networks["unet"], self.scheduler, x0, noise, timesteps, gamma, kind, labels)
        if kind == "bound":
            self.history.update(*(self.accelerator.gather(part) for part in (timesteps, losses.detach())))
        loss = (weights * losses).mean()
        yield "unet", loss, {"loss": loss}

    def after_step(self, step: int, draw: Draw, ema: EMAModel) -> None:
        """Nothing to do."""

    def my_held_out(self, process: tuple[int, int]) -> Iterator[list[torch.Tensor]]:
        """Batches of this process's share of [x_0, noise, timesteps, perhaps labels], on the device."""
        rank, processes = process
        size = self.config.train.batch_size
        for parts in zip(*(part[rank::processes].split(size) for part in self.held_out if len(part) > rank), strict=True):
            yield [part.to(self.accelerator.device) for part in parts]

    def evaluate(self, process: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Sums of the error in units of v, in all and by quarter of the timesteps."""
        sums = torch.zeros(2, BINS, device=self.accelerator.device)
        unet = self.accelerator.unwrap_model(self.networks["unet"])  # processes may hold unequal shares
        for x0, noise, timesteps, *labels in self.my_held_out(process):
            errors = held_out_error(unet, self.scheduler, x0, noise, timesteps, *labels)
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
        """What sampling needs, around the current weights, with DDIM."""
        sampler = DDIMScheduler.from_config(self.scheduler.config)
        return Model(self.accelerator.unwrap_model(self.networks["unet"]), sampler, self.first_stage)

    def picture(self, path: Path) -> None:
        """Images from fixed noise, from generators of their own."""
        model, random = self.model(), generators(0, self.config.diffusion.preview_images)
        labels = cycle_labels(model.unet, 0, len(random))
        x0 = denoise(model, initial_noise(model.unet, random), self.config.diffusion.preview_steps, labels=labels)
        pictures.grid(to_images(model, x0)).save(path)

    def make_images(self, count: int, process: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Samples of seeds 0, 1, ... with DDIM: this process's share."""
        first, after = (count * (process[0] + i) // process[1] for i in (0, 1))
        steps = self.config.diffusion.preview_steps
        for batch in sample(self.model(), after - first, self.config.train.batch_size, first, steps):
            yield batch.expand(-1, 3, -1, -1)  # grey ones as well

    def facts(self) -> dict[str, Any]:
        """For the templates in model_cards/."""
        channels, side = self.held_out[0].shape[1:3]
        return {
            "shape": f"{channels} x {side} x {side}",
            "corrupt": self.corrupt,
            "prediction_type": self.config.scheduler.prediction_type,
            "loss": self.config.diffusion.loss,
            "snr_gamma": self.config.diffusion.snr_gamma,
            "eval_images": len(self.held_out[0]),
        }
