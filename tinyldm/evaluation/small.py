"""The small images that a super-resolution stage enlarges while it is measured: real ones, or those of the stage before."""

from typing import Any

import torch
from tqdm.auto import tqdm

from tinyldm.data.images import to_float, to_uint8
from tinyldm.data.small import shrink
from tinyldm.drawing import sampling
from tinyldm.drawing.cascade import as_seen, check_chain
from tinyldm.evaluation.workspace import Workspace
from tinyldm.first_stage.autoencoder import fingerprint
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model


def give_small(workspace: Workspace, model: Model, count: int) -> dict[str, Any]:
    """Give a super-resolution stage `count` small images, or as many as there are. Returns what they are, as JSON.

    `small_from` null: the held-out images, made small; else images of that model, from the seeds of the samples.

    Raises:
        UserError: for a model whose images do not fit.
    """
    config = workspace.config
    if model.low_resolution is None:
        return {}
    side = model.low_resolution.config.side
    if config.small_from is None:
        part = workspace.part("held_out", count)
        small = torch.cat([to_uint8(shrink(to_float(images), side)) for images, _ in part.batches(0, count)])
        told: dict[str, Any] = {"small images": "held-out images", "of": part.key, "number": len(small)}
        if len(small) < count:
            workspace.notes.append(f"there are {len(small)} held-out images to enlarge: some are enlarged more than once")
    else:
        before = load_model(config.small_from, workspace.device, model.dtype)
        check_chain([before, model], [config.small_from, str(config.model)])
        batches = sampling.sample(before, count, config.batch_size, config.seed, config)
        total = -(-count // config.batch_size)
        small = torch.cat([b.expand(-1, 3, -1, -1) for b in tqdm(batches, "drawing small images", total, unit="batch")])
        told = {"small images": config.small_from, "weights": fingerprint(before.unet)[:16]}
    seen = torch.cat([as_seen(model, part).cpu() for part in small.split(config.batch_size)])
    shift = config.seed % len(seen)  # the first sample's seed gets the first image
    model.small = seen.roll(shift, 0)
    return told
