"""A diffusers pipeline for models with labels or a guide. A copy of this file travels with each model:

    pipe = DiffusionPipeline.from_pretrained(FOLDER_OR_ID, custom_pipeline=FOLDER_OR_ID, trust_remote_code=True)
    pipe(labels={"Smiling": True}, guidance_scale=2, num_images=4).images[0]
    pipe(image=photo, strength=0.6, num_images=4).images                # variations of a PIL image
    pipe(image=photo, mask=mask, num_images=4).images                   # a new part where the mask is white

It draws what sample.py draws for the same seeds, steps and labels. It imports nothing of tinyldm.
"""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import hf_hub_download
from PIL import Image, ImageChops, ImageFilter

UNKNOWN = -1  # the number of a label that is missing
DEFAULT_AUGMENTATION = 0.1  # the level of the noise in the small image of a super-resolution stage
ROUNDING = 1e-6  # of the part of the way that is left
AUGMENTATION_SEED = 2**32  # plus an image's seed: of that noise


def extrapolate(predicted: torch.Tensor, weaker: torch.Tensor, scale: float, rescale: float = 0.0) -> torch.Tensor:
    """Guidance: from the weaker prediction (B, C, H, W) through the better one, and beyond it for a scale above 1.

    Args:
        rescale: from 0 to 1, how far to bring each image back to the standard deviation of `predicted` (Lin et al. 2023,
            "Common Diffusion Noise Schedules and Sample Steps are Flawed", equations 15 and 16).
    """
    guided = predicted + (scale - 1) * (predicted - weaker)
    if not rescale:
        return guided
    ratio = predicted.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    return guided * (rescale * ratio + 1 - rescale)


def clip_prediction(
    x_t: torch.Tensor, predicted: torch.Tensor, alpha: Any, sigma: Any, a: Any, b: Any, limit: float
) -> torch.Tensor:
    """The prediction y = a x_0 + b eps (B, C, H, W) with x_0 clipped to [-limit, limit], and eps that of the clipped x_0.

    A sampler that clips takes eps from the prediction as it is. Guidance moves x_0 and, the other way, eps: with x_0 clipped,
    DDIM would keep the second only, and go away from what is wanted.
    """
    x_0 = ((b * x_t - sigma * predicted) / (alpha * b - sigma * a)).clamp(-limit, limit)
    return (a * x_0 + b * (x_t - alpha * x_0) / sigma).to(predicted.dtype)


def _place(scheduler: Any, step: int, t: torch.Tensor, after: float) -> None:
    """Tell a scheduler at which step it is."""
    if isinstance(scheduler, DDIMScheduler):  # it misses timesteps where the steps do not divide their number
        scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, int(t) - int(after))
    if hasattr(scheduler, "set_begin_index"):
        scheduler._step_index = None
        scheduler.set_begin_index(step)


def _paste(image: Image.Image, made: Image.Image, mask: Image.Image, feather: int) -> Image.Image:
    """The image, and where the mask is white what was made; `feather` pixels around it pass from one to the other."""
    white = mask.convert("L").point(lambda value: 255 * (value > 127))
    if feather:
        grown = white.filter(ImageFilter.MaxFilter(2 * feather + 1)).filter(ImageFilter.GaussianBlur(feather / 2))
        white = ImageChops.lighter(white, grown)
    return Image.composite(made, image.convert(made.mode), white)


class TinyLDMPipeline(DiffusionPipeline):
    """A UNet2DModel and a scheduler with, as far as the model has them, a first stage, labels, small images and a guide."""

    _optional_components: ClassVar = ["vqvae", "labels", "low_resolution", "guide", "guide_labels", "guide_low_resolution"]

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        vqvae: Any = None,
        labels: Any = None,
        low_resolution: Any = None,
        guide: Any = None,
        guide_labels: Any = None,
        guide_low_resolution: Any = None,
    ):
        super().__init__()
        self.labels: Any  # set by register_modules
        self.low_resolution: Any
        self.guide: Any
        own = {"vqvae": vqvae, "labels": labels, "low_resolution": low_resolution}
        parts = {**own, "guide": guide, "guide_labels": guide_labels, "guide_low_resolution": guide_low_resolution}
        self.register_modules(unet=unet, scheduler=scheduler, **parts)

    @torch.no_grad()
    def __call__(
        self,
        labels: dict[str, Any] | None = None,
        num_images: int = 1,
        seed: int = 0,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        small: list[Image.Image] | None = None,
        augmentation: float = DEFAULT_AUGMENTATION,
        image: Image.Image | None = None,
        strength: float = 0.5,
        mask: Image.Image | None = None,
        resample_jump: int = 5,
        resample_repeats: int = 5,
    ) -> ImagePipelineOutput:
        """Draw images as PIL images.

        Args:
            labels: {name: value}. Labels that are not given vary with the seed as they do in the data.
            num_images: number of images, with the seeds `seed`, `seed` + 1, ...
            guidance_scale: 1 is no guidance. None: the scale that is stored with the model.
            small: for a super-resolution stage the PIL images to enlarge, of its side; they replace num_images.
            augmentation: the level of the noise that is added to them, from 0 to 1.
            image: an image of the model's side to start from (SDEdit, Meng et al. 2022).
            strength: how far to change it, from 0 to 1: the part of the way to noise and back.
            mask: an image of that side, white where a new part is drawn; strength is not used (RePaint, Lugmayr et al. 2022).
            resample_jump: with a mask, the steps of a part of the way; each is gone again so that the new part fits.
            resample_repeats: how often each is gone.

        Raises:
            ValueError: for a label or value that the model does not have, a stage without small images, an image or mask of
                another side, or a mask without an image.
        """
        scheduler, side = self.scheduler, self.unet.config.sample_size
        if (self.low_resolution is None) != (small is None):
            raise ValueError("small images are for a super-resolution stage, which needs them")
        if mask is not None and image is None:
            raise ValueError("a mask is for an image: give both")
        num_images = num_images if small is None else len(small)
        channels = self.unet.config.in_channels - (0 if small is None else self.low_resolution.config.channels)
        random = [torch.Generator().manual_seed(seed + i) for i in range(num_images)]

        def normal() -> torch.Tensor:
            return randn_tensor((num_images, channels, side, side), generator=random).to(self.device, self.dtype)

        seen, levels = (None, None) if small is None else self._enlarged(small, channels, augmentation, seed)
        numbers = self._numbers(labels or {}, range(seed, seed + num_images), image is not None)
        scale = self._guided(guidance_scale)
        self._set_timesteps(num_inference_steps)
        times, extra = scheduler.timesteps, {"generator": random} if isinstance(scheduler, DDPMScheduler) else {}
        after, (alpha, sigma, _) = [*times.tolist()[1:], -1], self._way()

        def step(x: torch.Tensor, here: int) -> torch.Tensor:
            _place(scheduler, here, times[here], after[here])
            scaled = scheduler.scale_model_input(x, times[here]) if hasattr(scheduler, "scale_model_input") else x
            predicted = self._predict(scaled, times[here], numbers, scale, seen, levels, alpha[here], sigma[here])
            if not isinstance(scheduler, DDPMScheduler):  # no other one uses a learned variance
                predicted = predicted[:, :channels]
            return scheduler.step(predicted, times[here], x, **extra).prev_sample

        noise = normal()
        x, here = noise * getattr(scheduler, "init_noise_sigma", 1.0), 0
        if image is not None and mask is not None:
            x = self._inpainted(step, x, image, mask, normal, resample_jump, resample_repeats)
        else:
            if image is not None:
                x, here = self._noised(image, noise, strength)
            for number in self.progress_bar(range(here, len(times))):
                x = step(x, number)
        if self.vqvae is not None:
            x = self.vqvae.decode(x.to(self.vqvae.dtype) / self.vqvae.config.scaling_factor).sample
        images = self.numpy_to_pil((x.float() / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy())
        if image is not None and mask is not None:
            images = [_paste(image, made, mask, 0 if self.vqvae is None else self._factor) for made in images]
        return ImagePipelineOutput(images=images)

    def _numbers(self, labels: Any, seeds: Sequence[int], edited: bool) -> torch.Tensor | None:
        """The labels of these seeds (B, A). Those that are not given are drawn, or left to the image that is edited."""
        if self.labels is None:
            if labels:
                raise ValueError("this model has no labels")
            return None
        given = self.labels.numbers(labels)
        if not edited:
            return self.labels.draw(seeds, given).to(self.device)
        row = [given.get(name, UNKNOWN) for name in self.labels.values]
        return torch.tensor([row] * len(seeds), device=self.device)

    def _guided(self, scale: float | None) -> float:
        """The guidance scale. Loads the guide if it is needed: the index of a plain pipeline does not list it."""
        if scale is None:
            scale = json.loads(self._file("guidance.json").read_text())["scale"]
        if scale != 1 and self.guide is None and self.labels is None:
            self.guide = UNet2DModel.from_pretrained(self.config._name_or_path, subfolder="guide", torch_dtype=self.dtype)
            self.guide.to(self.device)
        return float(scale)

    def _set_timesteps(self, count: int) -> None:
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):  # its own choice of times has one close to the image
            self.scheduler.set_timesteps(sigmas=[1 - i / count for i in range(count)], device=self.device)
        else:
            self.scheduler.set_timesteps(count, device=self.device)

    def _noised(self, image: Image.Image, noise: torch.Tensor, strength: float) -> tuple[torch.Tensor, int]:
        """The image with noise (B, C, S, S), and the step to draw on from."""
        alpha, sigma, part = self._way()
        here = next((i for i, left in enumerate(part) if left <= strength + ROUNDING), len(part) - 1)
        return alpha[here] * self._x0([image], noise.shape[1]).to(noise) + sigma[here] * noise, here

    def _inpainted(
        self,
        step: Callable[[torch.Tensor, int], torch.Tensor],
        x: torch.Tensor,
        image: Image.Image,
        mask: Image.Image,
        normal: Callable[[], torch.Tensor],
        jump: int,
        repeats: int,
    ) -> torch.Tensor:
        """RePaint's algorithm 1 from noise x (B, C, S, S): the known part is the image with new noise at each step."""
        (alpha, sigma, part), known = self._way(), self._x0([image], x.shape[1]).to(x)
        new = F.adaptive_max_pool2d(self._pixels([mask])[:, :1], x.shape[-1]).gt(0).to(x)
        here, end = 0, len(part)
        jump = min(jump, end)
        back = dict.fromkeys([*range(jump, end, jump), end], repeats - 1)  # at these steps, so many times back by `jump`
        with self.progress_bar(total=end + jump * sum(back.values())) as bar:
            while here < end:
                x, here = step(x, here), here + 1
                x = new * x + (1 - new) * (alpha[here] * known + sigma[here] * normal())
                bar.update()
                if back.get(here):
                    back[here] -= 1
                    kept = alpha[here - jump] / alpha[here]
                    added = max(sigma[here - jump] ** 2 - (kept * sigma[here]) ** 2, 0.0) ** 0.5
                    x, here = kept * x + added * normal(), here - jump
        return x

    @property
    def _factor(self) -> int:
        """Pixels on the side of a latent; 1 without a first stage."""
        return 1 if self.vqvae is None else 2 ** (len(self.vqvae.config.block_out_channels) - 1)

    def _way(self) -> tuple[list[float], list[float], list[float]]:
        """alpha, sigma and the part of the way that is left, at each step and then at the image."""
        scheduler, times = self.scheduler, self.scheduler.timesteps.cpu()
        if isinstance(scheduler, EDMEulerScheduler):
            sigma, part = scheduler.sigmas[:-1], torch.linspace(1, 0, len(times))
            alpha = torch.ones_like(sigma)
        elif isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            sigma = part = scheduler.sigmas[:-1]
            alpha = 1 - sigma
        elif hasattr(scheduler, "alphas_cumprod"):
            abar, part = scheduler.alphas_cumprod[times.long()].double(), times / scheduler.config.num_train_timesteps
            alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        else:  # levels.py
            alpha, sigma = torch.tensor(scheduler.pairs[:-1]).T
            part = scheduler.fractions
        return [*alpha.tolist(), 1.0], [*sigma.tolist(), 0.0], part.tolist()

    def _pixels(self, images: list[Image.Image], side: int | None = None) -> torch.Tensor:
        """The images as (B, 3, S, S) in [-1, 1].

        Raises:
            ValueError: for an image of another side than the model's, or than the given one.
        """
        side = side or self.unet.config.sample_size * self._factor
        for image in images:
            if image.size != (side, side):
                raise ValueError(f"an image has {image.width} x {image.height} pixels: crop and resize it to {side} x {side}")
        pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])
        return pixels.to(self.device).float() / 127.5 - 1

    def _x0(self, images: list[Image.Image] | torch.Tensor, channels: int) -> torch.Tensor:
        """Images as the network makes them (B, C, S, S): scaled latents, or pixels."""
        x = images if isinstance(images, torch.Tensor) else self._pixels(images)
        if self.vqvae is None:
            return x[:, :channels]
        encoded = self.vqvae.encode(x.to(self.vqvae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents.float() * self.vqvae.config.scaling_factor

    def _enlarged(self, small: list[Image.Image], channels: int, level: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The small images as the network sees them, with noise of a level (B, C, S, S), and the levels (B,)."""
        x = self._pixels(small, self.low_resolution.config.side)
        x = self._x0(self.low_resolution.enlarge(x, self.unet.config.sample_size * self._factor), channels)
        random = [torch.Generator().manual_seed(AUGMENTATION_SEED + seed + i) for i in range(len(small))]
        noise = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in random]).to(x)
        levels = torch.full((len(small),), float(level), device=x.device)
        return self.low_resolution.add_noise(x, levels, noise), levels

    def _network(self, prefix: str, x: torch.Tensor, t: torch.Tensor, numbers: Any, seen: Any, levels: Any) -> torch.Tensor:
        """The prediction of the model ("") or of its guide ("guide_")."""
        labels, small = getattr(self, f"{prefix}labels"), getattr(self, f"{prefix}low_resolution")
        vectors = [] if labels is None else [labels(numbers)]
        if small is not None:
            x = torch.cat([x, seen.to(x)], 1)
            vectors.append(small(levels))
        return (self.guide if prefix else self.unet)(x, t, class_labels=sum(vectors) if vectors else None).sample

    def _predict(
        self, x: torch.Tensor, t: torch.Tensor, numbers: Any, scale: float, seen: Any, levels: Any, alpha: float, sigma: float
    ) -> torch.Tensor:
        """The prediction (B, C, H, W) or (B, 2 C, H, W), guided by the guide, or by the network itself without labels."""
        if scale == 1:
            return self._network("", x, t, numbers, seen, levels)
        if self.guide is not None:
            predicted = self._network("", x, t, numbers, seen, levels)
            weaker = self._network("guide_", x, t, numbers, seen, levels)
        else:
            both = torch.cat([numbers, torch.full_like(numbers, UNKNOWN)])
            twice = [None if part is None else torch.cat([part, part]) for part in (seen, levels)]
            predicted, weaker = self._network("", torch.cat([x, x]), t, both, *twice).chunk(2)
        channels = x.shape[1]
        guided = extrapolate(predicted[:, :channels], weaker[:, :channels], scale)
        config = self.scheduler.config
        if config.get("clip_sample"):
            a, b = {"epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "v_prediction": (-sigma, alpha)}[config.prediction_type]
            guided = clip_prediction(x, guided, alpha, sigma, a, b, config.clip_sample_range)
        return torch.cat([guided, predicted[:, channels:]], 1)

    def _file(self, name: str) -> Path:
        """A file of the model's folder, here or on the Hub."""
        folder = Path(self.config._name_or_path)
        return folder / name if folder.is_dir() else Path(hf_hub_download(self.config._name_or_path, name))
