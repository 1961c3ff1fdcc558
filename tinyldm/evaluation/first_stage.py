"""Measures a first stage: its reconstructions of the held-out part against the held-out part."""

import functools
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tinyldm import pictures
from tinyldm.data.images import to_float, to_uint8
from tinyldm.errors import UserError
from tinyldm.evaluation.models import weights_stamp
from tinyldm.evaluation.workspace import RECONSTRUCTIONS, Workspace, entry
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.metrics import distances
from tinyldm.metrics.chunks import Arrays
from tinyldm.metrics.image_sets import pick
from tinyldm.metrics.lpips import load_lpips
from tinyldm.models.model import decoded_at_once


def reconstruct(first_stage: FirstStage, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (B, 3, H, W) -> their latents, and their reconstructions in uint8."""
    weight, config = next(first_stage.model.parameters()), first_stage.model.config
    images = batch[:, : config.in_channels]  # a grey first stage takes one of three equal channels
    latents, decoded = [], []
    for part in images.split(decoded_at_once(images[0, 0].numel() // first_stage.downscale**2)):
        latents.append(first_stage.encode(to_float(part.to(weight.device)).to(weight.dtype)))
        decoded.append(to_uint8(first_stage.decode(latents[-1])))
    return torch.cat(latents), torch.cat(decoded).expand(-1, 3, -1, -1)


def measure_first_stage(workspace: Workspace, first_stage: FirstStage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare reconstructions of the held-out part with the held-out part.

    Returns:
        The key of the images with their count, and the result for evaluation.json.

    Raises:
        UserError: for another reference than the held-out part, or a sweep.
    """
    config = workspace.config
    if config.reference != "held_out":
        raise UserError("a first stage is measured on the held-out part: remove --reference")
    if config.sweep:
        raise UserError("sweep is about samples, and a first stage draws none: remove it")
    limit = min(filter(None, (config.num_images, config.num_reference)), default=None)
    _, reference, description = workspace.reference(limit)
    count = len(reference)
    try:
        lpips = load_lpips().to(workspace.device)
    except UserError:
        lpips = None
        workspace.notes.append("no LPIPS: the weights of its VGG16 cannot be loaded")
    key = weights_stamp(config, first_stage.model)
    measure = functools.partial(_measure, workspace, first_stage, lpips)
    settings = {**key, "lpips": lpips is not None}
    arrays = workspace.own_features(RECONSTRUCTIONS, workspace.part("held_out", limit), count, measure, **settings)
    compared = workspace.compare(arrays, reference, [name for name in config.chosen if name in ("fid", "kid")])
    metrics = {f"r{name}": measured for name, measured in compared.items()}
    for name in ("PSNR", "SSIM", "LPIPS"):
        if name in arrays:
            metrics[name] = entry(distances.average(arrays[name]), count)
    result: dict[str, Any] = {
        "reference": description,
        "figures": {name: {RECONSTRUCTIONS: measured} for name, measured in metrics.items()},
    }
    if "codes" in arrays:
        size = first_stage.model.config.num_vq_embeddings
        result["codebook"] = {**distances.codebook_use(arrays["codes"], size), "images": count}
    _save_reconstructions(workspace, first_stage, min(16, count))
    return {**key, "count": count}, result


@torch.no_grad()
def _measure(workspace: Workspace, first_stage: FirstStage, lpips: nn.Module | None, batch: torch.Tensor) -> Arrays:
    """Features of a batch's reconstructions, and their quality per image."""
    latents, decoded = reconstruct(first_stage, batch)
    pair = decoded.float(), batch.to(decoded.device).float()
    ssim = structural_similarity_index_measure(*pair, data_range=255.0, reduction="none")
    assert isinstance(ssim, torch.Tensor)  # it returns more only if asked to
    arrays = {
        **workspace.network.embed(decoded),
        "PSNR": peak_signal_noise_ratio(*pair, data_range=255.0, dim=(1, 2, 3), reduction="none").cpu().numpy(),
        "SSIM": ssim.cpu().numpy(),
    }
    if lpips is not None:
        arrays["LPIPS"] = lpips(*(to_float(images) for images in pair)).flatten().cpu().numpy()
    if isinstance(first_stage.model, VQModel):
        arrays["codes"] = first_stage.codes(latents).flatten(1).int().cpu().numpy()
    return arrays


def _save_reconstructions(workspace: Workspace, first_stage: FirstStage, count: int) -> None:
    """Save a picture of held-out images, each row above its reconstructions."""
    originals = pick(workspace.part("held_out", count), np.arange(count))
    decoded = reconstruct(first_stage, originals)[1].cpu()
    rows = [half for pair in zip(originals.split(8), decoded.split(8), strict=True) for half in pair]
    picture = pictures.grid(torch.cat(rows), min(8, count))
    picture.save(workspace.manifest.own(workspace.output / "reconstructions.png"))
