"""From noise to images: a loop over a scheduler's timesteps, for any standard diffusers pipeline of ours.

Image i of seed s starts from the generator s + i, whatever the batch size: the image of seed 7 is the image of seed 7.
"""

import inspect
from collections.abc import Callable, Iterator

import torch
from diffusers import (
    DDPMScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from tinyldm.diffusion.conditioning import cycle_labels
from tinyldm.diffusion.model import Model, choose_scheduler, to_images
from tinyldm.errors import UserError


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
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the reverse process.

    Args:
        noise: standard normal (B, C, S, S).
        num_inference_steps: as the scheduler counts them; Heun's method evaluates the network 2 N - 1 times.
        random: generators of the noise that ddpm, ddim with eta > 0 and other stochastic samplers add in each step.
        eta: DDIM's, from 0 (deterministic) to 1 (ancestral).
        watch: called with (step, what the network sees) before each step, and with x_0 at the end.
        labels: classes (B,) of a network that knows them.

    Returns:
        x_0 (B, C, S, S), in the units that the network was trained in.

    Raises:
        UserError: for more steps than the forward process has, or an eta that the sampler does not know.
    """
    scheduler = model.scheduler
    if num_inference_steps > scheduler.config.num_train_timesteps:
        raise UserError(
            f"num_inference_steps is {num_inference_steps}; this model has {scheduler.config.num_train_timesteps} timesteps"
        )
    scheduler.set_timesteps(num_inference_steps, device=model.device)
    accepted = inspect.signature(scheduler.step).parameters
    if eta and "eta" not in accepted:
        raise UserError(f"eta means nothing to the model's {type(scheduler).__name__}; leave it away, or choose scheduler ddim")
    extra = {key: value for key, value in {"eta": eta, "generator": random}.items() if key in accepted}
    labels = None if labels is None else labels.to(model.device)
    # A learned variance is of use to the ancestral sampler alone.
    channels = None if isinstance(scheduler, DDPMScheduler) else noise.shape[1]
    x = noise.to(model.device, model.dtype) * scheduler.init_noise_sigma
    for step, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t)
        if watch:
            watch(step, seen)
        predicted = model.unet(seen, t, class_labels=labels).sample[:, :channels]
        x = scheduler.step(predicted, t, x, **extra).prev_sample
    if watch:
        watch(len(scheduler.timesteps), x)
    return x


def sample(
    model: Model,
    num_images: int,
    batch_size: int,
    seed: int,
    num_inference_steps: int,
    eta: float = 0.0,
    class_label: int | None = None,
) -> Iterator[torch.Tensor]:
    """uint8 batches (B, C, H, W) of the images of seeds seed, seed + 1, ...; one seed gives one image in any batch."""
    for first in range(0, num_images, batch_size):
        random = generators(seed + first, min(batch_size, num_images - first))
        noise, labels = initial_noise(model.unet, random), cycle_labels(model.unet, seed + first, len(random), class_label)
        yield to_images(model, denoise(model, noise, num_inference_steps, random, eta, labels=labels)).cpu()


def slerp(a: torch.Tensor, b: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation between two noises (C, S, S): (N, C, S, S). On the straight line the norm would dip, and a
    network has never seen noise of that norm."""
    angle = torch.arccos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1))
    f = fractions.view(-1, 1, 1, 1)
    if angle < 1e-3:  # one direction, as for twice the same seed: the sphere is flat there, and its formula 0 / 0
        return (1 - f) * a + f * b
    return (torch.sin((1 - f) * angle) * a + torch.sin(f * angle) * b) / torch.sin(angle)


def denoising_frames(
    model: Model,
    num_images: int,
    seed: int,
    num_inference_steps: int,
    eta: float = 0.0,
    class_label: int | None = None,
    frames: int = 12,
) -> list[torch.Tensor]:
    """How the images of these seeds come out of the noise: `frames` uint8 batches (B, 3, H, W), the last one finished."""
    random, states = generators(seed, num_images), []
    noise = initial_noise(model.unet, random)
    labels = cycle_labels(model.unet, seed, num_images, class_label)
    denoise(model, noise, num_inference_steps, random, eta, lambda step, x: states.append(x), labels)
    kept = torch.linspace(0, len(states) - 1, min(frames, len(states))).round().int().tolist()
    return [to_images(model, states[i]).cpu() for i in kept]


def interpolate(
    model: Model, seed_a: int, seed_b: int, num_inference_steps: int, class_label: int | None = None, frames: int = 12
) -> torch.Tensor:
    """uint8 images (frames, 3, H, W) from the image of one seed to that of another, along the sphere of noise; DDIM
    without noise, so that near noises give near images."""
    a, b = initial_noise(model.unet, [*generators(seed_a, 1), *generators(seed_b, 1)])
    noise = slerp(a, b, torch.linspace(0, 1, frames))
    still = Model(model.unet, choose_scheduler(model.scheduler, "ddim"), model.first_stage)
    labels = cycle_labels(model.unet, 0, frames, class_label or 0) if model.unet.config.get("num_class_embeds") else None
    return to_images(model, denoise(still, noise, num_inference_steps, labels=labels)).cpu()
