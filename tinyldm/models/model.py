"""A trained model: its sampler, its guidance, and turning x_0 into images. loading.py reads one."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tinyldm.config.schema import SamplerSettings
from tinyldm.data.batch import UNCONDITIONAL, UNKNOWN, Condition
from tinyldm.errors import UserError, boundary
from tinyldm.first_stage.autoencoder import AutoencoderModel, FirstStage, fingerprint
from tinyldm.models.classifier import NoisyClassifier
from tinyldm.models.conditioning import condition_for, parse_labels, with_small
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.guidance import ClassifierGuidance, Guidance
from tinyldm.portable.label_embedding import LabelEmbedding
from tinyldm.portable.low_resolution import LowResolution
from tinyldm.process.discrete_vp import DiscreteVP
from tinyldm.process.process import Process
from tinyldm.process.processes import scheduler_config
from tinyldm.process.solvers import Solver, make_solver

DECODED_AT_ONCE = 2**14  # latent positions: 64 images of 64 px through an f4, or 4 of 256 px


@dataclass
class Model:
    """A network with its process and, for latent diffusion, its first stage.

    Attributes:
        guide: a weaker network for guidance. None: a network with labels is its own guide.
        scale: the guidance scale to use where none is given.
        classifier: draws labels that the network does not know. It takes the place of the guide.
        small: for a super-resolution stage the low-resolution images (N, C, S, S) as its network sees them. Seed s has number
            s mod N.
        small_from: what they are, as JSON.
    """

    denoiser: Denoiser
    process: Process
    first_stage: AutoencoderModel | None
    guide: Denoiser | None = None
    scale: float = 1.0
    classifier: NoisyClassifier | None = None
    small: torch.Tensor | None = None
    small_from: dict[str, Any] = field(default_factory=dict)

    @property
    def unet(self) -> UNet2DModel:
        """The network without the embedding of labels."""
        return self.denoiser.unet

    @property
    def labels(self) -> LabelEmbedding | None:
        """The embedding of labels; None for a model without labels."""
        return self.denoiser.labels

    @property
    def low_resolution(self) -> LowResolution | None:
        """The embedding of a super-resolution stage; None for a model that starts from noise alone."""
        return self.denoiser.low_resolution

    @property
    def channels(self) -> int:
        """Channels of x_0."""
        small = self.low_resolution
        return self.unet.config.in_channels - (0 if small is None else small.config.channels)

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.unet.config.sample_size * (1 if self.first_stage is None else FirstStage(self.first_stage).downscale)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.unet.parameters()).dtype

    def given_labels(self, settings: SamplerSettings) -> dict[str, int]:
        """The numbers of the labels that these settings name. See parse_labels."""
        return parse_labels(self.classifier or self.labels, settings.labels)

    def drawn_labels(self, seeds: Sequence[int], settings: SamplerSettings) -> dict[str, torch.Tensor]:
        """The numbers (N,) of each label that these seeds are drawn with; by a classifier only those it is given."""
        given = self.given_labels(settings)
        if self.classifier is not None:
            return {name: torch.full((len(seeds),), number) for name, number in given.items() if number != UNKNOWN}
        if self.labels is None:
            return {}
        return dict(zip(self.labels.values, self.labels.draw(seeds, given).T, strict=True))

    def named_labels(self, count: int, settings: SamplerSettings | None = None) -> Condition:
        """The condition of `count` images with the labels that these settings name; the others are unknown to the network."""
        if self.labels is None:
            return UNCONDITIONAL
        given = {} if settings is None else self.given_labels(settings)
        return Condition(torch.tensor([[given.get(name, UNKNOWN) for name in self.labels.values]] * count))

    def condition(self, seeds: Sequence[int], settings: SamplerSettings) -> Condition:
        """What the network is given for these seeds besides x_t and the time.

        Raises:
            UserError: see given_labels; also for a super-resolution stage without images.
        """
        labels = condition_for(self.labels, seeds, self.given_labels(settings))
        if self.low_resolution is None:
            return labels
        if self.small is None:
            raise UserError("this is a super-resolution stage: give it small images with --upscale, or name it in --then")
        return with_small(labels, self.small[[seed % len(self.small) for seed in seeds]], settings.augmentation, seeds)

    def guided(self, settings: SamplerSettings) -> Guidance | ClassifierGuidance:
        """The denoiser with the guidance of these settings.

        Raises:
            UserError: for a guidance scale without a guide, or a classifier without a label.
        """
        if self.classifier is not None:
            wanted = {name: number for name, number in self.given_labels(settings).items() if number != UNKNOWN}
            if not wanted:
                listed = ", ".join(self.classifier.values)
                raise UserError(f"a classifier needs to know what to draw: give --labels NAME=VALUE; it tells {listed}")
            scale = settings.guidance_scale or 1.0
            return ClassifierGuidance(self.denoiser, self.process, self.classifier, wanted, scale, settings.guidance_interval)
        scale = self.scale if settings.guidance_scale is None else settings.guidance_scale
        if scale != 1 and self.guide is None and self.labels is None:
            raise UserError(
                f"guidance_scale is {scale:g}, but this model has neither a guide nor labels: give a weaker model as "
                "--guidance_model, such as an early checkpoint of its run"
            )
        interval, rescale = settings.guidance_interval, settings.guidance_rescale
        return Guidance(self.denoiser, self.process, scale, self.guide, interval, rescale)

    def sampler(self, settings: SamplerSettings) -> SchedulerMixin | Solver:
        """The sampler that these settings ask for, with its times set: for vp a scheduler of diffusers.

        Raises:
            UserError: for a sampler that cannot reverse this process, an eta that the sampler does not have, more steps than
                the process has, or labels or guidance that the model does not have.
        """
        self.given_labels(settings)
        self.guided(settings)
        if settings.process is not None or not isinstance(self.process, DiscreteVP):
            return make_solver(self.process, settings)
        if settings.churn:
            raise UserError("churn is for processes in continuous time: remove it, or add --process edm")
        sampler = self.process.sampler(settings.scheduler)
        steps = sampler.config.num_train_timesteps
        if settings.num_inference_steps > steps:
            raise UserError(f"num_inference_steps is {settings.num_inference_steps}; this model has {steps} timesteps")
        if settings.eta and "eta" not in inspect.signature(sampler.step).parameters:
            raise UserError(f"eta only applies to DDIM, not {type(sampler).__name__}: remove it or use --scheduler ddim")
        with boundary("the model's scheduler cannot sample"):
            set_steps(sampler, settings.num_inference_steps)
        return sampler

    def sampler_facts(self, settings: SamplerSettings) -> dict[str, Any]:
        """The settings that the samples depend on besides the weights and the seed, as JSON."""
        sampler = self.sampler(settings)
        if isinstance(sampler, Solver):
            own = {"sampler": sampler.name, "process": sampler.kind, "churn": settings.churn}
            config = scheduler_config(self.process)
        else:
            own = {"sampler": type(sampler).__name__}
            config = {key: value for key, value in sorted(sampler.config.items()) if not key.startswith("_")}
        return {
            **own,
            "num_inference_steps": settings.num_inference_steps,
            "eta": settings.eta,
            **({} if settings.labels is None else {"labels": settings.labels}),
            **({} if self.low_resolution is None else {"augmentation": settings.augmentation, **self.small_from}),
            **self._guidance_facts(self.guided(settings)),
            "scheduler_config": config,
        }

    def _guidance_facts(self, guidance: Guidance | ClassifierGuidance) -> dict[str, Any]:
        facts: dict[str, Any] = {"guidance_scale": guidance.scale}
        if guidance.interval != (0.0, 1.0):
            facts["guidance_interval"] = list(guidance.interval)
        if isinstance(guidance, ClassifierGuidance):
            assert self.classifier is not None
            return {**facts, "guide": "classifier", "classifier": fingerprint(self.classifier)[:16]}
        if guidance.scale == 1:
            return {}
        facts["guide"] = "without labels" if self.guide is None else "weaker model"
        return {**facts, **({"guidance_rescale": guidance.rescale} if guidance.rescale else {})}


def set_steps(sampler: SchedulerMixin, count: int) -> None:
    """Set the timesteps of a sampler that takes `count` steps, and repair diffusers' lists of them. They stay on the CPU, where
    its step looks them up: on a GPU each look-up would wait for all work before it.

    Raises:
        UserError: where its list does not go down to less noise in every step.
    """
    refusal = f"{type(sampler).__name__} cannot take {count} steps with this schedule: use fewer, or another --scheduler"
    try:
        sampler.set_timesteps(count)
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
    return ((finite(x0).float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def finite(x0: torch.Tensor) -> torch.Tensor:
    """The same x_0 or images.

    Raises:
        UserError: if a value is not finite; it would be rounded to black.
    """
    if not x0.isfinite().all():
        raise UserError("the images are not finite: the weights are damaged or do not fit their precision (--dtype float32)")
    return x0


@torch.no_grad()
def encoded(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> x_0 (B, C, S, S), encoded if there is a first stage. The inverse of to_images."""
    if model.first_stage is None:
        return images[:, : model.channels]
    stage = FirstStage(model.first_stage)
    return stage.encode(images[:, : stage.in_channels].to(model.first_stage.dtype)).float() * stage.scaling_factor
