"""The schema of a recipe: what a YAML file in configs/ may say, what each key means and its default.

Each entry script has one dataclass; parsing.py reads it from YAML and the command line, and the docstring under a field is what
`--help` prints for it. The sections `unet`, `vq` and `scheduler` are diffusers' own arguments (see diffusers_sections.py).
Importing this file imports neither torch nor diffusers, so that `--help` is quick.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from tinyldm.config.networks import SchedulerConfig, UNetConfig, VQConfig, pixel_scheduler
from tinyldm.errors import UserError

Features = Literal["inception", "dinov2", "efficientnet-lite0"]  # features.NETWORKS
Sampler = Literal["ddim", "ddpm", "dpm-solver++", "euler", "heun", "unipc"]  # sampling.SCHEDULERS


@dataclass
class DataConfig:
    """Any data set with an image column becomes a stream of square images."""

    name: str = "toyfaces"
    """`toyfaces` (drawn on the fly) or `digits` (scikit-learn's), which need no download; a Hub id; or a folder with images,
    parquet files or WebDataset tars."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set; give a commit for numbers that somebody else can repeat."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Which files of it to read, as `datasets.load_dataset` takes them."""
    split: str = "train"
    """The part to train on."""
    eval_split: str | None = None
    """The part for held-out losses and metrics. null: the fraction `eval_fraction` of `split` is held out, chosen by a
    hash of each image file, so that no copy of a held-out image is trained on."""
    eval_fraction: float = 0.05
    """How much of `split` is held out when there is no `eval_split`."""
    image_column: str | None = None
    """The column with the images. null: the first column of the type Image."""
    label_column: str | None = None
    """The column with class labels, for a model that draws a chosen class; for train_ddpm.py. null: none."""
    channels: Literal[1, 3] = 3
    """3: colour, 1: grey."""
    resolution: int = 256
    """Side in pixels: the shorter side is resized to it (antialiased), then the centre is cropped."""
    random_flip: bool = False
    """Mirror half of the training images."""
    streaming: bool = True
    """Read while training, nothing stored. false: download once, then random access and a full shuffle each epoch."""
    shuffle_buffer: int = 2048
    """Undecoded examples from which a stream draws the next one at random."""
    num_workers: int = 2
    """Threads that decode and resize, per process."""
    cache_dir: str = "~/.cache/tinyldm"
    """Where encoded latents are kept, so that a second run does not encode again."""

    def check(self) -> None:
        """Raise UserError for values that make no sense."""
        for key in ("resolution", "num_workers", "shuffle_buffer"):
            if getattr(self, key) <= 0:
                raise UserError(f"data.{key} is {getattr(self, key)}; give a number above 0")
        if not 0 < self.eval_fraction < 1:
            raise UserError(f"data.eval_fraction is {self.eval_fraction}; it must lie between 0 and 1")
        if self.eval_split == self.split:
            raise UserError(
                f"data.split and data.eval_split are both {self.split!r}: the held-out part would be trained on; "
                "set data.eval_split to null to hold out a part of it"
            )


@dataclass
class FirstStageConfig:
    """The autoencoder between images and latents."""

    path: str = "CompVis/ldm-celebahq-256"
    """A run of train_vq.py, a folder, or a Hub id, of a VQModel, AutoencoderKL or AutoencoderTiny."""
    subfolder: str | None = None
    """The folder in it that holds the autoencoder, e.g. `vqvae` in a pipeline."""
    revision: str | None = None
    """Branch, tag or commit, when `path` is a Hub id."""
    keep_latents: bool = True
    """Encode each image once and keep its latents in `data.cache_dir`. false: at each step, for data never seen twice."""


@dataclass
class TrainConfig:
    """The loop: the same for each training."""

    max_steps: int | None = None
    """Optimizer steps. Where both are given it goes before `num_epochs`."""
    num_epochs: float | None = None
    """Passes over the training part."""
    batch_size: int = 64
    """Images per process and forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "piecewise_constant"] = "constant_with_warmup"
    """Its course after the warm-up; linear and cosine end at 0 at the last step, piecewise_constant takes `lr_step_rules`."""
    lr_step_rules: str | None = None
    """Factors for piecewise_constant: `1:1800,0.3:2400,0.1` is 1 for 1,800 steps, 0.3 up to step 2,400, then 0.1."""
    lr_warmup_steps: int = 0
    """Steps in which the learning rate grows from 0."""
    adam_beta1: float = 0.9
    """AdamW's decay of the gradient mean."""
    adam_beta2: float = 0.999
    """AdamW's decay of the squared gradient mean."""
    adam_weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm. null: never."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the networks' forward passes on a GPU; noise and losses stay in fp32. On a CPU leave it at `no`."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights, which are the ones that are evaluated and shipped. It starts low and grows as
    (1 + step) / (10 + step)."""
    compile: bool = False
    """torch.compile the networks: some minutes at the start, faster steps afterwards. Needs a C compiler. Not for a first stage
    with a discriminator, whose adaptive weight would run the compiled backward pass three times."""
    gradient_checkpointing: bool = False
    """Compute inner values again in the backward pass instead of keeping them: less memory, about a third more work."""
    channels_last: bool = True
    """Keep images as (B, H, W, C) in memory: faster convolutions on most hardware."""
    xformers: bool = False
    """Use xformers' attention instead of PyTorch's own (an extra: CUDA only)."""
    logging_steps: int = 50
    """Steps between rows of metrics.csv."""
    eval_steps: int = 1000
    """Steps between evaluations on the held-out part."""
    num_eval_images: int = 512
    """Held-out images that each evaluation looks at: always the same ones."""
    sample_steps: int = 5000
    """Steps between pictures in samples/."""
    checkpointing_steps: int = 5000
    """Steps between checkpoints; there is always one at the end."""
    checkpoints_total_limit: int = 2
    """How many of the newest checkpoints are kept; the best one by `best_by` is kept beside them."""
    metrics_steps: int | None = None
    """Steps between measurements of a cheap Frechet distance, `eval_fd`: of `num_metrics_images` images, made with
    `diffusion.preview_steps` DDIM steps (a first stage: reconstructions), to the held-out part. null: never."""
    metrics_features: Features = "inception"
    """The network of its features; see evaluate.py."""
    num_metrics_images: int = 512
    """Of how many images it is: the same seeds each time. Fewer make it larger."""
    best_by: Literal["eval_loss", "eval_fd"] = "eval_loss"
    """Which figure chooses the best checkpoint, among those where it was measured."""
    log_with: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where curves go besides metrics.csv; wandb and trackio must be installed."""


@dataclass
class DiffusionConfig:
    """What the denoiser learns, beyond the scheduler's own arguments."""

    snr_gamma: float | None = 5.0
    """Min-SNR loss weighting (Hang et al. 2023) with this gamma. null: all timesteps weigh the same in the loss of the
    chosen `scheduler.prediction_type`."""
    loss: Literal["simple", "hybrid", "bound"] = "simple"
    """simple: the squared error (Ho et al. 2020); with a learned variance (`scheduler.variance_type: learned_range`) hybrid,
    which adds 0.001 of the variational bound for it, or bound, the bound alone at importance-sampled timesteps (Nichol &
    Dhariwal 2021)."""
    preview_images: int = 16
    """Images in the sample grids drawn while training."""
    preview_steps: int = 50
    """DDIM steps of the sample grids drawn while training."""

    def check(self, scheduler: SchedulerConfig) -> None:
        """Raise UserError where values contradict each other."""
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise UserError(f"diffusion.snr_gamma is {self.snr_gamma}; give a number above 0, or null for none")
        if not 0 < self.preview_steps <= scheduler.num_train_timesteps:
            raise UserError(
                f"diffusion.preview_steps is {self.preview_steps}; it must lie between 1 and "
                f"scheduler.num_train_timesteps, {scheduler.num_train_timesteps}"
            )
        if (self.loss == "simple") == (scheduler.variance_type == "learned_range"):
            raise UserError(
                f"diffusion.loss {self.loss} and scheduler.variance_type {scheduler.variance_type} do not fit: a learned "
                "variance (learned_range) needs the loss hybrid or bound, and only those learn one"
            )
        if self.loss == "bound" and self.snr_gamma is not None:
            raise UserError("diffusion.loss bound has its own weights; set diffusion.snr_gamma to null")


@dataclass
class VQLossConfig:
    """The first stage's losses (Esser et al. 2021)."""

    perceptual: Literal["lpips", "none"] = "lpips"
    """`lpips` needs VGG16's weights (torchvision downloads them once, 528 MB); `none` goes without."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS beside the L1 loss."""
    gradient_weight: float = 0.0
    """Weight of the L1 loss of horizontal and vertical image differences: sharper edges where LPIPS cannot be had."""
    quantize_start: int = 0
    """The step at which quantisation sets in, with the codes laid onto the latents of a plain autoencoder: more of them are in
    use early on."""
    codebook_weight: float = 1.0
    """Weight of the codebook and commitment loss."""
    adversarial_weight: float = 0.75
    """Weight of the patch discriminator, on top of the adaptive weight that balances the two gradients. 0: none."""
    discriminator_start: int = 10_000
    """The step at which the discriminator sets in."""
    discriminator_ramp_steps: int = 1000
    """Steps over which its weight grows from 0: a sudden start ruins reconstructions."""
    discriminator_channels: int = 64
    """Width of its first layer."""
    discriminator_layers: int = 3
    """Its strided layers: each doubles the side of the patch that it judges."""
    discriminator_learning_rate: float = 1e-4
    """Its peak; it takes the same course as the autoencoder's. At half of the autoencoder's rate the discriminator lost (its
    loss stayed at 1) and nothing got sharper; twice the rate worked."""
    revive_steps: int = 200
    """Every so many steps, codes that were not used since are moved onto latents of the current batch. 0: never."""


@dataclass
class HubConfig:
    """Publishing the run."""

    push: bool = False
    """Push the run to the Hub: at its end, and before that every `push_steps`."""
    repo_id: str | None = None
    """The repository, `user/name`; it is created when it does not exist."""
    private: bool = False
    """Create it as a private one."""
    push_steps: int | None = None
    """Steps between pushes while training, in the background. null: only at the end."""


@dataclass
class Training:
    """What all trainings have in common."""

    output_dir: str
    """The run folder."""
    seed: int = 0
    """Of weights, order, noise and held-out choice."""
    resume: str | None = None
    """`latest`, or the path of a checkpoint of this run."""
    overwrite: bool = False
    """Delete the run that is in `output_dir` already."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    def check(self) -> None:
        """Refuse values that contradict each other, before anything is downloaded or written.

        Raises:
            UserError: naming the key.
        """
        self.data.check()
        positive = {
            "train.batch_size": self.train.batch_size,
            "train.gradient_accumulation_steps": self.train.gradient_accumulation_steps,
            "train.logging_steps": self.train.logging_steps,
            "train.eval_steps": self.train.eval_steps,
            "train.sample_steps": self.train.sample_steps,
            "train.checkpointing_steps": self.train.checkpointing_steps,
            "train.checkpoints_total_limit": self.train.checkpoints_total_limit,
            "train.num_eval_images": self.train.num_eval_images,
            "train.metrics_steps": self.train.metrics_steps,
            "train.learning_rate": self.train.learning_rate,
            "train.max_steps": self.train.max_steps,
            "hub.push_steps": self.hub.push_steps,
            "train.num_epochs": self.train.num_epochs,
            "train.max_grad_norm": self.train.max_grad_norm,
        }
        for key, value in positive.items():
            if value is not None and not value > 0:  # nan is not above 0 either
                raise UserError(f"{key} is {value}; give a number above 0")
        if self.train.num_metrics_images < 20:  # metrics.MIN_IMAGES, without waiting for numpy at --help
            raise UserError(
                f"train.num_metrics_images is {self.train.num_metrics_images}: too few for a covariance; give 20 or more"
            )
        if self.train.best_by == "eval_fd" and self.train.metrics_steps is None:
            raise UserError("train.best_by eval_fd needs train.metrics_steps: say how often the distance is to be measured")
        if self.train.max_steps is None and self.train.num_epochs is None:
            raise UserError("how long to train is not said: give train.max_steps or train.num_epochs")
        if (self.train.lr_scheduler == "piecewise_constant") != bool(self.train.lr_step_rules):
            raise UserError("train.lr_scheduler piecewise_constant and train.lr_step_rules go together; give both or neither")
        number = r"\d*\.?\d+(e-?\d+)?"
        if self.train.lr_step_rules and not re.fullmatch(rf"({number}:\d+,)+{number}", self.train.lr_step_rules):
            raise UserError(f"train.lr_step_rules is {self.train.lr_step_rules!r}; write it as 1:1800,0.3:2400,0.1")
        for key in ("ema_decay", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self.train, key) < 1:
                raise UserError(f"train.{key} is {getattr(self.train, key)}; it must be at least 0 and below 1")
        for key in ("lr_warmup_steps", "adam_weight_decay"):
            if getattr(self.train, key) < 0:
                raise UserError(f"train.{key} is {getattr(self.train, key)}; it cannot be negative")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it cannot be negative")
        if self.hub.push and not self.hub.repo_id:
            raise UserError("hub.push is true but hub.repo_id is missing; give user/name")
        if self.resume and self.overwrite:
            raise UserError("resume and overwrite contradict each other; give one of them")


@dataclass
class TrainVQ(Training):
    """Train a VQ-VAE first stage."""

    vq: VQConfig = field(default_factory=VQConfig)
    loss: VQLossConfig = field(default_factory=VQLossConfig)

    def check(self) -> None:
        """See Training.check."""
        super().check()
        self.vq.check()
        if not self.vq.in_channels == self.vq.out_channels == self.data.channels:
            raise UserError(f"vq.in_channels and vq.out_channels must be data.channels, {self.data.channels}")
        side = self.data.resolution
        if side % self.vq.downscale:
            raise UserError(f"data.resolution {side} is not a multiple of the first stage's factor {self.vq.downscale}")
        if self.train.mixed_precision == "fp16" and self.loss.adversarial_weight > 0:
            raise UserError("two optimizers cannot share fp16's one loss scaler; set train.mixed_precision to bf16 or no")


@dataclass
class TrainLDM(Training):
    """Train a latent diffusion model over a first stage."""

    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def check(self) -> None:
        """See Training.check."""
        super().check()
        self.unet.check(self.scheduler)
        self.scheduler.check()
        self.diffusion.check(self.scheduler)
        if self.diffusion.loss != "simple":
            raise UserError(f"diffusion.loss {self.diffusion.loss} is a bound on pixels: it is for train_ddpm.py")
        if self.data.label_column:
            raise UserError("data.label_column: diffusers' LDMPipeline knows no labels; leave it at null, or use train_ddpm.py")


@dataclass
class TrainDDPM(Training):
    """Train a diffusion model on pixels; the defaults of scheduler and loss are those of Ho et al. 2020."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    scheduler: SchedulerConfig = field(default_factory=pixel_scheduler)
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(snr_gamma=None))

    def check(self) -> None:
        """See Training.check."""
        super().check()
        self.unet.check(self.scheduler)
        self.scheduler.check()
        self.diffusion.check(self.scheduler)


@dataclass
class SamplerSettings:
    """How images are drawn from a trained model."""

    scheduler: Sampler | None = None
    """The sampler. null: the one that the model was saved with."""
    num_inference_steps: int = 50
    """Denoising steps."""
    eta: float = 0.0
    """DDIM's noise, from 0 (none, deterministic) to 1 (as much as DDPM)."""
    class_label: int | None = None
    """The class to draw, for a model that was trained with labels. null: seed s has class s mod their number."""


@dataclass
class Sample:
    """Draw pictures with a trained model."""

    model: str
    """A run of train_ldm.py or train_ddpm.py, a diffusers pipeline folder, or a Hub id."""
    num_images: int = 16
    """How many: the images of seeds `seed`, `seed` + 1, ..."""
    batch_size: int = 16
    """Images at a time; it changes the speed, not the pictures."""
    seed: int = 0
    """Of the first image."""
    class_label: int | None = None
    """The class to draw, for a model that was trained with labels. null: that of seed s is s mod their number."""
    scheduler: Sampler | None = None
    """The sampler. null: the one that the model was saved with."""
    num_inference_steps: int = 50
    """Denoising steps."""
    eta: float = 0.0
    """DDIM's noise, from 0 (none, deterministic) to 1 (as much as DDPM)."""
    output_dir: str = "samples"
    """Gets images/, grid.png, samples.npz and what else is asked for."""
    overwrite: bool = False
    """Replace the pictures that are in `output_dir` already."""
    strip: bool = False
    """Also draw how the first images come out of the noise: denoising.png and denoising.gif."""
    interpolate: tuple[int, int] | None = None
    """Two seeds: also draw the way from one's image to the other's along the sphere of noise: interpolation.png, .gif."""
    device: str | None = None
    """cuda, mps, cpu ... null: the GPU if there is one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the networks, but of a VQ first stage: rounding would choose other codes. On a CPU leave it at float32."""

    def check(self) -> None:
        """Raise UserError for values that make no sense."""
        for key in ("num_images", "batch_size", "num_inference_steps"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} is {getattr(self, key)}; give a number above 0")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta is {self.eta}; it must lie between 0 and 1")
        if self.eta and self.scheduler not in (None, "ddim"):
            raise UserError(f"eta is DDIM's and means nothing to {self.scheduler}; leave it away, or use --scheduler ddim")
