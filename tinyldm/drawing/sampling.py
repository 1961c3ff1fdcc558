"""From noise to images: the sampling loop over a scheduler's timesteps, for latents and pixels.

Image i of seed s uses the generator s + i, so seed 7 gives the same image at any batch size.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor

from tinyldm.config.schema import SamplerSettings
from tinyldm.data.batch import UNCONDITIONAL, Condition
from tinyldm.errors import UserError
from tinyldm.models.model import Model, finite, to_images
from tinyldm.process.process import exact
from tinyldm.process.solvers import Level, Normal, Predict, Solver

Watch = Callable[[Model, int, torch.Tensor], None]


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator per image, on the CPU, so that a seed gives the same image on every device."""
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def initial_noise(model: Model, random: list[torch.Generator]) -> torch.Tensor:
    """Standard normal (B, C, S, S) in float32, exactly as LDMPipeline and DDPMPipeline draw it for these generators."""
    side = model.unet.config.sample_size
    return randn_tensor((len(random), model.channels, side, side), generator=random)


@torch.no_grad()
def denoise(
    model: Model,
    noise: torch.Tensor,
    settings: SamplerSettings,
    random: list[torch.Generator] | None = None,
    condition: Condition = UNCONDITIONAL,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Run the reverse process.

    Args:
        noise: standard normal (B, C, S, S).
        settings: the sampler, its steps (Heun's method evaluates the network 2 N - 1 times for N), eta and guidance.
        random: generators of the noise that ddpm, ddim with eta > 0 and other stochastic samplers add in each step.
        condition: what the network is given besides x_t and the time.
        watch: called with (model, step, what its network sees) before each step, and with x_0 at the end.

    Returns:
        x_0 (B, C, S, S), in the units that the network was trained in.

    Raises:
        UserError: see Model.sampler; also if the network's values are not finite.
    """
    sampler, denoiser, condition = model.sampler(settings), model.guided(settings), condition.to(model.device)
    if isinstance(sampler, Solver):
        x, predict = sampler.start(noise.to(model.device)), predictor(model, sampler, settings, condition, watch)
        x = finite(sampler(predict, x, normals(x, random)))
        if watch:
            watch(model, len(sampler.path.levels) - 1, x)
        return x
    accepted = inspect.signature(sampler.step).parameters
    extra = {key: value for key, value in {"eta": settings.eta, "generator": random}.items() if key in accepted}
    # Only the ancestral sampler uses a learned variance.
    channels = None if isinstance(sampler, DDPMScheduler) else noise.shape[1]
    x = noise.to(model.device, model.dtype) * getattr(sampler, "init_noise_sigma", 1.0)
    sound = torch.zeros((), device=x.device)  # number of steps with finite results; read at the end, so no step waits for it
    after, times = [*sampler.timesteps.tolist()[1:], -1], sampler.timesteps.to(model.device)
    for step, t in enumerate(sampler.timesteps):
        if isinstance(sampler, DDIMScheduler):
            # It steps from t to t - T // n, which misses the next timestep of its list unless n divides T. So n becomes the
            # fraction that leads there. Where n divides T, nothing changes: samples equal those of diffusers to the bit.
            sampler.num_inference_steps = Fraction(sampler.config.num_train_timesteps, int(t) - after[step])
        seen = sampler.scale_model_input(x, t) if hasattr(sampler, "scale_model_input") else x
        if watch:
            watch(model, step, seen)
        predicted = denoiser(seen, times[step], condition)[:, :channels]
        x = sampler.step(predicted, t, x, **extra).prev_sample
        sound += x.isfinite().all()
    if (done := int(sound)) < len(sampler.timesteps):
        raise UserError(
            f"step {done + 1} of {len(sampler.timesteps)} gives values that are not finite: the weights are damaged or do not "
            "fit their precision (--dtype float32)"
        )
    if watch:
        watch(model, len(sampler.timesteps), x)
    return x


def predictor(
    model: Model,
    solver: Solver,
    settings: SamplerSettings,
    condition: Condition,
    watch: Watch | None = None,
) -> Predict:
    """What a solver asks at each level: x_0 and eps, guided as the settings say.

    Args:
        watch: as that of denoise, without the call at the end. The step is the number of the level in the solver's path; it
            is called where a level is reached for the first time.
    """
    process, guided, condition = model.process, model.guided(settings), condition.to(model.device)
    numbers, seen = {level: number for number, level in enumerate(solver.path.levels)}, -1

    def predict(x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal seen
        x_t, time = (level.scale * x).to(model.dtype), torch.full((), level.time, device=model.device, dtype=exact(x))
        if watch and numbers.get(level, seen) > seen:  # not for the second evaluation of a step, nor for a repeat
            seen = numbers[level]
            watch(model, seen, x / math.hypot(level.alpha, level.sigma))
        predicted = guided(x_t, time, condition)[:, : x.shape[1]]
        return process.to_x0_and_noise(x_t, predicted.to(x.dtype), level.time)

    return predict


def normals(like: torch.Tensor, random: list[torch.Generator] | None) -> Normal:
    """New standard normal noise of this shape at each call."""
    return lambda: randn_tensor(like.shape, generator=random).to(like.device)


def sample(
    model: Model, num_images: int, batch_size: int, seed: int, settings: SamplerSettings, watch: Watch | None = None
) -> Iterator[torch.Tensor]:
    """uint8 batches (B, C, H, W) of the images of seeds `seed`, `seed` + 1, ...; a seed gives the same image in any batch.

    For `watch` see denoise."""
    for first in range(0, num_images, batch_size):
        random = generators(seed + first, min(batch_size, num_images - first))
        noise = initial_noise(model, random)
        seeds = range(seed + first, seed + first + len(random))
        yield to_images(model, denoise(model, noise, settings, random, model.condition(seeds, settings), watch)).cpu()


def slerp(a: torch.Tensor, b: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation between two noises (C, S, S): (N, C, S, S).

    On a straight line the norm would shrink in the middle, and the network never saw noise with such a norm."""
    angle = torch.arccos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1))
    f = fractions.view(-1, 1, 1, 1)
    if angle < 1e-3:  # the same seed twice: the formula would divide 0 by 0
        return (1 - f) * a + f * b
    return (torch.sin((1 - f) * angle) * a + torch.sin(f * angle) * b) / torch.sin(angle)


def denoising_frames(
    model: Model, num_images: int, seed: int, settings: SamplerSettings, frames: int = 12
) -> list[torch.Tensor]:
    """Frames of the sampling of these seeds: `frames` uint8 batches (B, 3, H, W), the last one with the finished images."""
    random = generators(seed, num_images)
    states: list[torch.Tensor] = []
    condition = model.condition(range(seed, seed + num_images), settings)
    denoise(model, initial_noise(model, random), settings, random, condition, lambda model, step, x: states.append(x))
    kept = torch.linspace(0, len(states) - 1, min(frames, len(states))).round().int().tolist()
    return [to_images(model, states[i]).cpu() for i in kept]


def interpolate(
    model: Model, seed_a: int, seed_b: int, settings: SamplerSettings, frames: int = 12, watch: Watch | None = None
) -> torch.Tensor:
    """uint8 images (frames, 3, H, W) from the image of one seed to that of another: slerp between their noises, and a
    straight line between the embeddings of their labels.

    The sampler is deterministic, so that similar noises give similar images. For `watch` see denoise."""
    a, b = initial_noise(model, [*generators(seed_a, 1), *generators(seed_b, 1)])
    share = torch.linspace(0, 1, frames)
    noise, condition = slerp(a, b, share), model.condition([seed_a] * frames, settings)
    if condition.labels is not None:
        condition = replace(condition, other_labels=model.condition([seed_b] * frames, settings).labels, share=share)
    deterministic = replace(settings, scheduler=model.process.deterministic, eta=0.0)
    return to_images(model, denoise(model, noise, deterministic, condition=condition, watch=watch)).cpu()
