"""The network that removes noise, and how it is called.

All other code calls a `Denoiser`: (x_t, times, condition) -> prediction. Other kinds of networks belong in this file.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from tinyldm.config.networks import UNetConfig
from tinyldm.config.schema import TrainConfig
from tinyldm.data.augment import CHANGES
from tinyldm.data.batch import UNCONDITIONAL, Condition
from tinyldm.data.columns import LabelColumn, names_and_values
from tinyldm.errors import UserError, boundary
from tinyldm.limits import check_parameters
from tinyldm.portable.label_embedding import LabelEmbedding
from tinyldm.portable.low_resolution import LowResolution

Predictor = Callable[..., torch.Tensor]  # a Denoiser, bare or wrapped for several GPUs


class Denoiser(nn.Module):
    """A UNet2DModel with the embedding of its labels: what is trained, and what samplers and losses call.

    Attributes:
        unet: returns an object with `.sample`.
        labels: None for a model without labels.
        low_resolution: None for a model that starts from noise alone.
        changes: takes what was done to a training image; for nothing it gives 0, so it is not exported. None: nothing is done.
    """

    def __init__(
        self,
        unet: Any,
        labels: LabelEmbedding | None = None,
        low_resolution: LowResolution | None = None,
        changes: nn.Linear | None = None,
    ):
        super().__init__()
        self.unet: Any = unet
        self.labels, self.low_resolution, self.changes = labels, low_resolution, changes

    def forward(self, x_t: torch.Tensor, times: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        """The prediction (B, C, H, W), or (B, 2 C, H, W) from a network that learns the variance.

        Args:
            x_t, times: (B, C, H, W) and (B,) or (), as Process.inputs gives them.
        """
        vectors: list[torch.Tensor] = []
        if self.labels is not None:
            assert condition.labels is not None
            vectors.append(self.labels(condition.labels))
            if condition.other_labels is not None and condition.share is not None:
                vectors[0] = torch.lerp(
                    vectors[0], self.labels(condition.other_labels), condition.share[:, None].to(vectors[0])
                )
        if self.low_resolution is not None:
            assert condition.low_resolution is not None and condition.augmentation is not None
            x_t = torch.cat([x_t, condition.low_resolution.to(x_t)], 1)
            vectors.append(self.low_resolution(condition.augmentation))
        if self.changes is not None:
            changes = x_t.new_zeros(len(x_t), CHANGES) if condition.changes is None else condition.changes
            vectors.append(self.changes(changes))
        return self.unet(x_t, times, class_labels=sum(vectors) if vectors else None).sample


def make_denoiser(
    config: UNetConfig,
    side: int,
    channels: int,
    labels: Sequence[LabelColumn] = (),
    learns_variance: bool = False,
    rows: int = 1,
    low_resolution: tuple[int, int, float] | None = None,
    augment: bool = False,
) -> Denoiser:
    """Make a denoiser for inputs (B, channels, side, side). These values determine what the section unet does not set.

    Args:
        labels: the columns that it is conditioned on.
        learns_variance: the output has twice the channels, the second half for the variance.
        rows: see LabelEmbedding.
        low_resolution: side, channels and highest noise of the low-resolution images; see LowResolution.
        augment: it is told what was done to training images.

    Raises:
        UserError: for a shape that cannot be built, or arguments that diffusers refuses.
    """
    arguments = unet_arguments(config, side, channels, 2 * channels if learns_variance else channels)
    if low_resolution:
        arguments["in_channels"] += low_resolution[1]
    if labels or low_resolution or augment:
        arguments["class_embed_type"] = "identity"  # it adds vectors to those of the time
    with boundary("cannot build a UNet2DModel from the section unet"):
        try_denoiser(arguments)
        unet = UNet2DModel(**arguments)
    width, columns = embedding_width(unet), names_and_values(labels)
    embedding = LabelEmbedding(columns, width, rows) if labels else None
    small = LowResolution(low_resolution[0], low_resolution[1], width, low_resolution[2]) if low_resolution else None
    changes = nn.Linear(CHANGES, width, bias=False) if augment else None
    return Denoiser(unet, embedding, small, changes)


def unet_arguments(config: UNetConfig, side: int, channels: int, out_channels: int) -> dict[str, Any]:
    """The arguments of a UNet2DModel for inputs (B, channels, side, side).

    Raises:
        UserError: for a shape that cannot be built.
    """
    halvings = len(config.block_out_channels) - 1
    if side % 2**halvings:
        raise UserError(
            f"the network halves its input of side {side} {halvings} times, but {side} is not divisible by {2**halvings}; "
            "change data.resolution, or use fewer blocks in unet.block_out_channels"
        )
    pairs = zip(config.down_block_types, config.block_out_channels, strict=True)
    attended = [width for kind, width in pairs if "Attn" in kind] + [config.block_out_channels[-1]] * config.add_attention
    if config.attention_head_dim and config.attention_head_dim > min(attended, default=math.inf):  # it would have no head
        raise UserError(f"unet.attention_head_dim {config.attention_head_dim} is wider than a block with attention")
    derived = {"sample_size": side, "in_channels": channels, "out_channels": out_channels}
    return {**config.arguments(), **derived}


def embedding_width(unet: UNet2DModel) -> int:
    """Length of the vectors that a UNet2DModel adds up: of the time, and of labels."""
    return unet.time_embedding.linear_2.out_features


def try_denoiser(arguments: Mapping[str, Any]) -> None:
    """Run a UNet2DModel with these arguments once, without weights: bad values may only show there.

    Raises:
        Exception: whatever diffusers raises for them.
    """
    with torch.device("meta"):
        network = UNet2DModel.from_config(dict(arguments))
        check_parameters(network)
        side, channels = network.config.sample_size, network.config.in_channels
        vectors = torch.zeros(1, embedding_width(network)) if network.config.class_embed_type == "identity" else None
        network(torch.zeros(1, channels, side, side), torch.zeros(1), class_labels=vectors)


def switch_on(network: Any, train: TrainConfig) -> None:
    """Turn on gradient checkpointing and xformers' attention if the config asks for them.

    Args:
        network: has a UNet2DModel `unet`.

    Raises:
        UserError: for xformers without CUDA or the package.
    """
    if train.gradient_checkpointing:
        network.unet.enable_gradient_checkpointing()
    if not train.xformers:
        return
    if not torch.cuda.is_available():
        raise UserError("train.xformers needs CUDA (and pip install xformers); set it to false to use PyTorch's own attention")
    try:
        network.unet.enable_xformers_memory_efficient_attention()
    except (ImportError, ModuleNotFoundError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"train.xformers: {error}; pip install xformers (a build for this torch), or set it to false"
        ) from error
