"""Reads a trained classifier, and checks that it fits a model. No code of its folder is run."""

import json
from pathlib import Path

import torch

from tinyldm.errors import UserError, boundary
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.limits import check_finite, check_numbers, read_text
from tinyldm.models.classifier import NoisyClassifier, try_classifier
from tinyldm.models.model import Model
from tinyldm.process.process import same_noise
from tinyldm.process.processes import process_from


def load_classifier(path: str, device: str = "cpu") -> NoisyClassifier:
    """Load a run of train_classifier.py, or its folder classifier/. It stays in float32.

    Raises:
        UserError: if it is not one of these, or its files are damaged.
    """
    folder = Path(path).expanduser()
    if (folder / "classifier").is_dir():
        folder = folder / "classifier"
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} is not a classifier: give a run of train_classifier.py, with its folder classifier/")
    with boundary(f"classifier {path} is damaged or is not a classifier"):
        config = json.loads(read_text(folder / "config.json"))
        if config.get("_class_name") != NoisyClassifier.__name__:
            raise ValueError(f"its config.json is that of a {config.get('_class_name')}")
        check_numbers(config)
        process_from(config["scheduler"])
        try_classifier({key: config.get(key) for key in ("columns", "network", "scheduler", "latents")})
        classifier, info = NoisyClassifier.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
        if missing := info["missing_keys"]:  # diffusers would use random ones
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} for one")
        check_finite(classifier.state_dict())
    with boundary(f"device {device!r} cannot be used"):
        return classifier.to(device).eval().requires_grad_(False)


def check_classifier(model: Model, classifier: NoisyClassifier, name: str) -> None:
    """Raise UserError for a classifier that did not see the x_t of the model, or for a model with labels of its own.

    With a model's own labels a scale of 1 would not be Bayes' rule, since the network knows them already.
    """
    if model.labels is not None:
        raise UserError(
            f"classifier {name} is for models without labels; this one has labels: give --labels and --guidance_scale only"
        )
    ours, theirs = model.unet.config, classifier.unet.config
    stage, seen = model.first_stage and FirstStage(model.first_stage), classifier.config.latents
    same = (ours.in_channels, ours.sample_size) == (theirs.in_channels, theirs.sample_size) and bool(stage) == bool(seen)
    if same and stage and seen:
        same = round(stage.scaling_factor, 6) == round(seen["scale"], 6)
        if model.dtype == torch.float32:  # half precision has changed the first stage's weights
            same = same and stage.fingerprint() == seen["first_stage"]
    if not same:
        raise UserError(
            f"classifier {name} was trained on other latents or images than the model: train one over the same first stage"
        )
    if not same_noise(process_from(classifier.config.scheduler), model.process):
        raise UserError(
            f"classifier {name} was trained with another noise schedule than the model: train one with its section scheduler"
        )
