"""A classifier of noisy images or latents, for classifier guidance (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on
Image Synthesis", section 4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import nn

from tinyldm.config.networks import UNetConfig
from tinyldm.data.columns import LabelColumn, names_and_values
from tinyldm.errors import boundary
from tinyldm.limits import check_parameters
from tinyldm.models.denoiser import unet_arguments
from tinyldm.portable.label_embedding import numbers_of


class NoisyClassifier(ModelMixin, ConfigMixin):
    """The way down and the middle of a UNet2DModel, the mean over all places, and a linear layer for each column of labels.

    Args:
        columns: for each label its name and the names of its values: [["hat", ["none", "cap"]], ...].
        network: the arguments of the UNet2DModel. Its way up is left out.
        scheduler: the config of a diffusers scheduler: the noise that it was trained on.
        latents: fingerprint and scale of the first stage whose latents it was trained on; None: pixels.
    """

    @register_to_config
    def __init__(
        self, columns: list[Any], network: dict[str, Any], scheduler: dict[str, Any], latents: dict[str, Any] | None = None
    ):
        super().__init__()
        self.values: dict[str, list[str]] = {name: list(values) for name, values in columns}
        self.unet: Any = UNet2DModel(**network)
        width = self.unet.config.block_out_channels[-1]
        self.unet.up_blocks = nn.ModuleList()  # its output is now norm and activation of the middle: (B, width, h, w)
        self.unet.conv_norm_out = nn.GroupNorm(self.unet.config.norm_num_groups, width, self.unet.config.norm_eps)
        self.unet.conv_out = nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for values in self.values.values())

    def forward(self, x_t: torch.Tensor, times: torch.Tensor) -> dict[str, torch.Tensor]:
        """For each label the logits (B, number of values) of its values.

        Args:
            x_t, times: (B, C, S, S) and (B,) or (), as Process.inputs gives them.
        """
        features = self.unet(x_t, times).sample.mean((2, 3))
        return {name: head(features) for name, head in zip(self.values, self.heads, strict=True)}

    def numbers(self, labels: Mapping[str, Any]) -> dict[str, int]:
        """See LabelEmbedding.numbers."""
        return numbers_of(self.values, labels)


def make_classifier(
    config: UNetConfig,
    side: int,
    channels: int,
    labels: Sequence[LabelColumn],
    scheduler: Mapping[str, Any],
    latents: dict[str, Any] | None = None,
) -> NoisyClassifier:
    """Make a classifier for inputs (B, channels, side, side). For the other arguments see NoisyClassifier.

    Raises:
        UserError: see make_denoiser.
    """
    columns = names_and_values(labels)
    with boundary("cannot build a classifier from the section unet"):
        arguments: dict[str, Any] = {
            "columns": columns,
            "network": unet_arguments(config, side, channels, channels),
            "scheduler": dict(scheduler),
            "latents": latents,
        }
        try_classifier(arguments)
        return NoisyClassifier(**arguments)


def try_classifier(arguments: Mapping[str, Any]) -> None:
    """Run a classifier with these arguments once, without weights: bad values may only show there.

    Raises:
        Exception: whatever diffusers raises for them.
    """
    with torch.device("meta"):
        network = NoisyClassifier(**arguments)
        check_parameters(network)
        config = network.unet.config
        network(torch.zeros(1, config.in_channels, config.sample_size, config.sample_size), torch.zeros(1))
