"""The schema of each training script and of sample.py: which keys a recipe has, what they mean and their defaults.

parsing.py reads an instance from YAML and the command line. The first key of a recipe, `script`, names its script, so that
the recipe is refused by the others. This file imports neither torch nor diffusers, so that `--help` is quick.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tinyldm.config.networks import Kind, ProcessConfig, SchedulerConfig, UNetConfig, VQConfig, pixel_scheduler
from tinyldm.config.ranges import EMAWidth, NonNegativeFloat, PositiveFloat, PositiveInt, Seed, Strength, UnitInterval
from tinyldm.config.sections import (
    ConditionConfig,
    DataConfig,
    DiffusionConfig,
    Features,
    FirstStageConfig,
    GuidanceConfig,
    HubConfig,
    TrainConfig,
    VQLossConfig,
)
from tinyldm.errors import UserError
from tinyldm.limits import STEP_BYTES

__all__ = [
    "TRAININGS",
    "ConditionConfig",
    "DataConfig",
    "DiffusionConfig",
    "DiffusionTraining",
    "Features",
    "FirstStageConfig",
    "GuidanceConfig",
    "HubConfig",
    "Sample",
    "Sampler",
    "SamplerSettings",
    "TrainClassifier",
    "TrainConfig",
    "TrainDDPM",
    "TrainLDM",
    "TrainVQ",
    "Training",
    "VQLossConfig",
]

# The first six are keys of DiscreteVP.samplers, all of solvers.SOLVERS.
Sampler = Literal["ddim", "ddpm", "dpm-solver++", "euler", "heun", "unipc", "predictor-corrector", "langevin"]


def _first(*own: str) -> tuple[str, ...]:
    """The keys of a training that `--help` shows, with those of the script itself in their middle."""
    data = ("data.name", "data.resolution", "data.eval_split")
    train = tuple(f"train.{key}" for key in ("max_steps", "num_epochs", "batch_size", "learning_rate", "mixed_precision"))
    return ("output_dir", *data, *own, *train, "seed", "resume", "overwrite", "hub.push", "hub.repo_id")


GUIDE_SHARE = 1 / 6  # of the training, after which the guide is kept


@dataclass(kw_only=True)
class Training:
    """The keys of every training."""

    script: str = ""
    """The script that the recipe is for."""
    output_dir: str
    """The run folder. It gets checkpoints, metrics, samples and the finished model."""
    seed: Seed = 0
    """Seeds the initial weights, data order, noise and held-out split."""
    resume: str | None = None
    """Continue an interrupted run: `latest` (skips damaged checkpoints with a warning) or the path of a checkpoint."""
    overwrite: bool = False
    """Replace the run in `output_dir`, once all data are open. Refused if the folder holds files that the run did not write."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    def check(self) -> None:
        """Refuse values that contradict each other, before anything is downloaded or written.

        Raises:
            UserError: naming the key.
        """
        self.data.check()
        self.train.check()
        self.hub.check()
        if self.resume and self.overwrite:
            raise UserError("resume and overwrite contradict each other; give one of them")
        images = self.train.batch_size * self.train.gradient_accumulation_steps
        if images * self.data.channels * self.data.resolution**2 > STEP_BYTES:
            raise UserError(
                f"a step of {images:,} images of {self.data.resolution} px takes too much memory; lower train.batch_size, "
                "train.gradient_accumulation_steps or data.resolution"
            )


@dataclass(kw_only=True)
class TrainVQ(Training):
    """Train a VQ-VAE first stage."""

    first_keys: ClassVar[tuple[str, ...]] = _first("loss.perceptual")

    script: Literal["train_vq"] = "train_vq"
    """The script that the recipe is for. Another script refuses it."""
    vq: VQConfig = field(default_factory=VQConfig)
    loss: VQLossConfig = field(default_factory=VQLossConfig)

    def check(self) -> None:
        """See Training.check."""
        super().check()
        self.vq.check()
        if self.data.augment:
            raise UserError("data.augment is for diffusion models, which are told of it: set it to 0")
        if self.train.ema_snapshot_steps:
            raise UserError("train.ema_snapshot_steps is for diffusion models: set it to null for a first stage")
        side = self.data.resolution
        if side % self.vq.downscale:
            raise UserError(f"data.resolution {side} is not a multiple of the first stage's factor {self.vq.downscale}")
        if self.train.mixed_precision == "fp16" and self.loss.adversarial_weight > 0:
            raise UserError(
                "train.mixed_precision fp16 has one loss scaler, which two optimizers cannot share; set "
                "train.mixed_precision to bf16 or no"
            )


@dataclass(kw_only=True)
class DiffusionTraining(Training):
    """The keys of a denoiser's training, on latents or pixels."""

    init_from: str | None = None
    """Fine-tune this model in place of random weights: a run, one of its checkpoints, a pipeline folder or a Hub id of the same
    architecture. Labels are found by their names."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)

    def check(self) -> None:
        """See Training.check."""
        super().check()
        self.unet.check()
        self.scheduler.check()
        self.process.check()
        self.diffusion.check(self.scheduler, self.process.kind)
        if self.diffusion.loss == "likelihood" and self.process.times != "log-snr":
            raise UserError(
                "diffusion.loss likelihood is a bound only with times that are uniform in log SNR: set process.times log-snr"
            )
        self.condition.check(self.data)
        self.guidance.check(self.train.max_steps)

    def guide_step(self, max_steps: int) -> int:
        """The step after which the averaged weights are kept as the guide; 0: none."""
        if self.guidance.guide_steps is not None:
            return self.guidance.guide_steps
        return 0 if self.data.labels else max(1, round(GUIDE_SHARE * max_steps))


@dataclass(kw_only=True)
class TrainLDM(DiffusionTraining):
    """Train a latent diffusion model on the latents of a first stage."""

    first_keys: ClassVar[tuple[str, ...]] = _first("first_stage.path", "data.label_columns")

    script: Literal["train_ldm"] = "train_ldm"
    """The script that the recipe is for. Another script refuses it."""
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)

    def check(self) -> None:
        """See Training.check."""
        super().check()
        if self.data.augment and self.first_stage.keep_latents:
            raise UserError("data.augment changes images before they are encoded: set first_stage.keep_latents to false")
        if self.diffusion.loss in ("hybrid", "bound"):
            raise UserError(f"diffusion.loss {self.diffusion.loss} is a bound on pixels: use train_ddpm.py, or the loss simple")


@dataclass(kw_only=True)
class TrainDDPM(DiffusionTraining):
    """Train a diffusion model on pixels. The defaults of scheduler and loss are those of Ho et al. 2020."""

    first_keys: ClassVar[tuple[str, ...]] = _first("data.label_columns")

    script: Literal["train_ddpm"] = "train_ddpm"
    """The script that the recipe is for. Another script refuses it."""
    scheduler: SchedulerConfig = field(default_factory=pixel_scheduler)
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(snr_gamma=None))


@dataclass(kw_only=True)
class TrainClassifier(Training):
    """Train a classifier of noisy latents or images, which guides an unconditional model (Dhariwal & Nichol 2021)."""

    first_keys: ClassVar[tuple[str, ...]] = _first("data.label_columns", "first_stage.path")

    script: Literal["train_classifier"] = "train_classifier"
    """The script that the recipe is for. Another script refuses it."""
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def check(self) -> None:
        """See Training.check."""
        super().check()
        self.unet.check()
        self.process.check()
        self.scheduler.check()
        if self.data.augment:
            raise UserError("data.augment is for models that draw: set it to 0")
        if not self.data.labels:
            raise UserError("data.label_columns is null: name the columns that the classifier learns")
        if self.train.metrics_steps:
            raise UserError("train.metrics_steps measures images, and a classifier draws none: set it to null")


TRAININGS: dict[str, type[Training]] = {
    "train_vq": TrainVQ,
    "train_ldm": TrainLDM,
    "train_ddpm": TrainDDPM,
    "train_classifier": TrainClassifier,
}


@dataclass
class SamplerSettings:
    """How noise becomes an image: the keys that sample.py and evaluate.py share."""

    scheduler: Sampler | None = None
    """The sampler. null: the one saved with the model. predictor-corrector (Song et al. 2021) and langevin (annealed, Song &
    Ermon 2019) are for processes in continuous time; langevin for ve."""
    num_inference_steps: PositiveInt = 50
    """Denoising steps. About 20 are enough for dpm-solver++."""
    eta: UnitInterval = 0.0
    """Noise added by DDIM at each step, from 0 (deterministic) to 1 (as much as DDPM)."""
    process: Kind | None = None
    """Sample as if the model had this process, at the same signal-to-noise ratios, which changes the steps but not what the
    network knows. null: the model's own."""
    augmentation: UnitInterval | None = None
    """For a super-resolution stage: the noise level of the small image, at most `condition.augmentation` of its training. null:
    0.1."""
    churn: NonNegativeFloat = 0.0
    """For heun in continuous time: noise added and removed again in all steps together (S_churn of Karras et al. 2022)."""
    labels: str | None = None
    """What to draw, for a model with labels: 'Smiling=true,hat=cap', or 'cat' where there is only one label. Labels not given
    vary from seed to seed as they do in the data; `unknown` leaves one open to the network."""
    guidance_scale: PositiveFloat | None = None
    """How far to go away from the prediction of a weaker model, the guide. 1: no guidance. Larger: fewer flaws, less variety.
    null: the scale stored with the model. With a `classifier` the weight of its gradient: 1 is Bayes' rule and the default,
    more makes the classifier more certain."""
    guidance_model: str | None = None
    """The guide: a run, a checkpoint of it, or a pipeline over the same latents (autoguidance, Karras et al. 2024). null: the
    model's own guide, or the model itself without its labels (classifier-free guidance, Ho & Salimans 2022)."""
    classifier: str | None = None
    """A run of train_classifier.py over the same latents or images and the same noise (Dhariwal & Nichol 2021). It draws
    `labels` with a model that has none, and takes the place of the guide. null: none."""
    guidance_interval: tuple[UnitInterval, UnitInterval] = (0.0, 1.0)
    """Guide only in this part of the way from noise to image, e.g. [0.2, 0.8] (Kynkaanniemi et al. 2024)."""
    guidance_rescale: UnitInterval = 0.0
    """Bring the guided prediction back to the spread it had before: 0 not at all, 1 fully (Lin et al. 2023, section 3.4)."""
    ema: EMAWidth | None = None
    """Relative width of the average of the weights, such as 0.05 of the training, for a run with `train.ema_snapshot_steps`.
    null: the average that the run has saved as its model."""

    def check(self) -> None:
        """Raise UserError for values that contradict each other."""
        start, stop = self.guidance_interval
        if start >= stop:
            raise UserError(f"guidance_interval is [{start}, {stop}]: give its start first, such as [0.2, 0.8]")
        if self.classifier is not None and self.labels is None:
            raise UserError("classifier needs labels: say what to draw, such as --labels 'Smiling=true'")
        if self.classifier is not None and (self.guidance_model is not None or self.guidance_rescale):
            raise UserError("guidance_model and guidance_rescale are for a guide, not for a classifier: give one of the two")
        if self.eta and self.scheduler not in (None, "ddim"):
            raise UserError(f"eta only applies to DDIM, not {self.scheduler}: remove it or use --scheduler ddim")


@dataclass(kw_only=True)
class Sample(SamplerSettings):
    """Draw images with a trained model."""

    first_keys: ClassVar[tuple[str, ...]] = (
        *("model", "num_images", "labels", "guidance_scale", "seed", "scheduler", "num_inference_steps", "batch_size"),
        *("then", "upscale", "image", "strength", "mask", "invert", "output_dir", "overwrite", "dtype"),
    )

    model: str = "pretrained/toyfaces64"
    """A run of train_ldm.py or train_ddpm.py, a diffusers pipeline folder, or a Hub id."""
    num_images: PositiveInt = 16
    """Number of images. They have the seeds `seed`, `seed` + 1, and so on."""
    batch_size: PositiveInt = 16
    """Images drawn at once. It changes the speed, not the images."""
    seed: Seed = 0
    """Seed of the first image."""
    output_dir: str = "samples"
    """Folder for images/, grid.png, samples.npz, and what `strip` and `interpolate` add."""
    overwrite: bool = False
    """Replace the pictures that an earlier sample.py wrote to `output_dir`. Other files stay."""
    then: str | None = None
    """Super-resolution stages that enlarge what `model` draws, separated by commas: runs, pipeline folders or Hub ids."""
    upscale: str | None = None
    """With a super-resolution stage as `model`: a small image, or a folder of images, to enlarge."""
    image: str | None = None
    """An image to start from, or a folder of images: `num_images` variations of each (SDEdit, Meng et al. 2022)."""
    strength: Strength = 0.5
    """How far to change `image`, above 0 to 1: the part of the way to noise and back that it takes."""
    mask: str | None = None
    """The part of `image` to draw anew, the rest stays (RePaint, Lugmayr et al. 2022): a box left,top,right,bottom in pixels of
    the model's images, or an image that is white there."""
    resample_jump: PositiveInt = 5
    """With a mask: how many steps to go back to more noise each time, so that the new part fits the rest."""
    resample_repeats: PositiveInt = 5
    """With a mask: how often each part of the way is gone. 1 is the fastest and fits the least."""
    invert: str | None = None
    """Images to turn into noise and back, separated by commas; of two or more also what lies between the first two."""
    strip: bool = False
    """Also show how the first images emerge from noise: denoising.png and denoising.gif."""
    interpolate: tuple[Seed, Seed] | None = None
    """Two seeds, e.g. [3, 4]: draw what lies between them, by slerp of their noises: interpolation.png and .gif."""
    device: str | None = None
    """cuda, mps, cpu and so on. null: the GPU if there is one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the networks. A VQ first stage stays in float32, because rounding would choose other codes. On a CPU leave
    it at float32."""

    def check(self) -> None:
        """Raise UserError for values that contradict each other."""
        super().check()
        if self.mask is not None and self.image is None:
            raise UserError("mask says which part of an image to draw: give --image too")
        if self.mask is not None and self.strength != Sample.strength:
            raise UserError("strength is for variations; with a mask, its part of the image is drawn from noise: remove one")
        if len(chosen := [key for key in ("then", "upscale", "image", "invert") if getattr(self, key) is not None]) > 1:
            raise UserError(f"{chosen[0]} and {chosen[1]} are two different things to do: give one of them")
        if chosen and (self.strip or self.interpolate):
            raise UserError(f"strip and interpolate show one model drawing from noise: remove them, or {chosen[0]}")
