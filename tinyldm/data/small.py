"""Smaller versions of images, for super-resolution stages."""

import torch
import torch.nn.functional as F


def shrink(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (B, C, H, H) in [-1, 1] -> (B, C, side, side), as a data set of this resolution has them: 8 bits, antialiased."""
    small = F.interpolate(images, size=side, mode="bicubic", antialias=True)
    return ((small.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def enlarge(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (B, C, h, h) in [-1, 1] -> (B, C, side, side), without new details."""
    return F.interpolate(images, size=side, mode="bicubic").clamp(-1, 1)
