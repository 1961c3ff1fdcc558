"""The network that removes noise, and how it is called.

All other code calls a `Denoiser`: (x_t, times, condition) -> prediction. Other kinds of networks belong in this file.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from tinyldm.config.networks import UNetConfig
from tinyldm.config.schema import TrainConfig
from tinyldm.data.batch import UNCONDITIONAL, Condition
from tinyldm.errors import UserError, boundary
from tinyldm.limits import check_parameters


class Denoiser:
    """Calls a UNet2DModel, bare or wrapped for several GPUs.

    Attributes:
        network: returns an object with `.sample`.
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def __call__(self, x_t: torch.Tensor, times: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        """The prediction (B, C, H, W), or (B, 2 C, H, W) from a network that learns the variance.

        Args:
            x_t: (B, C, H, W).
            times: (B,) or (), in the units of Process.network_times.
        """
        return self.network(x_t, times, class_labels=condition.labels).sample


def make_denoiser(
    config: UNetConfig, side: int, channels: int, classes: int | None = None, learns_variance: bool = False
) -> UNet2DModel:
    """Make a UNet2DModel for inputs (B, channels, side, side). These values determine what the section unet does not set.

    Args:
        classes: number of classes, for a class-conditional network.
        learns_variance: the output has twice the channels, the second half for the variance.

    Raises:
        UserError: for a shape that cannot be built, or arguments that diffusers refuses.
    """
    out_channels = 2 * channels if learns_variance else channels
    halvings = len(config.block_out_channels) - 1
    if side % 2**halvings:
        raise UserError(
            f"the denoiser halves its input of side {side} {halvings} times, but {side} is not divisible by {2**halvings}; "
            "change data.resolution, or use fewer blocks in unet.block_out_channels"
        )
    pairs = zip(config.down_block_types, config.block_out_channels, strict=True)
    attended = [width for kind, width in pairs if "Attn" in kind] + [config.block_out_channels[-1]] * config.add_attention
    if config.attention_head_dim and config.attention_head_dim > min(attended, default=math.inf):  # it would have no head
        raise UserError(f"unet.attention_head_dim {config.attention_head_dim} is wider than a block with attention")
    derived = {"sample_size": side, "in_channels": channels, "out_channels": out_channels, "num_class_embeds": classes}
    with boundary("cannot build a UNet2DModel from the section unet"):
        arguments = {**config.arguments(), **derived}
        try_denoiser(arguments, side, channels, classes)
        return UNet2DModel(**arguments)


def try_denoiser(arguments: Mapping[str, Any], side: int, channels: int, classes: int | None) -> None:
    """Run a network with these arguments once, without weights: bad values may only show there.

    Raises:
        Exception: whatever diffusers raises for them.
    """
    with torch.device("meta"):
        network = UNet2DModel.from_config(dict(arguments))
        check_parameters(network)
        labels = None if classes is None else torch.zeros(1, dtype=torch.long)
        Denoiser(network)(torch.zeros(1, channels, side, side), torch.zeros(1), Condition(labels))


def switch_on(network: UNet2DModel, train: TrainConfig) -> None:
    """Turn on gradient checkpointing and xformers' attention if the config asks for them.

    Raises:
        UserError: for xformers without CUDA or the package.
    """
    if train.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if not train.xformers:
        return
    if not torch.cuda.is_available():
        raise UserError("train.xformers needs CUDA (and pip install xformers); set it to false to use PyTorch's own attention")
    try:
        network.enable_xformers_memory_efficient_attention()
    except (ImportError, ModuleNotFoundError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"train.xformers: {error}; pip install xformers (a build for this torch), or set it to false"
        ) from error
