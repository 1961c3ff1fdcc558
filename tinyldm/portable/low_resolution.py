"""What a super-resolution stage is conditioned on: a smaller version of the image (Saharia et al. 2021; Ho et al. 2022,
"Cascaded Diffusion Models for High Fidelity Image Generation").

A copy of this file travels with every such model, so that plain diffusers can load it: it imports nothing of tinyldm.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

FREQUENCIES = 64  # of the sinusoidal embedding


def enlarge(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (B, C, h, h) in [-1, 1] -> (B, C, side, side), without new details."""
    return F.interpolate(images, size=side, mode="bicubic").clamp(-1, 1)


def add_noise(images: torch.Tensor, levels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Conditioning augmentation: sqrt(1 - s^2) image + s noise, with the level s of each image (B,)."""
    s = levels.view(-1, 1, 1, 1).to(images)
    return (1 - s * s).sqrt() * images + s * noise


class LowResolution(ModelMixin, ConfigMixin):
    """The embedding of how much noise was added to the smaller image, which is enlarged and concatenated to x_t.

    Args:
        side: of the smaller image, in pixels.
        channels: of the enlarged one, as the network sees it.
        width: length of the vectors: four times the width of the UNet's first block.
        highest: the highest noise level in training, from 0 to 1.
    """

    enlarge = staticmethod(enlarge)  # for the pipeline, which finds this file only through its component
    add_noise = staticmethod(add_noise)

    @register_to_config
    def __init__(self, side: int, channels: int, width: int, highest: float):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        """Noise levels (B,) -> vectors (B, width)."""
        embedded = get_timestep_embedding(1000 * levels.float(), FREQUENCIES)
        return self.layers(embedded.to(self.layers[0].weight.dtype))
