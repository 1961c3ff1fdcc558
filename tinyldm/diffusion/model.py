"""A trained model: loading it, its sampler, and its way from x_0 to images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
    VQModel,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub.errors import HTTPError
from torch import nn

from tinyldm.errors import UserError, why

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


DECODED_AT_ONCE = 2**14  # places of latents: 64 images of 64 px through an f4, or 4 of 256 px


@dataclass
class Model:
    """A denoiser with its scheduler and, for latent diffusion, its first stage."""

    unet: nn.Module
    scheduler: SchedulerMixin
    first_stage: nn.Module | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.unet.parameters()).dtype


def load_model(path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Load a run of ours, a diffusers pipeline folder, or a Hub id.

    Raises:
        UserError: when it is none of these, or its files are damaged.
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
    except (OSError, HTTPError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:  # nonsense in it too
        where = "is damaged or incomplete" if local.is_dir() else "cannot be loaded: check the name and the network"
        raise UserError(f"model {path} {where} ({why(error)}); give a run, a pipeline folder, or a Hub id") from error
    parts = pipeline.components
    if not isinstance(parts.get("unet"), UNet2DModel) or parts.get("scheduler") is None:
        raise UserError(
            f"model {path} is a {type(pipeline).__name__} of {', '.join(parts)}; sampling needs a UNet2DModel and a scheduler"
        )
    first_stage = parts.get("vqvae") or parts.get("vae")
    if isinstance(first_stage, VQModel):
        first_stage.float()  # in half precision some latents would find another code than their own
    try:
        modules = [part.to(device).eval() if part is not None else None for part in (parts["unet"], first_stage)]
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {error}") from error
    return Model(modules[0], parts["scheduler"], modules[1])


def choose_scheduler(current: SchedulerMixin, name: str | None) -> SchedulerMixin:
    """The sampler of that name over the model's own forward process; None keeps the model's.

    Raises:
        UserError: for an unknown name, or a sampler that does not know this forward process.
    """
    if name is None:
        return current
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    if current.config.get("rescale_betas_zero_snr") and name == "heun":  # it would silently use the betas as they were
        raise UserError("heun cannot start from zero terminal SNR; this model needs another scheduler, e.g. dpm-solver++")
    # from_config leaves out what was a default of the current class, but the defaults of the classes differ.
    config = {key: value for key, value in current.config.items() if key != "_use_default_values"}
    try:
        return SCHEDULERS[name].from_config({"timestep_spacing": "leading", **config})
    except NotImplementedError as error:
        raise UserError(f"{name} cannot be used with this model: {error}") from error


def decoded_at_once(positions: int) -> int:
    """How many latents of so many positions a first stage gets at a time."""
    return max(1, DECODED_AT_ONCE // positions)


@torch.no_grad()
def to_images(model: Model, x0: torch.Tensor) -> torch.Tensor:
    """What the network made -> uint8 images (B, 3, H, W): decoded where there is a first stage, clamped, and rounded in
    the very operations of diffusers' pipelines, so that the pictures are theirs to the bit.

    A decoder's inner values take hundreds of times the memory of its latents, so it gets a few of them at a time."""
    if model.first_stage is not None:
        x0 = x0.to(model.first_stage.dtype) / model.first_stage.config.scaling_factor
        few = decoded_at_once(x0[0, 0].numel())
        x0 = torch.cat([model.first_stage.decode(part).sample for part in x0.split(few)])
    return ((x0.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
