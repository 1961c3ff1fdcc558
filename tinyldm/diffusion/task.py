"""Training a denoiser: what latent_task.py and pixel_task.py have in common."""

import copy
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm

from tinyldm import pictures
from tinyldm.config.schema import DiffusionTraining, Sampler, SamplerSettings
from tinyldm.data.batch import Batch, Condition
from tinyldm.diffusion.init_from import start_from
from tinyldm.diffusion.noisy_task import NoisyTask
from tinyldm.diffusion.objective import diffusion_loss, error_of, loss_of
from tinyldm.diffusion.training_data import TrainingData
from tinyldm.drawing.sampling import denoise, generators, initial_noise, sample
from tinyldm.models.conditioning import augment, drop_labels, preview_condition
from tinyldm.models.denoiser import make_denoiser, switch_on
from tinyldm.models.model import Model, to_images
from tinyldm.process.discrete_vp import DiscreteVP, LossHistory, discrete
from tinyldm.randomness import Draw
from tinyldm.training import checkpoint
from tinyldm.training.task import Losses

PREVIEW_SCALE = 2.0  # the guidance scale until one is measured
FAST: tuple[Sampler, int] = ("dpm-solver++", 20)  # sampler and steps to compare guidance scales with
BINS = 4  # the held-out loss is also reported per quarter of the way from image to noise


class DiffusionTask(NoisyTask):
    """See NoisyTask. The network is conditioned on the labels of the data."""

    def __init__(self, config: DiffusionTraining, accelerator: Accelerator, opened: TrainingData):
        super().__init__(config, accelerator, opened)
        self.config, self.first_stage, held_out, labels = config, opened.first_stage, opened.held_out, opened.labels
        torch.manual_seed(config.seed)
        channels, side = held_out.x.shape[1:3]
        small = None
        if held_out.condition.low_resolution is not None:
            assert config.condition.low_resolution
            low_channels = held_out.condition.low_resolution.shape[1]
            small = config.condition.low_resolution, low_channels, config.condition.augmentation
        learns, rows, augment = self.process.learns_variance, len(held_out.x), config.data.augment > 0
        denoiser = make_denoiser(config.unet, side, channels, labels, learns, rows, small, augment)
        if config.init_from is not None and checkpoint.starts_anew(config):
            for note in start_from(denoiser, config.init_from, self.process, opened.first_stage):
                if self.rank.index == 0:
                    print(note)
        if denoiser.labels is not None:
            denoiser.labels.rows = held_out.condition.labels
        switch_on(denoiser, config.train)
        self.networks, self.gamma = {"denoiser": denoiser}, config.diffusion.gamma(self.process.kind)
        # The guide, the step it was taken at (0: not yet) and the guidance scale (nan: not measured).
        self.guide = None if self.config.guide_step(1) == 0 else copy.deepcopy(denoiser).to(accelerator.device).eval()
        self.guided_since, self.guidance_scale = torch.tensor(0), torch.tensor(math.nan, dtype=torch.float64)
        self.learning_rates = {"denoiser": config.train.learning_rate}
        self.history = LossHistory(discrete(self.process).steps) if config.diffusion.loss == "bound" else None
        self.buffers = {"history": self.history.losses} if self.history else {}
        self.buffers |= {"guided_since": self.guided_since, "guidance_scale": self.guidance_scale}
        if self.guide is not None:
            self.buffers |= {f"guide.{name}": value for name, value in self.guide.state_dict().items()}

    def losses(self, batch: Batch, step: int, draw: Draw) -> Losses:
        """The diffusion loss of a batch, with random times and noise."""
        x0, condition = self.opened.example(batch, draw)
        noise = draw.normal(x0.shape)
        kind, gamma = self.config.diffusion.loss, self.gamma
        weights: torch.Tensor | float = 1.0
        if self.history:
            times, weights = (part.to(x0.device) for part in self.history.draw(len(x0), draw))
        else:
            times = self.process.draw_times(len(x0), draw)
        condition = self.augmented(drop_labels(condition, self.config.condition, draw), draw)
        losses = diffusion_loss(self.networks["denoiser"], self.process, x0, noise, times, gamma, kind, condition)
        if self.history:
            self.history.update(*(self.accelerator.gather(part) for part in (times, losses.detach())))
        loss = (weights * losses).mean()
        yield "denoiser", loss, {"loss": loss}

    def augmented(self, condition: Condition, draw: Draw) -> Condition:
        """The condition with noise of a random level in its low-resolution images, if it has some."""
        small = condition.low_resolution
        if small is None:
            return condition
        return augment(condition, self.config.condition.augmentation * draw.uniform(len(small)), draw.normal(small.shape))

    def after_step(self, step: int, draw: Draw, ema: EMAModel) -> None:
        """Keep the averaged weights as the guide."""
        # A resumed run with another length may be past the step already.
        if self.guide is not None and not self.guided_since and step >= self.config.guide_step(self.max_steps):
            ema.copy_to(self.guide.parameters())
            self.guided_since.fill_(step)

    def finish(self, distance: Callable[[Iterator[torch.Tensor]], float]) -> dict[str, float]:
        """Choose the guidance scale. Scales are tried from the smallest on, until the distance rises."""
        config, model, found = self.config.guidance, self.model(), dict[float, float]()
        if config.scale is not None or (model.guide is None and model.labels is None):
            return {}
        for scale in sorted(config.scales):
            settings = replace(self.preview, scheduler=FAST[0], num_inference_steps=FAST[1], guidance_scale=scale)
            batches = tqdm(
                self._make_images(config.num_images, settings),
                f"trying guidance scale {scale:g}",
                math.ceil(config.num_images / self.config.train.batch_size / self.rank.count),
                unit="batch",
                leave=False,
                disable=self.rank.index > 0,
            )
            found[scale] = distance(batches)
            if found[scale] > min(found.values()):
                break
        best = min(found, key=found.__getitem__)
        self.guidance_scale.fill_(best)
        if self.rank.index == 0:
            listed = ", ".join(f"{value:.4g} at {scale:g}" for scale, value in found.items())
            tqdm.write(f"guidance: Frechet distance {listed}: scale {best:g} is stored with the model", file=sys.stderr)
        without = {"fd_unguided": found[1.0]} if 1.0 in found else {}
        return {"guidance_scale": best, "fd_guided": found[best], **without}

    # -------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Sums of the error in units of v, by quarter of the way from image to noise, and of the loss that is trained."""
        sums, trained = torch.zeros(2, BINS, device=self.accelerator.device), torch.zeros((), device=self.accelerator.device)
        kind, gamma = self.config.diffusion.loss, self.gamma
        denoiser = self.model().denoiser  # the bare network: ranks may hold unequal shares
        for (x0, condition), noise, times in self.my_held_out():
            x_t = self.process.noisy(x0, noise, times)
            predicted = denoiser(*self.process.inputs(x_t, times), condition).float()
            errors = error_of(self.process, predicted, x0, x_t, times)
            trained += loss_of(self.process, predicted, x0, x_t, noise, times, gamma, kind).sum()
            bins = (self.process.fraction(times) * BINS).long()
            sums[0].index_add_(0, bins, errors)
            sums[1].index_add_(0, bins, torch.ones_like(errors))
        return {"errors": sums[0], "count": sums[1], "trained": trained}

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Means: `eval_loss`, `eval_loss_q1` (least noise) to `eval_loss_q4`, and `eval_loss_as_trained`."""
        errors, count = sums["errors"].tolist(), sums["count"].tolist()
        quarters = {f"eval_loss_q{i + 1}": errors[i] / count[i] for i in range(BINS) if count[i]}
        trained = float(sums["trained"]) / sum(count)
        return {"eval_loss": sum(errors) / sum(count), "eval_loss_as_trained": trained, **quarters}

    # ---------------------------------------------------------------------------------------------------- pictures

    def model(self) -> Model:
        """The current weights, as sampling needs them."""
        guide = self.guide if self.guided_since else None
        denoiser = self.accelerator.unwrap_model(self.networks["denoiser"])
        small = self.held_out.condition.low_resolution
        if guide is None and denoiser.labels is None:
            return Model(denoiser, self.process, self.first_stage, small=small)
        measured = None if self.guidance_scale.isnan() else float(self.guidance_scale)
        scale = self.config.guidance.scale or measured or PREVIEW_SCALE
        return Model(denoiser, self.process, self.first_stage, guide, scale, small=small)

    @property
    def preview(self) -> SamplerSettings:
        """Sampler settings for images during training."""
        return SamplerSettings(scheduler=self.process.deterministic, num_inference_steps=self.config.diffusion.preview_steps)

    def picture(self, path: Path) -> None:
        """Draw images from fixed noise, with separate generators."""
        self._preview(self.preview).save(path)

    def rehearse(self) -> None:
        """See Task.rehearse: a picture of one denoising step."""
        self.model().sampler(self.preview)  # an error where the sampler cannot take so many steps
        self._preview(replace(self.preview, num_inference_steps=1)).save(BytesIO(), "PNG")

    def _preview(self, settings: SamplerSettings) -> Image.Image:
        model, random = self.model(), generators(0, self.config.diffusion.preview_images)
        condition = preview_condition(model.labels, len(random))
        if model.low_resolution is not None:
            condition = replace(model.condition(range(len(random)), settings), labels=condition.labels)
        x0 = denoise(model, initial_noise(model, random), settings, condition=condition)
        return pictures.grid(to_images(model, x0))

    def make_images(self, count: int) -> Iterator[torch.Tensor]:
        """See Task.make_images. Without guidance, so that runs can be compared; with labels as the held-out images have."""
        yield from self._make_images(count, replace(self.preview, guidance_scale=1.0))

    def _make_images(self, count: int, settings: SamplerSettings) -> Iterator[torch.Tensor]:
        """Samples of seeds 0, 1, ..., with labels as the held-out images have them: this rank's share."""
        first, after = (count * (self.rank.index + i) // self.rank.count for i in (0, 1))
        for batch in sample(self.model(), after - first, self.config.train.batch_size, first, settings):
            yield batch.expand(-1, 3, -1, -1)  # grey images too

    def facts(self) -> dict[str, Any]:
        """Values for the templates in model_cards/."""
        channels, side = self.held_out.x.shape[1:3]
        model, since = self.model(), int(self.guided_since)
        how = f"away from the averaged weights of step {since:,}" if since else "away from the prediction without labels"
        guidance = {"scale": model.scale, "how": how, "measured": not self.guidance_scale.isnan()}
        return {
            "shape": f"{channels} x {side} x {side}",
            "process": self.process.describe(),
            "timesteps": self.process.steps if isinstance(self.process, DiscreteVP) else None,
            "prediction_type": self.process.prediction,
            "loss": self.config.diffusion.loss,
            "snr_gamma": self.gamma,
            "eval_images": len(self.held_out.x),
            "labels": (labels := {} if model.labels is None else model.labels.values),
            "example": {name: values[-1] for name, values in [*labels.items()][:1]},
            "steps_to_draw": 50,
            "base": self.config.init_from,
            "guidance": guidance if model.guide or labels else None,
        }
