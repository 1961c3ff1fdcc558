"""The config sections `unet`, `vq` and `scheduler`: diffusers' own arguments under their own names, with our defaults.

Each dataclass lists what UNet2DModel, VQModel or DDPMScheduler takes (tests/test_config.py holds the names against the
installed signatures), so that `--help` explains them and a mistyped key is refused without importing diffusers.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from tinyldm.errors import UserError


@dataclass
class UNetConfig:
    """diffusers.UNet2DModel; the defaults have 5.4M parameters for latents of 64 x 64 x 3."""

    sample_size: int | None = None
    """Side of its input. null: taken from the data's resolution and the first stage."""
    in_channels: int | None = None
    """null: the first stage's latent channels."""
    out_channels: int | None = None
    """null: as in_channels."""
    center_input_sample: bool = False
    """Map inputs from [0, 1] to [-1, 1]; ours are centred already."""
    time_embedding_type: Literal["positional", "fourier", "learned"] = "positional"
    """How the timestep is told to the network."""
    time_embedding_dim: int | None = None
    """Width of the time embedding. null: four times the first of block_out_channels."""
    freq_shift: int = 0
    """Shift of the positional embedding's frequencies."""
    flip_sin_to_cos: bool = True
    """Cosines before sines in the positional embedding."""
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    """One block a resolution, from the finest; AttnDownBlock2D has self-attention."""
    mid_block_type: str | None = "UNetMidBlock2D"
    """The block at the coarsest resolution."""
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    """The mirror of down_block_types."""
    block_out_channels: tuple[int, ...] = (64, 64, 128, 128)
    """Width of each block, from the finest."""
    layers_per_block: int = 1
    """Residual layers a block."""
    mid_block_scale_factor: float = 1.0
    """Divides the output of the middle's residual layers."""
    downsample_padding: int = 1
    """Padding of the strided convolutions."""
    downsample_type: Literal["conv", "resnet"] = "conv"
    """What halves the side."""
    upsample_type: Literal["conv", "resnet"] = "conv"
    """What doubles it."""
    dropout: float = 0.0
    """Dropout in the residual layers."""
    act_fn: str = "silu"
    """The nonlinearity."""
    attention_head_dim: int | None = 32
    """Channels of an attention head."""
    norm_num_groups: int = 32
    """Groups of the group normalisations; divides each width."""
    attn_norm_num_groups: int | None = None
    """Groups before the middle's attention. null: as norm_num_groups."""
    norm_eps: float = 1e-5
    """Added to the variance in the normalisations."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "scale_shift"
    """default: the time embedding is added; scale_shift: it scales and shifts the normalised features."""
    add_attention: bool = True
    """Self-attention in the middle block."""
    class_embed_type: Literal["timestep", "identity"] | None = None
    """How labels become embeddings. null: by a table, when there is num_class_embeds."""
    num_class_embeds: int | None = None
    """Number of classes for a label-conditional model."""
    num_train_timesteps: int | None = None
    """Only for time_embedding_type learned."""

    def check(self, scheduler: "SchedulerConfig") -> None:
        """Raise UserError where arguments contradict each other."""
        blocks = len(self.block_out_channels)
        if not blocks == len(self.down_block_types) == len(self.up_block_types):
            raise UserError(
                f"unet.block_out_channels, unet.down_block_types and unet.up_block_types have {blocks}, "
                f"{len(self.down_block_types)} and {len(self.up_block_types)} entries; give one for each resolution"
            )
        _check_groups("unet", self.block_out_channels, self.norm_num_groups)
        if scheduler.rescale_betas_zero_snr and scheduler.prediction_type == "epsilon":
            raise UserError(
                "scheduler.rescale_betas_zero_snr with prediction_type epsilon: at zero SNR the noise says nothing "
                "about the image; set scheduler.prediction_type to v_prediction"
            )


@dataclass
class VQConfig:
    """diffusers.VQModel; the defaults are the VQ-f4 of latent diffusion (55.3M parameters)."""

    in_channels: int = 3
    """Channels of the images."""
    out_channels: int = 3
    """Channels of the reconstructions."""
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 3
    """One block a resolution; all but the last halve the side, so that 3 blocks make f4."""
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 3
    """The mirror of down_block_types."""
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    """Width of each block, from the finest."""
    layers_per_block: int = 2
    """Residual layers a block; the decoder has one more."""
    act_fn: str = "silu"
    """The nonlinearity."""
    latent_channels: int = 3
    """Channels of the latents."""
    sample_size: int = 256
    """Side of the images it is meant for; kept for the record only."""
    num_vq_embeddings: int = 8192
    """Codes in the codebook."""
    norm_num_groups: int = 32
    """Groups of the group normalisations; divides each width."""
    vq_embed_dim: int | None = None
    """Channels of a code. null: latent_channels."""
    scaling_factor: float = 0.18215
    """Overwritten by train_vq.py with 1 / standard deviation of the latents, measured on the data."""
    norm_type: Literal["group", "spatial"] = "group"
    """Normalisation in the decoder; spatial modulates it by the code."""
    mid_block_add_attention: bool = True
    """Self-attention in the middle blocks."""
    lookup_from_codebook: bool = False
    """Whether decode() can take code indices."""
    force_upcast: bool = False
    """Kept in the config for pipelines that decode in fp32."""

    @property
    def downscale(self) -> int:
        """The factor f between the sides of an image and of its latents."""
        return 2 ** (len(self.block_out_channels) - 1)

    def check(self) -> None:
        """Raise UserError where arguments contradict each other."""
        blocks = len(self.block_out_channels)
        if not blocks == len(self.down_block_types) == len(self.up_block_types):
            raise UserError(
                f"vq.block_out_channels, vq.down_block_types and vq.up_block_types have {blocks}, "
                f"{len(self.down_block_types)} and {len(self.up_block_types)} entries; give one for each resolution"
            )
        _check_groups("vq", self.block_out_channels, self.norm_num_groups)


@dataclass
class SchedulerConfig:
    """diffusers.DDPMScheduler, the forward process; the defaults are latent diffusion's."""

    num_train_timesteps: int = 1000
    """Length T of the forward process."""
    beta_start: float = 0.0015
    """The first beta."""
    beta_end: float = 0.0195
    """The last beta."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """scaled_linear is linear in the square root of beta, squaredcos_cap_v2 the cosine schedule."""
    trained_betas: list[float] | None = None
    """The betas themselves, instead of a schedule."""
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"
    """Variance of the ancestral sampler's steps; learned_range: between the two, where the network says."""
    clip_sample: bool = False
    """Clip the predicted x0: off for latents, which are not bounded."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    """epsilon (the noise), v_prediction (Salimans & Ho 2022) or sample (x0)."""
    thresholding: bool = False
    """Dynamic thresholding, for pixels only."""
    dynamic_thresholding_ratio: float = 0.995
    """Quantile for the thresholding."""
    clip_sample_range: float = 1.0
    """Bound for clip_sample."""
    sample_max_value: float = 1.0
    """Bound for thresholding."""
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "trailing"
    """Which timesteps a sampler with fewer steps visits; trailing begins at T (Lin et al. 2023)."""
    steps_offset: int = 0
    """Added to the timesteps of the leading spacing."""
    rescale_betas_zero_snr: bool = False
    """Rescale the betas so that nothing of the image is left at T (Lin et al. 2023)."""

    def arguments(self) -> dict:
        """Keyword arguments of DDPMScheduler."""
        return asdict(self)

    def check(self) -> None:
        """Raise UserError for a schedule that is none."""
        if self.num_train_timesteps < 1:
            raise UserError(f"scheduler.num_train_timesteps is {self.num_train_timesteps}; give a number above 0")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise UserError(
                f"scheduler.trained_betas has {len(self.trained_betas)} entries, but scheduler.num_train_timesteps is "
                f"{self.num_train_timesteps}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"scheduler.beta_start {self.beta_start} and scheduler.beta_end {self.beta_end} must lie between 0 and 1, "
                "the first not above the last"
            )


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


def _check_groups(section: str, widths: tuple[int, ...], groups: int) -> None:
    if groups < 1:
        raise UserError(f"{section}.norm_num_groups is {groups}; give a number above 0")
    if odd := [width for width in widths if width % groups]:
        raise UserError(f"{section}.norm_num_groups {groups} does not divide the width {odd[0]} in block_out_channels")
