"""Writes the pipeline folder that users load. loading.py reads it."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tinyldm.files import link_or_copy, replace_text
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.loading import GUIDANCE, INDEX
from tinyldm.models.model import Model
from tinyldm.portable import label_embedding, levels, low_resolution, pipeline
from tinyldm.process.discrete_vp import DiscreteVP

OURS: dict[type, Any] = {  # classes of ours, with the files that travel with them
    label_embedding.LabelEmbedding: label_embedding,
    low_resolution.LowResolution: low_resolution,
    levels.ProcessScheduler: levels,
}
CUSTOM = ["pipeline", "TinyLDMPipeline"]  # the module in the folder, and its class


def save_pipeline(folder: Path, plain: str, model: Model, scheduler: SchedulerMixin, written: Path | None = None) -> None:
    """Write the parts of a model, each in its own folder, and model_index.json.

    A model of DDPM's process without labels gets the index of a plain pipeline, which draws without guidance. For any other the
    index names the pipeline of pipeline.py.

    Args:
        plain: diffusers' class for a plain model.
        written: a folder with the same first stage, whose files are linked.
    """
    custom = bool(_conditions("", model.denoiser)) or not isinstance(model.process, DiscreteVP)
    parts: dict[str, Any] = {"unet": _exported(model.denoiser), "scheduler": scheduler}
    if model.first_stage is not None:
        parts["vqvae"] = model.first_stage
    guide: dict[str, Any] = {}
    parts |= _conditions("", model.denoiser)
    if model.guide is not None:
        guide = {"guide": _exported(model.guide), **_conditions("guide_", model.guide)}
    for name, part in {**parts, **guide}.items():
        if name == "vqvae" and written is not None and written.is_dir():
            shutil.copytree(written, folder / name, copy_function=link_or_copy)
        else:
            part.save_pretrained(folder / name)
        if module := OURS.get(type(part)):
            (folder / name / f"{_library(part)}.py").write_text(_source(module))
    listed = {**parts, **guide} if custom else parts
    index = {
        "_class_name": CUSTOM if custom else plain,
        "_diffusers_version": version("diffusers"),
        **{name: [_library(part), type(part).__name__] for name, part in sorted(listed.items())},
    }
    replace_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
    if custom or model.guide is not None:
        replace_text(folder / GUIDANCE, json.dumps({"scale": model.scale}) + "\n")
        (folder / "pipeline.py").write_text(_source(pipeline))


def _exported(denoiser: Denoiser) -> UNet2DModel:
    """The UNet. One that takes vectors only for the changes of training images becomes one without, which draws the same."""
    if denoiser.changes is None or _conditions("", denoiser):
        return denoiser.unet
    plain = UNet2DModel.from_config({**denoiser.unet.config, "class_embed_type": None})
    plain.load_state_dict(denoiser.unet.state_dict())
    return plain.to(next(denoiser.unet.parameters()).dtype)


def _conditions(prefix: str, denoiser: Denoiser) -> dict[str, Any]:
    """What a denoiser has besides its UNet, by the names of the folders."""
    parts = {"labels": denoiser.labels, "low_resolution": denoiser.low_resolution}
    return {f"{prefix}{name}": part for name, part in parts.items() if part is not None}


def _library(part: Any) -> str:
    return OURS[type(part)].__name__.split(".")[-1] if type(part) in OURS else "diffusers"


def _source(module: Any) -> str:
    return Path(module.__file__).read_text(encoding="utf-8")
