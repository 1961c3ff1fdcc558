"""A trained model: loading it, its sampler, and turning x_0 into images."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel, VQModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub.errors import HTTPError

from tinyldm.config.schema import SamplerSettings
from tinyldm.diffusion.conditioning import check_class_label
from tinyldm.diffusion.denoiser import Denoiser
from tinyldm.diffusion.process import Process, process_of
from tinyldm.errors import UserError, why
from tinyldm.first_stage.autoencoder import AutoencoderModel

DECODED_AT_ONCE = 2**14  # latent positions: 64 images of 64 px through an f4, or 4 of 256 px


@dataclass
class Model:
    """A network with its process and, for latent diffusion, its first stage."""

    unet: UNet2DModel
    process: Process
    first_stage: AutoencoderModel | None

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

    def sampler(self, settings: SamplerSettings) -> SchedulerMixin:
        """The diffusers scheduler that these settings ask for, with its timesteps set.

        Raises:
            UserError: for a sampler that cannot reverse this process, an eta that the sampler does not have, more steps than
                the process has, or a class that the network does not have.
        """
        check_class_label(self.unet, settings.class_label)
        sampler = self.process.sampler(settings.scheduler)
        steps = sampler.config.num_train_timesteps
        if settings.num_inference_steps > steps:
            raise UserError(f"num_inference_steps is {settings.num_inference_steps}; this model has {steps} timesteps")
        if settings.eta and "eta" not in inspect.signature(sampler.step).parameters:
            raise UserError(f"eta only applies to DDIM, not {type(sampler).__name__}: remove it or use --scheduler ddim")
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
            **({} if settings.class_label is None else {"class_label": settings.class_label}),
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


def load_model(path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Load a run of ours, a diffusers pipeline folder, or a Hub id.

    Raises:
        UserError: if it is not one of these, or its files are damaged.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if (local / "pipeline").is_dir():
            local = local / "pipeline"
        if not (local / "model_index.json").exists():
            raise UserError(f"{path} is not a model folder: neither a run with pipeline/ nor a pipeline with model_index.json")
    elif local.is_absolute() or path.startswith("."):
        raise UserError(f"model folder {path} does not exist")
    try:
        pipeline = DiffusionPipeline.from_pretrained(str(local) if local.is_dir() else path, dtype=dtype)
    except (OSError, HTTPError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:  # or nonsense in it
        where = "is damaged or incomplete" if local.is_dir() else "cannot be loaded: check the name and the network"
        raise UserError(f"model {path} {where} ({why(error)}); give a run, a pipeline folder, or a Hub id") from error
    parts = pipeline.components
    if not isinstance(parts.get("unet"), UNet2DModel) or parts.get("scheduler") is None:
        raise UserError(
            f"model {path} is a {type(pipeline).__name__} of {', '.join(parts)}; sampling needs a UNet2DModel and a scheduler"
        )
    first_stage = parts.get("vqvae") or parts.get("vae")
    if isinstance(first_stage, VQModel):
        first_stage.float()  # in half precision some latents would be assigned another code
    try:
        unet, first_stage = (part and part.to(device).eval() for part in (parts["unet"], first_stage))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {error}") from error
    return Model(unet, process_of(parts["scheduler"]), first_stage)


def decoded_at_once(positions: int) -> int:
    """How many latents with this many positions are decoded at once."""
    return max(1, DECODED_AT_ONCE // positions)


@torch.no_grad()
def to_images(model: Model, x0: torch.Tensor) -> torch.Tensor:
    """x_0 -> uint8 images (B, 3, H, W): decoded if there is a first stage, clamped and rounded.

    The operations are those of diffusers' pipelines, so the images are the same bit for bit. A decoder's activations take
    hundreds of times the memory of its latents, so it decodes a few latents at a time."""
    if model.first_stage is not None:
        x0 = x0.to(model.first_stage.dtype) / model.first_stage.config.scaling_factor
        few = decoded_at_once(x0[0, 0].numel())
        x0 = torch.cat([model.first_stage.decode(part).sample for part in x0.split(few)])
    return ((x0.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
