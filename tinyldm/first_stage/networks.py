"""The networks of a first stage: the autoencoder and its discriminator."""

import itertools
import math

import torch
from diffusers import VQModel
from torch import nn

from tinyldm.config.schema import TrainVQ
from tinyldm.errors import boundary
from tinyldm.limits import check_parameters


class Autoencoder(nn.Module):
    """A VQModel whose forward pass also returns the codes it used."""

    def __init__(self, vq: VQModel):
        super().__init__()
        self.vq = vq
        vq.quantize.legacy = False  # diffusers' default swaps the weights of the codebook and the commitment loss
        self.register_buffer(
            "uses", torch.zeros(vq.config.num_vq_embeddings)
        )  # how often each code was used since the last revival

    def forward(
        self, images: torch.Tensor, quantize: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, C, H, W) in [-1, 1] -> reconstructions, codebook loss (), latents (B, C, h, w), codes (B h w).

        Args:
            quantize: decode the nearest codes. If false, decode the latents themselves; the codebook loss is then 0.
        """
        latents = self.vq.encode(images).latents
        quantized, codebook_loss, (_, _, codes) = self.vq.quantize(latents)
        if not quantize:
            quantized, codebook_loss = latents, 0 * codebook_loss  # times 0: DDP needs a gradient for each weight
        return self.vq.decode(quantized, force_not_quantize=True).sample, codebook_loss, latents, codes


class Discriminator(nn.Module):
    """Distinguishes real from reconstructed patches (Isola et al. 2017). Its small receptive field sees texture, not faces."""

    def __init__(self, channels: int, layers: int, in_channels: int = 3):
        super().__init__()
        widths = [in_channels, *(min(2**i, 8) * channels for i in range(layers)), min(2**layers, 8) * channels]
        blocks = []
        for i, (wide_in, wide_out) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i < layers else 1
            norm = nn.Identity() if i == 0 else nn.GroupNorm(math.gcd(8, wide_out), wide_out)
            blocks.append(nn.Sequential(nn.Conv2d(wide_in, wide_out, 4, stride, 1), norm, nn.LeakyReLU(0.2)))
        self.blocks = nn.Sequential(*blocks)
        self.verdict = nn.Conv2d(widths[-1], 1, 4, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> one logit per patch (B, 1, h, w), positive for real."""
        return self.verdict(self.blocks(images))


def make_vq(config: TrainVQ) -> VQModel:
    """A VQModel with random weights.

    Raises:
        UserError: for arguments that diffusers refuses.
    """
    side, channels = config.data.resolution, config.data.channels
    arguments = {**config.vq.arguments(), "sample_size": side, "in_channels": channels, "out_channels": channels}
    with boundary("cannot build a VQModel from the section vq"):
        with torch.device("meta"):  # bad values may only show in a forward pass; here it costs nothing
            trial = Autoencoder(VQModel(**arguments))
            check_parameters(trial)
            trial(torch.zeros(1, channels, side, side))
        vq = VQModel(**arguments)
    if config.train.gradient_checkpointing:
        vq._supports_gradient_checkpointing = True  # its encoder and decoder support it, the class does not declare it
        vq.enable_gradient_checkpointing()
    return vq


def make_discriminator(config: TrainVQ) -> Discriminator:
    """A discriminator with random weights, run once on an image of the config's size.

    Raises:
        UserError: if it has too many layers for that size.
    """
    side, channels, layers = config.data.resolution, config.data.channels, config.loss.discriminator_layers
    discriminator = Discriminator(config.loss.discriminator_channels, layers, channels)
    with boundary(f"loss.discriminator_layers {layers} are too many for images of {side} px", "use fewer"), torch.no_grad():
        discriminator(torch.zeros(1, channels, side, side))
    return discriminator
