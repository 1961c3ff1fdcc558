"""The sections of a recipe, but for the three that hold diffusers' arguments (networks.py).

The docstring under a field is what `--help` prints for it. Ranges are types; `check` holds what no type can say.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from tinyldm.config.networks import SchedulerConfig
from tinyldm.config.ranges import (
    AtLeast20,
    BelowOne,
    DiscriminatorLayers,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    Pictures,
    PositiveFloat,
    PositiveInt,
    Threads,
    UnitInterval,
)
from tinyldm.errors import UserError

Features = Literal["inception", "dinov2", "efficientnet-lite0"]  # metrics.features.NETWORKS


@dataclass
class DataConfig:
    """The images. Any data set with an image column becomes a stream of square images."""

    name: str = "toyfaces"
    """The data set. `toyfaces` (drawn on the fly) and `digits` (from scikit-learn) need no download. Else a Hub id, or a folder
    with images, parquet files or WebDataset tars, or one such file or .zip."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set. Give a commit for numbers that others can reproduce."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Which of its files to read, as `datasets.load_dataset` takes them. null: all."""
    split: str = "train"
    """The split to train on."""
    eval_split: str | None = None
    """The split for held-out losses and metrics. null: hold out the fraction `eval_fraction` of `split`. A hash of each image
    file chooses, so that all copies of an image are on the same side."""
    eval_fraction: OpenUnitInterval = 0.05
    """The fraction of `split` to hold out when there is no `eval_split`."""
    image_column: str | None = None
    """The column with the images. null: `image`, or the only column of type Image."""
    label_columns: str | list[str] | None = None
    """The columns to condition the model on: one column of classes or several attributes, each of class labels, booleans,
    integers or strings. A folder of class folders has `label`. An empty cell is an unknown label. null: no labels."""
    group_column: str | None = None
    """The column of the person, patient or scene. Images of one group are all trained on or all held out. null: no groups."""
    duplicates: bool = False
    """Read an image as often as metadata.csv lists it. false: once."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""
    resolution: PositiveInt = 256
    """Side of the images in pixels. The shorter side is resized to it with antialiasing, then the centre is cropped."""
    random_flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    augment: UnitInterval = 0.0
    """Chance of each of three random changes of a training image: scale, rotation, shift. The network is told, so that samples
    show none of them (Karras et al. 2022). 0.1 to 0.3 help where there are only some hundred images. Latents need
    `first_stage.keep_latents: false` for it."""
    streaming: bool = True
    """Read the data while training and store nothing. false: download it first, then shuffle all of it each epoch."""
    shuffle_buffer: PositiveInt = 2048
    """Undecoded examples in the buffer from which a stream picks the next one at random. Larger shuffles better and takes more
    memory."""
    num_workers: Threads = 2
    """Threads per GPU that decode and resize images. 0: the thread that asks for them."""
    cache_dir: str = "~/.cache/tinyldm"
    """Folder for encoded latents, so that a second run does not encode the images again."""

    @property
    def labels(self) -> list[str]:
        """The names in `label_columns`."""
        return [self.label_columns] if isinstance(self.label_columns, str) else list(self.label_columns or [])

    def check(self) -> None:
        """Raise UserError for values that contradict each other."""
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"data.label_columns names a column twice: {', '.join(self.labels)}")
        if self.eval_split and self.eval_split.lower() == self.split.lower():
            raise UserError(
                f"data.split and data.eval_split are both {self.split!r}, so the held-out images would be trained on; "
                "set data.eval_split to null to hold out a part of the split"
            )
        if self.eval_split and self.group_column:
            raise UserError("data.group_column chooses a held-out part, and data.eval_split names one: give only one of them")


@dataclass
class FirstStageConfig:
    """The autoencoder between images and latents."""

    path: str | None = "CompVis/ldm-celebahq-256"
    """A run of train_vq.py, a folder, or a Hub id of a VQModel, AutoencoderKL or AutoencoderTiny. null: none, for a classifier
    of pixels."""
    subfolder: str | None = None
    """The subfolder that holds the autoencoder, e.g. `vqvae` in a pipeline."""
    revision: str | None = None
    """Branch, tag or commit, when `path` is a Hub id."""
    keep_latents: bool = True
    """Encode each image once and keep the latents in `data.cache_dir`. false: encode at every step, for data that is seen only
    once."""
    store_on_device: bool | Literal["auto"] = "auto"
    """Keep the latents of the training images in the GPU's memory. auto: where they take at most a quarter of what is free."""


@dataclass
class TrainConfig:
    """The training loop, the same for each script."""

    max_steps: PositiveInt | None = None
    """Length of the training in optimizer steps. It takes precedence over `num_epochs`."""
    num_epochs: PositiveFloat | None = None
    """Length of the training in passes over the data. Fractions are allowed."""
    batch_size: PositiveInt = 64
    """Images per GPU and forward pass."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes per optimizer step. Use it to keep the batch of a recipe on a smaller GPU."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of AdamW."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "piecewise_constant"] = "constant_with_warmup"
    """Learning-rate schedule after warm-up. linear and cosine reach 0 at the last step; piecewise_constant follows
    `lr_step_rules`."""
    lr_step_rules: str | None = None
    """Factors for piecewise_constant: `1:1800,0.3:2400,0.1` means 1 until step 1,800, 0.3 until step 2,400, then 0.1."""
    lr_warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0 to its peak."""
    adam_beta1: BelowOne = 0.9
    """AdamW's decay rate for the mean of the gradient."""
    adam_beta2: BelowOne = 0.999
    """AdamW's decay rate for the mean of the squared gradient. A short training does better with 0.99."""
    adam_weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the gradient to this norm. null: no clipping."""
    device: Literal["auto", "mps"] = "auto"
    """auto: CUDA's GPUs, else the CPU. mps: Apple's GPU. We could not test it; having no float64, it computes in float32."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward passes on a GPU. Noise and losses stay in float32. bf16 needs an Ampere GPU or newer; on a CPU
    leave it at `no`."""
    ema_decay: BelowOne = 0.9999
    """Decay rate of the averaged weights (EMA), which are the ones evaluated and published. It starts low and rises as
    (1 + step) / (10 + step)."""
    ema_snapshot_steps: PositiveInt | None = None
    """Steps between snapshots of two more averages in ema/, from which sample.py --ema makes one of any length after the
    training (Karras et al. 2024). 20 to 30 snapshots are enough; each takes 4 bytes per weight. null: none."""
    compile: bool | Literal["reduce-overhead"] = False
    """Compile the networks with torch.compile: a few minutes at the start, then faster steps. Needs a C compiler. Not for a
    first stage with a discriminator, whose adaptive weight would run the compiled backward pass three times. reduce-overhead:
    also launch each pass as one CUDA graph, for small batches that leave a GPU waiting."""
    deterministic: bool = False
    """Use only deterministic kernels on a GPU, which are slower. A resumed training then equals an uninterrupted one bit for
    bit, as it does on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more work."""
    channels_last: bool = True
    """Keep tensors as (B, H, W, C) in memory, which makes convolutions faster on most hardware."""
    xformers: bool = False
    """Use the attention of xformers instead of PyTorch's own. Needs CUDA and the package."""
    logging_steps: PositiveInt = 50
    """Steps between rows of metrics.csv."""
    eval_steps: PositiveInt = 1000
    """Steps between evaluations on held-out images."""
    num_eval_images: PositiveInt = 512
    """Held-out images per evaluation, chosen at random, the same ones each time."""
    sample_steps: PositiveInt = 5000
    """Steps between pictures in samples/."""
    checkpointing_steps: PositiveInt = 5000
    """Steps between checkpoints. The last step always saves one."""
    checkpoints_total_limit: PositiveInt = 2
    """How many of the newest checkpoints to keep. The best one by `best_by` is kept as well."""
    metrics_steps: PositiveInt | None = None
    """Steps between measurements of `eval_fd`, a cheap Frechet distance between held-out images and `num_metrics_images`
    samples of `diffusion.preview_steps` DDIM steps (first stage: reconstructions). null: never."""
    metrics_features: Features = "inception"
    """The network whose features `eval_fd` compares; evaluate.py has the same key."""
    num_metrics_images: AtLeast20 = 512
    """Images per measurement of `eval_fd`, always from the same seeds. Fewer images make it larger; fewer than 20 are too few
    for a covariance."""
    best_by: Literal["eval_loss", "eval_fd"] = "eval_loss"
    """The metric that chooses the best checkpoint, among the steps where it was measured."""
    patience: PositiveInt | None = None
    """Stop after so many measurements of `best_by` without a better one, and export the best weights. A checkpoint is saved at
    each better one. For small data sets, whose images a model soon knows by heart. null: train to the last step."""
    log_with: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where to log besides metrics.csv. wandb and trackio must be installed."""

    def check(self) -> None:
        """Raise UserError for values that contradict each other."""
        if self.best_by == "eval_fd" and self.metrics_steps is None:
            raise UserError("train.best_by eval_fd needs train.metrics_steps: set how often to measure the distance")
        if self.max_steps is None and self.num_epochs is None:
            raise UserError("no training length given: set train.max_steps or train.num_epochs")
        if (self.lr_scheduler == "piecewise_constant") != bool(self.lr_step_rules):
            raise UserError("train.lr_scheduler piecewise_constant and train.lr_step_rules go together; set both or neither")
        if self.compile == "reduce-overhead" and self.gradient_accumulation_steps > 1:
            raise UserError("train.compile reduce-overhead cannot accumulate gradients: set train.compile to true")
        number = r"\d*\.?\d+(e-?\d+)?"
        if self.lr_step_rules and not re.fullmatch(rf"({number}:\d+,)+{number}", self.lr_step_rules):
            raise UserError(f"train.lr_step_rules is {self.lr_step_rules!r}; write it as 1:1800,0.3:2400,0.1")


@dataclass
class DiffusionConfig:
    """The denoiser's loss, and the previews."""

    snr_gamma: PositiveFloat | Literal["auto"] | None = "auto"
    """Gamma of the min-SNR loss weight (Hang et al. 2023). null: no weight, so that all times count equally in the loss of the
    chosen prediction. auto: 5 for `process.kind: vp`, null for the others."""
    loss: Literal["simple", "hybrid", "bound", "likelihood"] = "simple"
    """simple: the squared error (Ho et al. 2020). hybrid: adds 0.001 times the variational bound, to learn the variance. bound:
    the bound alone, at timesteps drawn by importance (Nichol & Dhariwal 2021). These two need `process.kind: vp`,
    `scheduler.variance_type: learned_range` and train_ddpm.py. likelihood: the same in continuous time (Song et al. 2021b)."""
    preview_images: Pictures = 16
    """Images per sample grid drawn during training."""
    preview_steps: PositiveInt = 50
    """DDIM steps per preview image."""

    def gamma(self, kind: str) -> float | None:
        """`snr_gamma` for a kind of process."""
        if self.snr_gamma == "auto":
            return 5.0 if kind == "vp" else None
        return self.snr_gamma

    def check(self, scheduler: SchedulerConfig, kind: str) -> None:
        """Raise UserError for values that contradict each other."""
        if self.loss in ("bound", "likelihood") and isinstance(self.snr_gamma, float):
            raise UserError(f"diffusion.loss {self.loss} has its own weights; set diffusion.snr_gamma to null")
        if kind != "vp":
            self._check_continuous(scheduler, kind)
            return
        if self.loss == "likelihood":
            raise UserError("diffusion.loss likelihood is for processes in continuous time; vp has the loss bound")
        if self.preview_steps > scheduler.num_train_timesteps:
            raise UserError(
                f"diffusion.preview_steps is {self.preview_steps}; give at most scheduler.num_train_timesteps, "
                f"{scheduler.num_train_timesteps}"
            )
        if (self.loss == "simple") == scheduler.learns_variance:
            raise UserError(
                f"diffusion.loss {self.loss} does not fit scheduler.variance_type {scheduler.variance_type}: a learned "
                "variance (learned_range) needs the loss hybrid or bound, and those losses need a learned variance"
            )

    def _check_continuous(self, scheduler: SchedulerConfig, kind: str) -> None:
        if self.loss in ("hybrid", "bound"):
            raise UserError(f"diffusion.loss {self.loss} needs process.kind vp, not {kind}: use the loss simple or likelihood")
        if scheduler.learns_variance:
            raise UserError(f"scheduler.variance_type learned_range needs process.kind vp, not {kind}: set it to fixed_small")


@dataclass
class ConditionConfig:
    """How a model with labels (`data.label_columns`) learns them."""

    dropout: UnitInterval = 0.1
    """Probability that an image is trained on without its labels. Classifier-free guidance needs it (Ho & Salimans 2022)."""
    dropout_each: UnitInterval = 0.1
    """With several labels: probability that one of them is dropped, each by itself. So single labels can be left unknown."""
    balanced: str | None = None
    """A label column whose values are trained on equally often. null: as often as they are in the data."""
    low_resolution: PositiveInt | None = None
    """Train a super-resolution stage: the network sees each image at this smaller side, enlarged (Saharia et al. 2021). null:
    an ordinary model."""
    augmentation: UnitInterval = 0.5
    """The highest level of noise that is added to the smaller image in training; each image draws its own. It makes the stage
    forgive the flaws of generated images (Ho et al. 2022)."""

    def check(self, data: DataConfig) -> None:
        """Raise UserError for values that contradict each other."""
        if self.balanced is not None and self.balanced not in data.labels:
            raise UserError(
                f"condition.balanced is {self.balanced!r}; name one of data.label_columns: {', '.join(data.labels) or 'none'}"
            )
        if self.low_resolution and self.low_resolution >= data.resolution:
            raise UserError(f"condition.low_resolution {self.low_resolution} is not below data.resolution {data.resolution}")


@dataclass
class GuidanceConfig:
    """The guide: a snapshot of the network early in its training, away from which later samples go (autoguidance, Karras et al.
    2024). sample.py and the previews use it."""

    guide_steps: NonNegativeInt | None = None
    """The step at which the averaged weights are kept as the guide. null: after a sixth of the training, or none for a model
    with labels, which guides itself by drawing without them. 0: no guide."""
    scale: PositiveFloat | None = None
    """The guidance scale that is stored with the model: 1 is no guidance. null: the best of `scales` by a Frechet distance on
    held-out images, measured at the end."""
    scales: list[PositiveFloat] = field(default_factory=lambda: [1.0, 1.5, 2.0, 2.5, 3.0])
    """The scales to choose from."""
    num_images: AtLeast20 = 256
    """Images drawn for each of them."""

    def check(self, max_steps: int | None) -> None:
        """Raise UserError for values that contradict each other."""
        if self.guide_steps and max_steps and self.guide_steps >= max_steps:
            raise UserError(
                f"guidance.guide_steps is {self.guide_steps}; the guide must be earlier than train.max_steps, {max_steps}"
            )


@dataclass
class VQLossConfig:
    """The losses of the first stage (Esser et al. 2021)."""

    perceptual: Literal["lpips", "none"] = "lpips"
    """Perceptual loss. `lpips` downloads the weights of VGG16 once (528 MB)."""
    perceptual_weight: NonNegativeFloat = 1.0
    """Weight of LPIPS relative to the L1 loss."""
    gradient_weight: NonNegativeFloat = 0.0
    """Weight of an L1 loss on horizontal and vertical image differences. It sharpens edges where LPIPS is not available."""
    quantize_start: NonNegativeInt = 0
    """The step at which quantisation starts. Until then a plain autoencoder is trained; the codes are then placed on its
    latents, which keeps more of them in use."""
    codebook_weight: NonNegativeFloat = 1.0
    """Weight of the codebook and commitment loss."""
    adversarial_weight: NonNegativeFloat = 0.75
    """Weight of the patch discriminator, multiplied by the adaptive weight that balances the two gradients. 0: no
    discriminator."""
    discriminator_start: NonNegativeInt = 10_000
    """The step at which the discriminator starts."""
    discriminator_ramp_steps: NonNegativeInt = 1000
    """Steps over which its weight rises from 0. A sudden start ruins reconstructions."""
    discriminator_channels: PositiveInt = 64
    """Channels of its first layer."""
    discriminator_layers: DiscriminatorLayers = 3
    """Number of its strided layers. Each doubles the side of the patch that it judges."""
    discriminator_learning_rate: PositiveFloat = 1e-4
    """Its peak learning rate, on the same schedule as the autoencoder's. In our runs a discriminator with half of the
    autoencoder's rate learned nothing (its loss stayed at 1); twice the rate worked."""
    revive_steps: NonNegativeInt = 200
    """Steps between revivals: codes not used since the last one move onto latents of the current batch. 0: never."""


@dataclass
class HubConfig:
    """Publishing on the Hugging Face Hub."""

    push: bool = False
    """Push the run to the Hub at the end, and during training every `push_steps`."""
    repo_id: str | None = None
    """The repository, `user/name`. It is created when it does not exist."""
    private: bool = False
    """Create it as a private repository."""
    push_steps: PositiveInt | None = None
    """Steps between pushes during training, in the background. null: push at the end only."""

    def check(self) -> None:
        """Raise UserError for values that contradict each other."""
        if self.push and not self.repo_id:
            raise UserError("hub.push is true but hub.repo_id is missing; give user/name")
