"""Training a classifier of noisy images or latents (Dhariwal & Nichol 2021, section 4)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from tinyldm import pictures
from tinyldm.config.schema import TrainClassifier
from tinyldm.data.batch import UNKNOWN, Batch
from tinyldm.diffusion.noisy_task import NoisyTask
from tinyldm.diffusion.training_data import LatentData, PixelData, TrainingData
from tinyldm.models.classifier import NoisyClassifier, make_classifier
from tinyldm.models.denoiser import switch_on
from tinyldm.process.processes import scheduler_config
from tinyldm.randomness import Draw
from tinyldm.training.task import Losses

LEVELS = 8  # parts of the way from image to noise; each held-out image is classified once in each
QUARTERS = 4


class ClassifierTask(NoisyTask):
    """See NoisyTask: a classifier of x_t learns all labels at once.

    Attributes:
        accuracy: (LEVELS, A), of the last evaluation.
        guessing: (A,), the share of the most frequent value of each label among the held-out images: what guessing gives.
    """

    card = "classifier"

    def __init__(self, config: TrainClassifier, accelerator: Accelerator):
        opened: TrainingData
        if config.first_stage.path is None:
            opened, latents = PixelData(config, accelerator), None
        else:
            opened = LatentData(config, config.first_stage, accelerator)
            latents = {"first_stage": opened.built_on, "scale": opened.scale}
        super().__init__(config, accelerator, opened)
        self.config = config
        torch.manual_seed(config.seed)
        channels, side = self.held_out.x.shape[1:3]
        scheduler = scheduler_config(self.process)
        classifier = make_classifier(config.unet, side, channels, opened.labels, scheduler, latents)
        switch_on(classifier, config.train)
        self.networks = {"classifier": classifier}
        self.learning_rates = {"classifier": config.train.learning_rate}
        self.names = list(classifier.values)
        self.accuracy, self.guessing = torch.zeros(LEVELS, len(self.names)), most_frequent(self.held_out.condition.labels)
        self.buffers = {"accuracy": self.accuracy}

    def losses(self, batch: Batch, step: int, draw: Draw) -> Losses:
        """The cross entropy of a batch, with random times and noise."""
        x0 = self.opened.example(batch, draw).x
        noise, times = draw.normal(x0.shape), self.process.draw_times(len(x0), draw)
        x_t = self.process.noisy(x0, noise, times)
        logits = self.networks["classifier"](*self.process.inputs(x_t, times))
        loss = cross_entropy(logits, batch.condition.labels).mean()
        yield "classifier", loss, {"loss": loss}

    def after_step(self, step: int, draw: Draw, ema: EMAModel) -> None:
        """Nothing to do."""

    # -------------------------------------------------------------------------------------------------- evaluation

    def classifier(self) -> NoisyClassifier:
        """The bare network."""
        return self.accelerator.unwrap_model(self.networks["classifier"])

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Sums over held-out images at LEVELS noise levels each: the loss, how many labels are right, and how many known."""
        device, network = self.accelerator.device, self.classifier()
        right, known = torch.zeros(2, LEVELS, len(self.names), device=device)
        loss, count = torch.zeros(2, device=device)
        for (x0, condition), noise, times in self.my_held_out():
            assert condition.labels is not None
            for level in range(LEVELS):
                moved = self.process.times((level + self.process.fraction(times)) / LEVELS)
                logits = network(*self.process.inputs(self.process.noisy(x0, noise, moved), moved))
                loss += cross_entropy(logits, condition.labels).sum()
                guesses = torch.stack([logits[name].argmax(1) for name in self.names], 1)
                right[level] += (guesses == condition.labels).sum(0)
                known[level] += (condition.labels != UNKNOWN).sum(0)
            count += LEVELS * len(x0)
        return {"loss": loss, "count": count, "right": right, "known": known}

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """`eval_loss`; the accuracy over all labels, by quarter of the way (1: least noise), and of each label."""
        self.accuracy.copy_(sums["right"] / sums["known"].clamp(min=1))
        quarters = self.accuracy.mean(1).view(QUARTERS, -1).mean(1).tolist()
        return {
            "eval_loss": float(sums["loss"] / sums["count"]),
            "eval_accuracy": float(self.accuracy.mean()),
            **{f"eval_accuracy_q{i + 1}": value for i, value in enumerate(quarters)},
            **{f"eval_accuracy_of_{name}": float(value) for name, value in zip(self.names, self.accuracy.mean(0), strict=True)},
        }

    def picture(self, path: Path) -> None:
        """The accuracy of the last evaluation over the noise level, for each label."""
        way = [(level + 0.5) / LEVELS for level in range(LEVELS)]
        pictures.accuracy_curves(
            way, dict(zip(self.names, self.accuracy.T.tolist(), strict=True)), self.guessing.tolist(), path
        )

    def make_images(self, count: int) -> Iterator[torch.Tensor]:
        """None: TrainClassifier.check refuses what would need them."""
        yield from ()

    def export(self, folder: Path) -> None:
        """classifier/: config.json and weights."""
        self.classifier().save_pretrained(folder / "classifier")

    def facts(self) -> dict[str, Any]:
        """Values for model_cards/classifier.md."""
        channels, side = self.held_out.x.shape[1:3]
        quarters = self.accuracy.view(QUARTERS, -1, len(self.names)).mean(1)
        name, values = next(iter(self.classifier().values.items()))
        return {
            "example": f"{name}={values[-1]}",
            "shape": f"{channels} x {side} x {side}",
            "first_stage": self.config.first_stage.path,
            "process": self.process.describe(),
            "eval_images": len(self.held_out.x),
            "levels": LEVELS,
            "labels": [
                {"name": name, "guessing": float(self.guessing[i]), "quarters": quarters[:, i].tolist()}
                for i, name in enumerate(self.names)
            ],
        }


def cross_entropy(logits: dict[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
    """Cross entropy (B,) in nats, summed over the labels. An unknown label adds nothing.

    Args:
        logits: for each of A labels (B, number of values).
        labels: (B, A), numbers of values, or UNKNOWN.
    """
    assert labels is not None
    columns = zip(logits.values(), labels.unbind(1), strict=True)
    losses = [F.cross_entropy(each.float(), numbers, ignore_index=UNKNOWN, reduction="none") for each, numbers in columns]
    return torch.stack(losses).sum(0)


def most_frequent(labels: torch.Tensor | None) -> torch.Tensor:
    """The share (A,) of the most frequent value of each label (N, A), among the known ones."""
    assert labels is not None
    known = [column[column != UNKNOWN] for column in labels.unbind(1)]
    return torch.tensor([float(column.bincount().max()) / len(column) if len(column) else 0.0 for column in known])
