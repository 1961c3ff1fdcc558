"""The model that evaluate.py measures, and its samples."""

from pathlib import Path
from typing import Any

import torch

from tinyldm.config.evaluate import Evaluate, run_folder
from tinyldm.config.parsing import read_yaml
from tinyldm.config.schema import FirstStageConfig
from tinyldm.drawing import sampling
from tinyldm.errors import UserError
from tinyldm.files import digest
from tinyldm.first_stage.autoencoder import SUBFOLDERS, FirstStage, fingerprint, load_first_stage
from tinyldm.metrics.chunks import Batches, Chunks, fill
from tinyldm.metrics.image_sets import ImageSet
from tinyldm.models.loading import load_for
from tinyldm.models.model import Model
from tinyldm.training.power_ema import run_with_snapshots, snapshots


def open_model(config: Evaluate, device: str) -> Model | FirstStage:
    """Load the model that config.model names: a diffusion model, or a first stage.

    Raises:
        UserError: if it is neither, or its images have another size than data.resolution.
    """
    name = config.model
    if name is None:
        raise UserError("set --model to a run, a pipeline folder, or a Hub id")
    local = Path(name).expanduser()
    if config.ema is not None:
        run_with_snapshots(name)
    if local.is_dir() and not any((local / inside).exists() for inside in ("pipeline", "model_index.json")):
        if not any((local / inside).exists() for inside in ("config.json", *SUBFOLDERS)):
            raise UserError(f"{name} is not a model folder: it has neither pipeline/, model_index.json, vqvae/ nor config.json")
        model: Model | FirstStage = load_first_stage(FirstStageConfig(path=name))
    else:
        try:
            model = load_for(name, config, device, getattr(torch, config.dtype))
        except UserError as error:
            if local.exists() or local.is_absolute() or name.startswith("."):
                raise
            try:  # a first stage on the Hub has no model_index.json
                model = load_first_stage(FirstStageConfig(path=name))
            except UserError:
                raise error from None
    if isinstance(model, FirstStage):
        model.model.to(device)
        model.check_resolution(config.data.resolution)
        return model
    if model.side != config.data.resolution:
        raise UserError(
            f"{name} draws {model.side} px images, the reference has {config.data.resolution} (data.resolution): "
            f"set --data.resolution {model.side}"
        )
    for settings in (config, *(settings for _, _, settings in config.swept)):
        model.sampler(settings)  # refuses what this model does not know
    return model


def weights_stamp(config: Evaluate, *modules: torch.nn.Module | None) -> dict[str, Any]:
    """Identifies the weights: the model's name, EMA or raw, and their hash."""
    run = run_folder(config.model)
    kind = "as published"
    if run:
        decay = read_yaml(run / "config.yaml").get("train", {}).get("ema_decay")
        kind = f"EMA, decay {decay}" if decay else "raw"
        if config.ema is not None:
            kind = f"EMA, relative width {config.ema:g} at step {max(snapshots(run))}"
    prints = [fingerprint(module) for module in modules if module is not None]
    return {"model": str(run.resolve()) if run else config.model, "weights": kind, "weights_hash": digest(prints)}


def parts(model: Model) -> list[torch.nn.Module | None]:
    """The networks that samples depend on, each with a config of its own."""
    denoisers = filter(None, (model.denoiser, model.guide))
    networks = ((denoiser.unet, denoiser.labels, denoiser.low_resolution) for denoiser in denoisers)
    return [*(part for each in networks for part in each), model.first_stage]


def draw(config: Evaluate, model: Model, count: int, folder: Path, advice: str, doing: str = "drawing") -> ImageSet:
    """Samples from the seeds config.seed, config.seed + 1, ..., saved in `folder`. Draws only the missing ones.

    Args:
        advice: see `Chunks`.
        doing: the label of the progress bar.
    """
    key = {
        **weights_stamp(config, *parts(model)),
        "latent_scale": model.first_stage.config.scaling_factor if model.first_stage is not None else None,
        **model.sampler_facts(config),
        "seed": config.seed,
        "dtype": config.dtype,
        "format": "8 bits, as drawn",
    }
    chunks = Chunks(folder, key, advice)

    def drawing(position: int, limit: int | None) -> Batches:
        number = count - position if limit is None else limit
        for batch in sampling.sample(model, number, config.batch_size, config.seed + position, config):
            position += len(batch)
            yield batch.expand(-1, 3, -1, -1), position  # grey images too: feature networks take colours

    fill(chunks, count, drawing, lambda batch: {"images": batch.numpy()}, doing)

    def batches(position: int, limit: int | None) -> Batches:
        end = count if limit is None else min(count, position + limit)
        for array, after in chunks.each("images", position):
            first = after - len(array)
            for start in range(0, min(len(array), end - first), config.batch_size):
                batch = array[start : min(start + config.batch_size, end - first)]
                yield torch.from_numpy(batch), first + start + len(batch)
            if after >= end:
                return

    return ImageSet(key, batches, count)
