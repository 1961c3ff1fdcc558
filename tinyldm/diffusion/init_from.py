"""Fine-tuning: the weights that a training starts from, in place of random ones."""

import torch
from diffusers import UNet2DModel

from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import AutoencoderModel, fingerprint
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.loading import load_model
from tinyldm.portable.label_embedding import LabelEmbedding
from tinyldm.process.process import Process, same_noise

MAY_DIFFER = ("sample_size", "in_channels", "out_channels", "class_embed_type", "num_class_embeds", "dropout")  # from the base


@torch.no_grad()
def start_from(denoiser: Denoiser, path: str, process: Process, first_stage: AutoencoderModel | None) -> list[str]:
    """Copy the weights of a trained model into a denoiser, as far as they fit. Returns sentences about what was taken.

    Vectors of labels are found by the names of the labels and values. Channels that the base lacks start from 0.

    Args:
        path: a run, a checkpoint, a pipeline folder or a Hub id.
        process, first_stage: of the training, to compare with those of the base.

    Raises:
        UserError: for a base that cannot be loaded, or another architecture.
    """
    base = load_model(path)
    if differences := _differences(base.unet, denoiser.unet):
        raise UserError(f"init_from {path} has another architecture: set {', '.join(differences)}")
    taken, new = _copy(base.unet, denoiser.unet)
    notes = [f"starts from {path}: {taken:,} weights taken" + (f", new: {', '.join(new)}" if new else "")]
    if denoiser.labels is not None:
        notes.append(_copy_labels(base.labels, denoiser.labels))
    elif base.labels is not None:
        notes.append(f"its labels are left out: {', '.join(base.labels.values)}")
    if denoiser.low_resolution is not None and base.low_resolution is not None:
        denoiser.low_resolution.load_state_dict(base.low_resolution.state_dict())
    if base.process.prediction != process.prediction or not same_noise(base.process, process):
        notes.append(f"its process is another one ({base.process.describe()}; it predicts {base.process.prediction})")
    if (base.first_stage is None) != (first_stage is None) or (
        base.first_stage is not None and fingerprint(base.first_stage) != fingerprint(first_stage)
    ):
        notes.append("it was trained on other latents or on pixels: the network has much to learn again")
    return notes


def _differences(base: UNet2DModel, unet: UNet2DModel) -> list[str]:
    """The keys of the section unet that would have to change, with the values of the base."""
    theirs, ours = base.config, unet.config
    names = [name for name in ours if not name.startswith("_") and name not in MAY_DIFFER]
    return [
        f"unet.{name} to {_written(theirs.get(name))}" for name in names if _written(theirs.get(name)) != _written(ours[name])
    ]


def _written(value: object) -> str:
    return str(list(value) if isinstance(value, list | tuple) else "null" if value is None else value).replace("'", "")


def _copy(base: UNet2DModel, unet: UNet2DModel) -> tuple[int, list[str]]:
    """Copy weights of the same names. Returns how many numbers were taken, and the names of layers that are new in part."""
    known, taken, new = dict(base.named_parameters()), 0, []
    for name, weight in unet.named_parameters():
        if name not in known:
            new.append(name)
            continue
        shared = tuple(slice(0, min(a, b)) for a, b in zip(weight.shape, known[name].shape, strict=True))
        if known[name].shape != weight.shape:
            new.append(f"a part of {name}")
            weight.zero_()
        weight[shared] = known[name][shared]
        taken += known[name][shared].numel()
    return taken, new


def _copy_labels(base: LabelEmbedding | None, embedding: LabelEmbedding) -> str:
    """Copy the vectors of labels and values that both have."""
    known = {} if base is None else base.values
    taken, total = 0, 0
    for column, (name, values) in enumerate(embedding.values.items()):
        total += len(values)
        if base is None or name not in known:
            continue
        theirs, ours = base.vectors[list(known).index(name)], embedding.vectors[column]
        ours[0] = theirs[0]  # the unknown one
        for number, value in enumerate(values):
            if value in known[name]:
                ours[number + 1], taken = theirs[known[name].index(value) + 1], taken + 1
    return f"labels: {taken} of {total} values taken, the others are new"
