"""Smaller versions of images, for super-resolution stages. portable/low_resolution.py enlarges them again."""

import torch
import torch.nn.functional as F


def shrink(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (B, C, H, H) in [-1, 1] -> (B, C, side, side), as a data set of this resolution has them: 8 bits, antialiased."""
    small = F.interpolate(images, size=side, mode="bicubic", antialias=True)
    return ((small.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
