"""From noise to images: a loop over a scheduler's timesteps, for any standard diffusers pipeline of ours.

Image i of seed s starts from the generator s + i, whatever the batch size: the image of seed 7 is the image of seed 7.
"""

from collections.abc import Callable, Iterator
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
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from tinyldm.data import to_uint8
from tinyldm.errors import UserError

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


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
        pipeline = DiffusionPipeline.from_pretrained(str(local) if local.is_dir() else path, torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"model {path} cannot be loaded ({error}): give a run, a pipeline folder, or a Hub id") from error
    parts = pipeline.components
    if "unet" not in parts or "scheduler" not in parts:
        raise UserError(
            f"model {path} is a {type(pipeline).__name__}: its parts are {', '.join(parts)}, not unet and scheduler"
        )
    first_stage = parts.get("vqvae") or parts.get("vae")
    try:
        modules = [part.to(device).eval() if part is not None else None for part in (parts["unet"], first_stage)]
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {error}") from error
    return Model(modules[0], parts["scheduler"], modules[1])


def choose_scheduler(current: SchedulerMixin, name: str | None) -> SchedulerMixin:
    """The sampler of that name over the model's own forward process; None keeps the model's.

    Raises:
        UserError: for an unknown name, or a sampler that cannot start from zero terminal SNR.
    """
    if name is None:
        return current
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    if current.config.get("rescale_betas_zero_snr") and name in ("heun", "unipc"):
        raise UserError(f"{name} cannot start from zero terminal SNR; this model needs ddim, ddpm, euler or dpm-solver++")
    spacing = current.config.get("timestep_spacing", "leading")
    return SCHEDULERS[name].from_config(current.config, timestep_spacing=spacing)


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator an image, on the CPU so that a seed means the same picture on each device."""
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def initial_noise(unet: nn.Module, random: list[torch.Generator]) -> torch.Tensor:
    """Standard normal (B, C, S, S) in fp32, exactly as LDMPipeline and DDPMPipeline draw it for these generators."""
    side, channels = unet.config.sample_size, unet.config.in_channels
    return randn_tensor((len(random), channels, side, side), generator=random)


@torch.no_grad()
def denoise(
    model: Model,
    noise: torch.Tensor,
    num_inference_steps: int,
    random: list[torch.Generator] | None = None,
    eta: float = 0.0,
    watch: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Run the reverse process.

    Args:
        noise: standard normal (B, C, S, S).
        num_inference_steps: network evaluations (Heun's method takes two a step).
        random: generators of the noise that ddpm, and ddim with eta > 0, add in each step.
        eta: DDIM's, from 0 (deterministic) to 1 (ancestral).
        watch: called with (step, x) before each step and at the end.

    Returns:
        x_0 (B, C, S, S), in the units that the network was trained in.
    """
    scheduler = model.scheduler
    scheduler.set_timesteps(num_inference_steps, device=model.device)
    extra = {}
    if isinstance(scheduler, DDIMScheduler):
        extra = {"eta": eta, "generator": random}
    elif isinstance(scheduler, DDPMScheduler):
        extra = {"generator": random}
    x = noise.to(model.device, model.dtype) * scheduler.init_noise_sigma
    for step, t in enumerate(scheduler.timesteps):
        if watch:
            watch(step, x)
        predicted = model.unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(predicted, t, x, **extra).prev_sample
    if watch:
        watch(len(scheduler.timesteps), x)
    return x


@torch.no_grad()
def to_images(model: Model, x0: torch.Tensor) -> torch.Tensor:
    """What the network made -> uint8 images (B, 3, H, W): decoded where there is a first stage, and clamped."""
    if model.first_stage is not None:
        x0 = model.first_stage.decode(x0 / model.first_stage.config.scaling_factor).sample
    return to_uint8(x0)


def sample(
    model: Model, num_images: int, batch_size: int, seed: int, num_inference_steps: int, eta: float = 0.0
) -> Iterator[torch.Tensor]:
    """uint8 batches (B, 3, H, W) of the images of seeds seed, seed + 1, ...; one seed gives one image in any batch."""
    for first in range(0, num_images, batch_size):
        random = generators(seed + first, min(batch_size, num_images - first))
        noise = initial_noise(model.unet, random)
        yield to_images(model, denoise(model, noise, num_inference_steps, random, eta)).cpu()


def slerp(a: torch.Tensor, b: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation between two noises (C, S, S): (N, C, S, S). On the straight line the norm would dip, and a
    network has never seen noise of that norm."""
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    f = fractions.view(-1, 1, 1, 1)
    return (torch.sin((1 - f) * angle) * a + torch.sin(f * angle) * b) / torch.sin(angle)


def denoising_frames(
    model: Model, num_images: int, seed: int, num_inference_steps: int, eta: float = 0.0, frames: int = 12
) -> list[torch.Tensor]:
    """How the images of these seeds come out of the noise: `frames` uint8 batches (B, 3, H, W), the last one finished."""
    random, states = generators(seed, num_images), []
    noise = initial_noise(model.unet, random)
    denoise(model, noise, num_inference_steps, random, eta, watch=lambda step, x: states.append(x))
    kept = torch.linspace(0, len(states) - 1, min(frames, len(states))).round().int().tolist()
    return [to_images(model, states[i]).cpu() for i in kept]


def interpolate(model: Model, seed_a: int, seed_b: int, num_inference_steps: int, frames: int = 12) -> torch.Tensor:
    """uint8 images (frames, 3, H, W) from the image of one seed to that of another, along the sphere of noise; DDIM
    without noise, so that near noises give near images."""
    a, b = initial_noise(model.unet, [*generators(seed_a, 1), *generators(seed_b, 1)])
    noise = slerp(a, b, torch.linspace(0, 1, frames))
    still = Model(model.unet, choose_scheduler(model.scheduler, "ddim"), model.first_stage)
    return to_images(model, denoise(still, noise, num_inference_steps)).cpu()
