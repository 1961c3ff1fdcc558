"""Reads a trained model, from a run, a checkpoint, a pipeline folder or the Hub. No code of a model's folder is run.

A pipeline folder has model_index.json and a folder for each part: unet, scheduler, vqvae or vae (the first stage), labels.
Beside them there may be a guide (guide, guide_labels) and guidance.json, the guidance scale to use.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel, VQModel
from huggingface_hub import hf_hub_download, snapshot_download

from tinyldm.config.schema import SamplerSettings
from tinyldm.errors import UserError, boundary
from tinyldm.first_stage.autoencoder import KINDS, SUBFOLDERS, AutoencoderModel, FirstStage, check_autoencoder
from tinyldm.limits import check_finite, check_numbers, read_text
from tinyldm.models.classifier_loading import check_classifier, load_classifier
from tinyldm.models.denoiser import Denoiser, embedding_width, try_denoiser
from tinyldm.models.model import Model
from tinyldm.portable.label_embedding import LabelEmbedding
from tinyldm.portable.low_resolution import LowResolution
from tinyldm.process.process import same_noise
from tinyldm.process.processes import process_of, scheduler_class
from tinyldm.remote import from_hub, may_be_hub_id
from tinyldm.training import checkpoint
from tinyldm.training.power_ema import reconstruct

INDEX, GUIDANCE = "model_index.json", "guidance.json"
NETWORKS: dict[str, Any] = {"unet": UNet2DModel, "labels": LabelEmbedding, "low_resolution": LowResolution}
NETWORKS |= {"guide": UNet2DModel, "guide_labels": LabelEmbedding, "guide_low_resolution": LowResolution}
LARGEST = 2**28  # numbers in x_0


def load_model(path: str, device: str = "cpu", dtype: torch.dtype = torch.float32, ema: float | None = None) -> Model:
    """Load a run of ours, one of its checkpoints (averaged weights), a diffusers pipeline folder, or a Hub id.

    Args:
        ema: the relative width of another average of a run's weights; see training/power_ema.py.

    Raises:
        UserError: if it is not one of these, or its files are damaged.
    """
    local, averaged = Path(path).expanduser(), None if ema is None else reconstruct(path, ema)
    step = local if local.parent.name == "checkpoints" and local.is_dir() else None
    if step:  # its networks are those of the run's pipeline
        local = step.parent.parent
    if (local / "pipeline").is_dir():
        local = local / "pipeline"
    if local.is_dir() and not (local / INDEX).exists():
        raise UserError(f"{path} is not a model folder: neither a run with pipeline/ nor a pipeline with {INDEX}")
    if not local.is_dir() and (local.exists() or not may_be_hub_id(path)):
        todo = "start in tinyldm's folder" if path.startswith("pretrained/") else "train it first"
        raise UserError(f"model folder {path} does not exist: {todo}, or give a run, a pipeline folder or a Hub id")
    where = "is damaged or incomplete" if local.is_dir() else "cannot be loaded"
    with boundary(f"model {path} {where}", "give a run, a pipeline folder, or a Hub id"):
        folder = local if local.is_dir() else _download(path)
        model = _read(path, folder, dtype)
        if step:
            _replace_weights(model.denoiser, checkpoint.load(step)[0]["ema"])
    if averaged is not None:
        with boundary(f"the snapshots of {path} are of another network than its model", "remove --ema"):
            _replace_weights(model.denoiser, averaged)
    with boundary(f"device {device!r} cannot be used"):
        for part in (model.denoiser, model.guide, model.first_stage):
            if part is not None:
                part.to(device).eval()
    return model


def _replace_weights(denoiser: Denoiser, weights: dict[str, torch.Tensor]) -> None:
    """Take over all weights by their names. Averages hold no buffers; a model is not told of changes to training images."""
    kept = {name: weight for name, weight in weights.items() if not name.startswith("changes.")}
    denoiser.load_state_dict({**dict(denoiser.named_buffers()), **kept})


def load_for(path: str, settings: SamplerSettings, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Load a model with the average, and the guide or the classifier, that the settings name.

    Raises:
        UserError: see load_model; also for a guide or a classifier that does not fit the model.
    """
    model = load_model(path, device, dtype, settings.ema)
    if settings.guidance_model is not None:
        guide = load_model(settings.guidance_model, device, dtype)
        check_guide(model, guide, settings.guidance_model)
        model.guide = guide.denoiser
    if settings.classifier is not None:
        model.classifier = load_classifier(settings.classifier, device)
        check_classifier(model, model.classifier, settings.classifier)
    return model


def check_guide(model: Model, guide: Model, name: str) -> None:
    """Raise UserError for a guide whose predictions are not of the same x_t, time and labels as the model's."""
    ours, theirs = model.process, guide.process
    same_process = ours.prediction == theirs.prediction and same_noise(ours, theirs)
    stages = [None if m.first_stage is None else FirstStage(m.first_stage) for m in (model, guide)]
    latents = [stage and (stage.fingerprint(), round(stage.scaling_factor, 6)) for stage in stages]
    shapes = [
        (m.channels, m.unet.config.sample_size, m.low_resolution and m.low_resolution.config.side) for m in (model, guide)
    ]
    labels = [None if m.labels is None else m.labels.values for m in (model, guide)]
    if latents[0] != latents[1] or shapes[0] != shapes[1]:
        raise UserError(
            f"guidance_model {name} works on other latents or images than the model: both need the same first stage"
        )
    if not same_process:
        raise UserError(f"guidance_model {name} has another noise schedule or prediction type than the model")
    if labels[1] is not None and labels[0] != labels[1]:
        raise UserError(f"guidance_model {name} has other labels than the model: give one with the same labels, or without")


def _download(name: str) -> Path:
    """The files of a model on the Hub, those of this loader only."""
    with from_hub(name) as on_disk:
        index = json.loads(read_text(Path(hf_hub_download(name, INDEX, local_files_only=on_disk))))
        parts = [*index, *NETWORKS]
        kinds = {ending: [f"{part}/*.{ending}" for part in parts] for ending in ("json", "safetensors", "bin")}
        patterns = [INDEX, GUIDANCE, *kinds["json"], *kinds["safetensors"]]
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=on_disk))
        if not any(folder.glob("unet/*.safetensors")):  # read with weights_only
            snapshot_download(name, allow_patterns=[*patterns, *kinds["bin"]], local_files_only=on_disk)
        return folder


def _read(path: str, folder: Path, dtype: torch.dtype) -> Model:
    index = {key: value for key, value in json.loads(read_text(folder / INDEX)).items() if _is_part(value)}
    for config in folder.glob("*/*.json"):
        check_numbers(json.loads(read_text(config)))
    kinds = {name: kind for name, (_, kind) in index.items()}
    if kinds.get("unet") != "UNet2DModel" or "scheduler" not in kinds:
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UserError(f"model {path} has the parts {listed or 'none'}; sampling needs a UNet2DModel and a scheduler")
    networks = {
        name: network.from_pretrained(folder, subfolder=name, dtype=dtype)
        for name, network in NETWORKS.items()
        if (folder / name).is_dir() and (name in kinds or name.startswith("guide"))
    }
    stages = [name for name in SUBFOLDERS if name in kinds]
    stage = KINDS[kinds[stages[0]]].from_pretrained(folder, subfolder=stages[0], dtype=dtype) if stages else None
    process = process_of(scheduler_class(kinds["scheduler"]).from_pretrained(folder, subfolder="scheduler"))
    _check([*networks.values(), *filter(None, [stage])], stage, f" in {str(dtype).removeprefix('torch.')}")
    if isinstance(stage, VQModel):
        stage.float()  # in half precision some latents would be assigned another code
    guide = _denoiser(networks, "guide", "guide_") if "guide" in networks else None
    return Model(_denoiser(networks, "unet", ""), process, stage, guide, _scale(folder))


def _denoiser(networks: dict[str, Any], name: str, prefix: str) -> Denoiser:
    unet, labels, small = networks[name], networks.get(f"{prefix}labels"), networks.get(f"{prefix}low_resolution")
    widths = {part.config.width for part in (labels, small) if part is not None}
    if widths != ({embedding_width(unet)} if unet.config.class_embed_type else set()):
        raise ValueError("its UNet2DModel and the embeddings of its labels do not fit together")
    if unet.config.in_channels <= (small.config.channels if small else 0):
        raise ValueError("its UNet2DModel has no channels for the low-resolution image")
    return Denoiser(unet, labels, small)


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _scale(folder: Path) -> float:
    if not (folder / GUIDANCE).exists():
        return 1.0
    scale = json.loads(read_text(folder / GUIDANCE))["scale"]
    if not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"{GUIDANCE} has the scale {scale!r}")
    return float(scale)


def _check(parts: list[Any], first_stage: AutoencoderModel | None, precision: str) -> None:
    """Raise an exception for weights that are missing or not finite, or a network that does not run."""
    for part in parts:
        if missing := [name for name, weight in part.named_parameters() if weight.is_meta]:
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} for one")
        check_finite(part.state_dict(), precision)
    if first_stage is not None:
        check_autoencoder(first_stage)
    for config in (part.config for part in parts if isinstance(part, UNet2DModel)):
        if config.num_class_embeds or config.class_embed_type not in (None, "identity"):
            raise ValueError("it takes classes by num_class_embeds or class_embed_type; labels/ is what this program knows")
        if config.in_channels * config.sample_size**2 > LARGEST:
            raise ValueError(f"it draws images of side {config.sample_size}")
        try_denoiser(config)
