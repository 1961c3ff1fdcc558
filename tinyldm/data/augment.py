"""Random changes of training images that the network is told, so that its samples show none of them (Karras et al. 2022,
"Elucidating the Design Space of Diffusion-Based Generative Models", appendix F.2). For data sets of some hundred images.
"""

import math

import torch
import torch.nn.functional as F

from tinyldm.randomness import Draw

CHANGES = 5  # numbers that say what was done: log2 of the scale, sine of the rotation and 1 - its cosine, two shifts
SCALE, SHIFT = 0.2, 0.125  # standard deviations, of log2 of the scale and of shifts in half sides


def augment_images(images: torch.Tensor, chance: float, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale, rotate and shift each image (B, C, S, S), each with this chance; what leaves the frame is mirrored back in.

    Returns:
        The images, and what was done to them (B, CHANGES): 0 for nothing.
    """
    count = len(images)
    chosen = draw.uniform(3 * count).view(3, count).to(images) < chance
    normal, turn = draw.normal((count, 3)).to(images), draw.uniform(count).to(images)
    log_scale = torch.where(chosen[0], SCALE * normal[:, 0], 0)
    angle = torch.where(chosen[1], 2 * math.pi * turn, 0)
    shift = torch.where(chosen[2, :, None], SHIFT * normal[:, 1:], 0)
    sine, cosine, size = angle.sin(), angle.cos(), 2**-log_scale
    rows = [[size * cosine, -size * sine, shift[:, 0]], [size * sine, size * cosine, shift[:, 1]]]
    places = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), list(images.shape), align_corners=False)
    changed = F.grid_sample(images, places, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
    told = torch.stack([log_scale, sine, 1 - cosine, *shift.unbind(1)], 1)
    return torch.where((told != 0).any(1)[:, None, None, None], changed, images), told
