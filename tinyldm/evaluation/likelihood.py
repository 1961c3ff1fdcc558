"""Measures the likelihood of held-out images under a model of pixels: what `evaluate.py --metrics likelihood` does."""

import json
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tinyldm.data.batch import Batch, Condition
from tinyldm.data.images import to_float
from tinyldm.drawing import likelihood
from tinyldm.errors import UserError
from tinyldm.evaluation.labels import renumber
from tinyldm.evaluation.models import weights_stamp
from tinyldm.evaluation.workspace import Workspace, entry
from tinyldm.files import replace_text
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.metrics import distances
from tinyldm.models.model import Model
from tinyldm.process.bound import BIN

ENCODED = 16  # images that are also encoded and decoded again


def measure_likelihood(workspace: Workspace, model: Model | FirstStage | None) -> str:
    """Measure, write likelihood.json, and return what to print.

    Raises:
        UserError: for a model of latents, or a super-resolution stage.
    """
    config, settings = workspace.config, workspace.config.likelihood
    if not isinstance(model, Model):
        raise UserError("likelihood is for diffusion models: a first stage has none; choose other --metrics")
    if model.first_stage is not None:
        raise UserError(
            "likelihood is for models of pixels: this one has a density of latents, not of images. Its held-out loss is "
            "eval_loss in metrics.csv; --metrics fid,kid,prdc compares its images"
        )
    if model.low_resolution is not None:
        raise UserError("likelihood is for models that draw from noise alone: this one is a super-resolution stage")
    images = images_of(workspace, model)
    held_out, dimensions = Batch(images, condition_of(workspace, model, len(images))), images[0].numel()
    exact = settings.divergence == "exact"
    bits, calls = [], []
    workspace.start()
    with tqdm(total=len(images), unit="image", desc="likelihood", dynamic_ncols=True) as bar:
        for rows in torch.arange(len(images)).split(config.batch_size):
            (x0, condition), shape = held_out.take(rows), images[rows].shape
            random = [torch.Generator().manual_seed(config.seed + int(row)) for row in rows]
            places = torch.stack([torch.rand(shape[1:], generator=g, dtype=torch.float64) for g in random])
            x0 = x0.double() + BIN * (2 * places - 1)  # anywhere in the bin of the value
            divergence: likelihood.Divergence = likelihood.exact_divergence
            if not exact:
                probes = torch.stack([torch.randint(0, 2, (settings.probes, *shape[1:]), generator=g) for g in random], 1)
                divergence = likelihood.estimated_divergence((2.0 * probes - 1).to(model.device, model.dtype))
            log_p, evaluations = likelihood.log_density(model, x0, settings.tolerance, divergence, condition.to(model.device))
            bits.append(likelihood.bits_per_dimension(log_p, dimensions))
            calls.append(evaluations)
            bar.update(len(rows))
    x0, condition = held_out.take(torch.arange(min(ENCODED, len(images)))).to(model.device)
    noise = likelihood.encode(model, x0, settings.tolerance, condition)
    back = likelihood.decode(model, noise, settings.tolerance, condition)
    error = float((back - x0.cpu().double()).square().mean().sqrt()) / (2 * BIN)
    found: dict[str, Any] = {
        **weights_stamp(config, model.unet, model.labels),
        "bits_per_dimension": entry(distances.average(torch.cat(bits).numpy()), len(images)),
        "evaluations": float(np.mean(calls)),
        "tolerance": settings.tolerance,
        "divergence": "exact" if exact else f"Hutchinson's estimator, {settings.probes} probes",
        "noise_deviation": float(noise.std()),
        "encoding_error": error,
        "process": model.process.describe(),
    }
    replace_text(workspace.manifest.own(workspace.output / "likelihood.json"), json.dumps(found, indent=1) + "\n")
    return _text(found, workspace)


def images_of(workspace: Workspace, model: Model) -> torch.Tensor:
    """The held-out images (N, C, H, W) in [-1, 1]: `num_images` of them, or all."""
    limit = workspace.config.num_images
    images = torch.cat([batch for batch, _ in workspace.part("held_out", limit).batches(0, limit)])[:limit]
    return to_float(images[:, : model.channels])


def condition_of(workspace: Workspace, model: Model, count: int) -> Condition:
    """The labels of those images, as far as the data name them."""
    source = workspace.sources["held_out"]
    if model.labels is None or not source.labels:
        return model.named_labels(count)
    found = workspace.part_labels("held_out", workspace.config.num_images)[:count]
    return Condition(torch.from_numpy(renumber(found, source.labels, model.labels.values)))


def _text(found: dict[str, Any], workspace: Workspace) -> str:
    bits = found["bits_per_dimension"]
    return (
        f"\n{bits['value']:.4f} [{bits['low']:.4f}, {bits['high']:.4f}] bits per dimension, the mean of {bits['images']:,} "
        f"held-out images with uniform noise in their last bit\n"
        f"{found['evaluations']:.0f} evaluations of the network a batch (tolerance {found['tolerance']:g}); divergence: "
        f"{found['divergence']}; process: {found['process']}\n"
        f"image to noise and back: an error of {found['encoding_error']:.3f} of 255 levels\n\n"
        f"in {workspace.output / 'likelihood.json'}"
    )
