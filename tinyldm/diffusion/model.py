"""A trained model: loading it, its sampler, and turning x_0 into images."""

import contextlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel, VQModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tinyldm.config.schema import SamplerSettings
from tinyldm.diffusion.conditioning import check_class_label, class_number, load_class_names, number_of_classes
from tinyldm.diffusion.denoiser import Denoiser, try_denoiser
from tinyldm.diffusion.process import Process, process_of
from tinyldm.errors import UserError, boundary
from tinyldm.first_stage.autoencoder import AutoencoderModel, check_autoencoder
from tinyldm.limits import check_finite, check_numbers, read_text
from tinyldm.remote import from_hub, may_be_hub_id
from tinyldm.training.power_ema import reconstruct

LARGEST = 2**28  # numbers in x_0
DECODED_AT_ONCE = 2**14  # latent positions: 64 images of 64 px through an f4, or 4 of 256 px


@dataclass
class Model:
    """A network with its process and, for latent diffusion, its first stage."""

    unet: UNet2DModel
    process: Process
    first_stage: AutoencoderModel | None
    class_names: list[str] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.unet.parameters()).dtype

    @property
    def denoiser(self) -> Denoiser:
        """The network as samplers and losses call it."""
        return Denoiser(self.unet)

    def class_label(self, settings: SamplerSettings) -> int | None:
        """The number of the class that these settings name; None: any.

        Raises:
            UserError: for a class that this model does not have.
        """
        number = settings.class_label if settings.label is None else class_number(self.class_names, settings.label)
        check_class_label(self.unet, number)
        return number

    def sampler(self, settings: SamplerSettings) -> SchedulerMixin:
        """The diffusers scheduler that these settings ask for, with its timesteps set.

        Raises:
            UserError: for a sampler that cannot reverse this process, an eta that the sampler does not have, more steps than
                the process has, or a class that the network does not have.
        """
        self.class_label(settings)
        sampler = self.process.sampler(settings.scheduler)
        steps = sampler.config.num_train_timesteps
        if settings.num_inference_steps > steps:
            raise UserError(f"num_inference_steps is {settings.num_inference_steps}; this model has {steps} timesteps")
        if settings.eta and "eta" not in inspect.signature(sampler.step).parameters:
            raise UserError(f"eta only applies to DDIM, not {type(sampler).__name__}: remove it or use --scheduler ddim")
        with boundary("the model's scheduler cannot sample"):
            set_steps(sampler, settings.num_inference_steps, self.device)
        return sampler

    def sampler_facts(self, settings: SamplerSettings) -> dict[str, Any]:
        """The settings that the samples depend on besides the weights and the seed, as JSON."""
        sampler = self.sampler(settings)
        config = {key: value for key, value in sorted(sampler.config.items()) if not key.startswith("_")}
        return {
            "sampler": type(sampler).__name__,
            "num_inference_steps": settings.num_inference_steps,
            "eta": settings.eta,
            **({} if self.class_label(settings) is None else {"class_label": self.class_label(settings)}),
            "scheduler_config": config,
        }


def set_steps(sampler: SchedulerMixin, count: int, device: torch.device) -> None:
    """Set the timesteps of a sampler that takes `count` steps, and repair diffusers' lists of them.

    Raises:
        UserError: where its list does not go down to less noise in every step.
    """
    refusal = f"{type(sampler).__name__} cannot take {count} steps with this schedule: use fewer, or another --scheduler"
    try:
        sampler.set_timesteps(count, device=device)
    except (IndexError, AssertionError) as error:
        raise UserError(refusal) from error
    kept = int((sampler.timesteps >= 0).sum())
    if kept < len(sampler.timesteps):  # the rounding of `trailing` adds a timestep of -1 for 61 steps of 1,000 and others
        sampler.timesteps, sampler.num_inference_steps = sampler.timesteps[:kept], count
        if hasattr(sampler, "sigmas"):
            sampler.sigmas = torch.cat([sampler.sigmas[:kept], sampler.sigmas[-1:]])
    if hasattr(sampler, "sigmas") and sampler.sigmas[0] < sampler.sigmas[1]:
        sampler.sigmas[0] = 2 * sampler.sigmas[1]  # zero SNR is an infinite sigma; the 4,096 that stands for it is too small
    levels = sampler.timesteps.unique_consecutive()  # Heun's method visits most of them twice
    beyond = hasattr(sampler, "alphas_cumprod") and levels[0] >= len(sampler.alphas_cumprod)
    if len(levels) != count or beyond or (levels.diff() >= 0).any():
        raise UserError(refusal)


def load_model(path: str, device: str = "cpu", dtype: torch.dtype = torch.float32, ema: float | None = None) -> Model:
    """Load a run of ours, a diffusers pipeline folder, or a Hub id.

    Args:
        ema: the relative width of another average of a run's weights; see training/power_ema.py.

    Raises:
        UserError: if it is not one of these, or its files are damaged.
    """
    local, averaged = Path(path).expanduser(), None if ema is None else reconstruct(path, ema)
    source: contextlib.AbstractContextManager[bool] = contextlib.nullcontext(True)
    if local.is_dir():
        if (local / "pipeline").is_dir():
            local = local / "pipeline"
        if not (local / "model_index.json").exists():
            raise UserError(f"{path} is not a model folder: neither a run with pipeline/ nor a pipeline with model_index.json")
        name = str(local)
    elif local.exists() or not may_be_hub_id(path):
        raise UserError(f"model folder {path} does not exist: train it first, or give a run, a pipeline folder or a Hub id")
    else:
        name, source = path, from_hub(path)
    where = "is damaged or incomplete" if local.is_dir() else "cannot be loaded"
    with boundary(f"model {path} {where}", "give a run, a pipeline folder, or a Hub id"):
        for config in local.glob("*/*.json") if local.is_dir() else ():
            check_numbers(json.loads(read_text(config)))
        with source as on_disk:
            pipeline = DiffusionPipeline.from_pretrained(name, dtype=dtype, local_files_only=on_disk)
        parts = pipeline.components
        unet, first_stage = parts.get("unet"), parts.get("vqvae") or parts.get("vae")
        if not isinstance(unet, UNet2DModel) or parts.get("scheduler") is None:
            raise UserError(
                f"model {path} is a {type(pipeline).__name__} of {', '.join(parts)}; sampling needs a UNet2DModel and a "
                "scheduler"
            )
        process = process_of(parts["scheduler"])
        if averaged is not None:
            with boundary(f"the snapshots of {path} are of another network than its model", "remove --ema"):
                unet.load_state_dict(averaged)
        _check(unet, first_stage, f" in {str(dtype).removeprefix('torch.')}")
    if isinstance(first_stage, VQModel):
        first_stage.float()  # in half precision some latents would be assigned another code
    with boundary(f"device {device!r} cannot be used"):
        unet, first_stage = (part and part.to(device).eval() for part in (unet, first_stage))
    names = load_class_names(name) if number_of_classes(unet) else None
    return Model(unet, process, first_stage, names)


def _check(unet: UNet2DModel, first_stage: AutoencoderModel | None, precision: str) -> None:
    """Raise an exception for weights that are missing or not finite, or a network that does not run."""
    for part in filter(None, (unet, first_stage)):
        if missing := [name for name, weight in part.named_parameters() if weight.is_meta]:
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} for one")
    check_finite(unet.state_dict(), precision)
    if first_stage is not None:
        check_autoencoder(first_stage)
    config = unet.config
    if config.in_channels * config.sample_size**2 > LARGEST:
        raise ValueError(f"it draws images of side {config.sample_size}")
    try_denoiser(config, config.sample_size, config.in_channels, config.num_class_embeds)


def decoded_at_once(positions: int) -> int:
    """How many latents with this many positions are decoded at once."""
    return max(1, DECODED_AT_ONCE // positions)


@torch.no_grad()
def to_images(model: Model, x0: torch.Tensor) -> torch.Tensor:
    """x_0 -> uint8 images (B, 3, H, W): decoded if there is a first stage, clamped and rounded.

    The operations are those of diffusers' pipelines, so the images are the same bit for bit. A decoder's activations take
    hundreds of times the memory of its latents, so it decodes a few latents at a time.

    Raises:
        UserError: if a value is not finite.
    """
    if model.first_stage is not None:
        x0 = x0.to(model.first_stage.dtype) / model.first_stage.config.scaling_factor
        few = decoded_at_once(x0[0, 0].numel())
        x0 = torch.cat([model.first_stage.decode(part).sample for part in x0.split(few)])
    if not x0.isfinite().all():  # they would be rounded to black pixels
        raise UserError("the images are not finite: the weights are damaged or do not fit their precision (--dtype float32)")
    return ((x0.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
