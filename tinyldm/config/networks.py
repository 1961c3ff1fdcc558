"""The config sections `unet`, `vq` and `scheduler`: the arguments of diffusers' UNet2DModel, VQModel and DDPMScheduler.

A section has the arguments that recipes set, under diffusers' own names. All other arguments go into its mapping `extra`:

    unet:
      layers_per_block: 2
      extra: {act_fn: gelu}

`arguments()` is the union of the two. The names in `extra` are checked against the signature of the installed class before
anything is downloaded. diffusers is imported for that check only, so that parsing and `--help` stay quick.
"""

import difflib
import inspect
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tinyldm.config.ranges import BelowOne, Layers, OpenUnitInterval, PositiveFloat, PositiveInt, Timesteps
from tinyldm.errors import UserError


@dataclass
class DiffusersSection:
    """What the three sections share.

    Attributes:
        section: the name of the section in a recipe.
        builds: the diffusers class that takes its arguments.
        refused: arguments of that class that a recipe cannot set, and the reason.
    """

    section: ClassVar[str]
    builds: ClassVar[str]
    refused: ClassVar[dict[str, str]]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the diffusers class. The arguments that are derived from the data are not among them."""
        own = dict(vars(self))
        extra = own.pop("extra")
        return {**own, **extra}

    def check_extra(self) -> None:
        """Raise UserError for a name in `extra` that the diffusers class does not take, or that does not belong there."""
        own, extra = vars(self).keys(), vars(self)["extra"]
        if not extra:
            return
        for name in extra:
            if name in own:
                raise UserError(f"{self.section}.extra.{name} has a key of its own: set {self.section}.{name} instead")
            if name in self.refused:
                raise UserError(f"{self.section}.extra.{name} {self.refused[name]}")
        import diffusers  # here, because it takes seconds

        known = inspect.signature(getattr(diffusers, self.builds).__init__).parameters.keys() - {"self"}
        allowed = sorted(known - own - self.refused.keys())
        for name in extra:
            if name not in allowed:
                close = difflib.get_close_matches(str(name), sorted(known - self.refused.keys()), n=1)
                hint = f"did you mean {self._place(close[0])}?" if close else f"it takes {', '.join(allowed)}"
                raise UserError(f"{self.section}.extra.{name} is not an argument of diffusers' {self.builds}: {hint}")

    def _place(self, name: str) -> str:
        return f"{self.section}.{name}" if hasattr(self, name) else f"{self.section}.extra.{name}"


FROM_DATA = "is derived from the data and the first stage: remove it"
FROM_LABELS = "is derived from data.label_columns: remove it"


@dataclass
class UNetConfig(DiffusersSection):
    """The denoiser, a diffusers.UNet2DModel. The defaults have 5.4M parameters for latents of 3 x 64 x 64."""

    section: ClassVar[str] = "unet"
    builds: ClassVar[str] = "UNet2DModel"
    refused: ClassVar[dict[str, str]] = {
        "sample_size": FROM_DATA,
        "in_channels": FROM_DATA,
        "out_channels": FROM_DATA,
        "num_class_embeds": FROM_LABELS,
        "class_embed_type": FROM_LABELS,
    }

    block_out_channels: tuple[PositiveInt, ...] = (64, 64, 128, 128)
    """Channels at each resolution, from the finest to the coarsest. Each entry after the first halves the side."""
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    """The block at each resolution on the way down, from the finest. AttnDownBlock2D adds self-attention, whose cost grows with
    the fourth power of the side, so the default has it at the two coarsest resolutions only."""
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    """The block at each resolution on the way up, from the coarsest: the mirror image of down_block_types."""
    layers_per_block: Layers = 1
    """Residual layers in each block on the way down; blocks on the way up have one more."""
    attention_head_dim: PositiveInt | None = 32
    """Channels of an attention head. null: one head."""
    add_attention: bool = True
    """Self-attention in the block at the coarsest resolution."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "scale_shift"
    """How the timestep enters a residual layer. default: its embedding is added to the features. scale_shift: it scales and
    shifts the normalised features, which trains better (Dhariwal & Nichol 2021)."""
    dropout: BelowOne = 0.0
    """Dropout rate in the residual layers. Small data sets such as CIFAR-10 need about 0.1."""
    norm_num_groups: PositiveInt = 32
    """Groups in each group normalisation. It must divide every entry of block_out_channels."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance in each normalisation, so that it never divides by 0."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other argument of diffusers.UNet2DModel, e.g. {act_fn: gelu}. On the command line: --unet.extra.act_fn gelu."""

    def check(self) -> None:
        """Raise UserError where arguments contradict each other."""
        _check_blocks("unet", self.block_out_channels, self.down_block_types, self.up_block_types, self.norm_num_groups)
        self.check_extra()


@dataclass
class VQConfig(DiffusersSection):
    """The first stage, a diffusers.VQModel. The defaults are the VQ-f4 of latent diffusion, with 55.3M parameters."""

    section: ClassVar[str] = "vq"
    builds: ClassVar[str] = "VQModel"
    refused: ClassVar[dict[str, str]] = {
        "sample_size": "is data.resolution: remove it",
        "in_channels": "is data.channels: remove it",
        "out_channels": "is data.channels: remove it",
        "scaling_factor": "is measured by train_vq.py on the data: remove it",
    }

    block_out_channels: tuple[PositiveInt, ...] = (128, 256, 512)
    """Channels at each resolution, from the finest. Each entry after the first halves the side: 3 entries make f = 4."""
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 3
    """The encoder's block at each resolution, from the finest."""
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 3
    """The decoder's block at each resolution, from the coarsest."""
    layers_per_block: Layers = 2
    """Residual layers in each block of the encoder; the decoder's blocks have one more."""
    latent_channels: PositiveInt = 3
    """Channels of the latents. More of them keep more detail and leave more for the diffusion model to learn."""
    num_vq_embeddings: PositiveInt = 8192
    """Codes in the codebook."""
    norm_num_groups: PositiveInt = 32
    """Groups in each group normalisation. It must divide every entry of block_out_channels."""
    mid_block_add_attention: bool = True
    """Self-attention at the coarsest resolution of encoder and decoder."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other argument of diffusers.VQModel, e.g. {act_fn: gelu}. On the command line: --vq.extra.act_fn gelu."""

    @property
    def downscale(self) -> int:
        """The factor f between the side of an image and the side of its latents."""
        return 2 ** (len(self.block_out_channels) - 1)

    def check(self) -> None:
        """Raise UserError where arguments contradict each other."""
        _check_blocks("vq", self.block_out_channels, self.down_block_types, self.up_block_types, self.norm_num_groups)
        self.check_extra()


NO_THRESHOLDING = "is not supported, because held-out losses ignore dynamic thresholding: remove it"


@dataclass
class SchedulerConfig(DiffusersSection):
    """The forward process, a diffusers.DDPMScheduler. The defaults are those of latent diffusion."""

    section: ClassVar[str] = "scheduler"
    builds: ClassVar[str] = "DDPMScheduler"
    refused: ClassVar[dict[str, str]] = dict.fromkeys(
        ("thresholding", "dynamic_thresholding_ratio", "sample_max_value"), NO_THRESHOLDING
    )

    num_train_timesteps: Timesteps = 1000
    """Number of timesteps T of the forward process."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """How the noise variance beta grows from beta_start to beta_end. linear (Ho et al. 2020), scaled_linear (linear in the
    square root of beta, as in latent diffusion), or squaredcos_cap_v2, the cosine schedule (Nichol & Dhariwal 2021), which
    ignores both ends and suits small images."""
    beta_start: OpenUnitInterval = 0.0015
    """Beta at the first timestep."""
    beta_end: OpenUnitInterval = 0.0195
    """Beta at the last timestep."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    """What the network predicts. epsilon: the noise. v_prediction: alpha * noise - sigma * x_0, stable at every noise level
    (Salimans & Ho 2022). sample: the clean image x_0."""
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"
    """Variance of the ancestral sampler's steps. fixed_small: that of the posterior given x_0. fixed_large: beta.
    learned_range: the network chooses between the two, which needs diffusion.loss hybrid or bound."""
    clip_sample: bool = False
    """Clip the predicted x_0 to [-1, 1] while sampling. Use it for pixels; latents have no bounds."""
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "trailing"
    """Which timesteps a sampler with fewer than T steps visits. trailing starts at T, where training ends too (Lin et al.
    2023)."""
    rescale_betas_zero_snr: bool = False
    """Rescale the betas so that the last timestep is pure noise (Lin et al. 2023). Not for prediction_type epsilon."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other argument of diffusers.DDPMScheduler: trained_betas, clip_sample_range, steps_offset."""

    @property
    def learns_variance(self) -> bool:
        """Whether the network sets the variance of the ancestral sampler's steps."""
        return self.variance_type == "learned_range"

    def check(self) -> None:
        """Raise UserError where arguments contradict each other."""
        self.check_extra()
        betas = self.extra.get("trained_betas")
        if betas is not None and (not isinstance(betas, list | tuple) or len(betas) != self.num_train_timesteps):
            raise UserError(
                "scheduler.extra.trained_betas must be a list with one entry per timestep: "
                f"scheduler.num_train_timesteps is {self.num_train_timesteps}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"scheduler.beta_start {self.beta_start} is above scheduler.beta_end {self.beta_end}; the noise must not shrink"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise UserError(
                "scheduler.rescale_betas_zero_snr does not work with scheduler.prediction_type epsilon: at pure noise, the "
                "noise carries no information about the image; set scheduler.prediction_type to v_prediction"
            )


Kind = Literal["vp", "vp-continuous", "subvp", "ve", "edm", "flow"]  # vp, and the keys of levels.KINDS
SETTINGS = {
    "ve": ("sigma_min", "sigma_max", "conditioned"),
    "edm": ("sigma_min", "sigma_max", "sigma_data"),
    "flow": ("shift",),
}


@dataclass
class ProcessConfig:
    """The forward process. A key that is null has the value of the process's paper."""

    kind: Kind = "vp"
    """vp: DDPM's, in timesteps, with all of the section scheduler (Ho et al. 2020). vp-continuous, subvp, ve: the three of Song
    et al. 2021. edm: Karras et al. 2022. flow: rectified flow (Liu et al. 2022). Only vp uses the section scheduler."""
    prediction: Literal["epsilon", "v_prediction", "sample", "flow"] | None = None
    """What the network predicts; see scheduler.prediction_type. flow: the velocity, noise - x_0. null: flow predicts flow, edm
    v_prediction, which is its own preconditioning, the others epsilon."""
    times: Literal["uniform", "normal", "log-snr"] | None = None
    """How training times are drawn. uniform: in time. normal: log SNR is normally distributed, which is edm's own; for flow it
    is the logit-normal distribution of Esser et al. 2024. log-snr: uniform in log SNR."""
    log_snr: tuple[float, PositiveFloat] | None = None
    """Mean and standard deviation of log SNR for times: normal. null: [2.4, 2.4] for edm, [0, 2] for the others, less by what
    `shift` adds to the noise."""
    shift: PositiveFloat | None = None
    """For flow: above 1 spends more of the way at high noise, as large images need (Esser et al. 2024)."""
    sigma_min: PositiveFloat | None = None
    """For ve and edm: the least noise. null: 0.01 and 0.002."""
    sigma_max: PositiveFloat | None = None
    """For ve and edm: the most noise. null: for ve the largest distance between two held-out images (Song & Ermon 2020), for
    edm 80."""
    sigma_data: PositiveFloat | None = None
    """For edm: the standard deviation of the data. null: 0.5 for pixels, 1 for latents."""
    conditioned: bool | None = None
    """For ve: false hides the noise level from the network (Song & Ermon 2020, technique 3)."""

    def check(self) -> None:
        """Raise UserError where keys contradict each other."""
        for key in ("shift", "sigma_min", "sigma_max", "sigma_data", "conditioned"):
            if getattr(self, key) is not None and key not in SETTINGS.get(self.kind, ()):
                kinds = " and ".join(kind for kind, keys in SETTINGS.items() if key in keys)
                raise UserError(f"process.{key} is for {kinds}, not for process.kind {self.kind}: remove it")
        if self.kind == "vp" and (self.prediction or self.times):
            key = "prediction" if self.prediction else "times"
            other = "set scheduler.prediction_type" if self.prediction else "remove it"
            raise UserError(f"process.{key} is for the processes in continuous time, not for vp: {other}")
        if (self.kind, self.prediction) == ("flow", "epsilon"):
            raise UserError(
                "process.prediction epsilon does not work with process.kind flow: at pure noise, the noise carries no "
                "information about the image; use flow, v_prediction or sample"
            )
        if self.log_snr is not None and not math.isfinite(self.log_snr[0]):
            raise UserError(f"process.log_snr has the mean {self.log_snr[0]}; give a finite number")
        if self.log_snr is not None and self.times != "normal" and self.kind != "edm":
            raise UserError("process.log_snr is for process.times normal: set both, or remove it")
        if self.sigma_min and self.sigma_max and self.sigma_min >= self.sigma_max:
            raise UserError(f"process.sigma_min {self.sigma_min:g} is not below process.sigma_max {self.sigma_max:g}")

    def settings(self, measured: dict[str, float]) -> dict[str, Any]:
        """The settings of the process, from the recipe or else from the data."""
        given = {key: getattr(self, key) for key in SETTINGS.get(self.kind, ())}
        both = {key: measured.get(key) if value is None else value for key, value in given.items()}
        return {key: value for key, value in both.items() if value is not None}


def pixel_scheduler() -> SchedulerConfig:
    """The forward process of Ho et al. 2020, for images in [-1, 1]."""
    return SchedulerConfig(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="epsilon",
        variance_type="fixed_large",
        clip_sample=True,
    )


def _check_blocks(section: str, widths: tuple[int, ...], down: tuple[str, ...], up: tuple[str, ...], groups: int) -> None:
    if not len(widths) == len(down) == len(up):
        raise UserError(
            f"{section}.block_out_channels, {section}.down_block_types and {section}.up_block_types have {len(widths)}, "
            f"{len(down)} and {len(up)} entries; give one for each resolution"
        )
    if odd := [width for width in widths if width % groups]:
        raise UserError(f"{section}.norm_num_groups {groups} does not divide the width {odd[0]} in block_out_channels")
