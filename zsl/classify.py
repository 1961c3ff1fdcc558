"""Classify images with generated features: the classifiers of `evaluate.classifier`, and all metrics that are reported."""

import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from zsl import metrics
from zsl.config import EvaluateConfig
from zsl.models import Generator
from zsl.text import unit

CHUNK = 2000  # images whose similarities to all generated features are in memory at once


class Scorer(Protocol):
    """A classifier: scores for the seen-unseen curve, and predictions."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores (N, C) of features (N, D)."""

    def predict(self, features: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Classes (N,) of features (N, D), chosen from the classes `among` (A,)."""


@dataclass
class TestImages:
    """Scaled features (N, D) and class numbers (N,). Seen classes come first."""

    features: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def generate(generator: Generator, texts: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
    """Generate features (C, S, D) from class texts (C, T) and noise (C, S, Z)."""
    classes, samples, _ = noise.shape
    rows = generator.project(texts).repeat_interleave(samples, 0)
    return generator.from_projected(noise.flatten(0, 1), rows).view(classes, samples, -1).cpu().numpy()


class Classifier:
    """Classifies images by generated features (C, S, D) of the classes 0..C-1.

    `scores` are similarities to the mean of each class, or logits. The seen-unseen curve adds offsets to them.
    """

    def __init__(self, generated: np.ndarray, config: EvaluateConfig):
        self.config = config
        classes, samples, size = generated.shape
        self.owners = np.repeat(np.arange(classes), samples)
        if config.classifier == "softmax":
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.linear_model import LogisticRegression

            with warnings.catch_warnings():  # stopping after 200 steps is intended
                warnings.simplefilter("ignore", ConvergenceWarning)
                self.model = LogisticRegression(max_iter=200).fit(generated.reshape(-1, size), self.owners)
        else:
            self.means = unit(generated.mean(1))
            self.samples = unit(generated.reshape(-1, size))

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores (N, C) of features (N, D)."""
        if self.config.classifier == "softmax":
            scores = self.model.decision_function(features)
            return scores if scores.ndim == 2 else np.stack([-scores, scores], 1)  # for two classes there is only one column
        return unit(features) @ self.means.T

    def predict(self, features: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Classes (N,) of features (N, D), chosen from the classes `among` (A,)."""
        if self.config.classifier != "knn":
            return among[self.scores(features)[:, among].argmax(1)]
        kept = np.isin(self.owners, among)
        samples, owners, predicted = self.samples[kept].T, self.owners[kept], []
        for start in range(0, len(features), CHUNK):
            similarities = unit(features[start : start + CHUNK]) @ samples
            predicted.append(metrics.vote(similarities, owners, self.config.neighbours, owners.max() + 1))
        return np.concatenate(predicted)


def measure(
    classifier: Scorer, seen_classes: int, classes: int, unseen: TestImages, seen: TestImages, train: TestImages
) -> dict[str, float]:
    """All metrics of one classifier, as fractions of 1.

    Args:
        seen_classes: K. Classes 0..K-1 are seen, K..`classes`-1 unseen.
        unseen, seen: test images of unseen and of seen classes. `seen` may be empty.
        train: training images.

    Returns:
        top1, per_class_top1: accuracy on unseen images among unseen classes.
        unseen, seen, h: per-class accuracies among all classes, and their harmonic mean.
        auc: area under the seen-unseen curve.
        auc_train: the same with training images as the seen images, as published for texts.
        Without seen test images, seen, h and auc are missing.
    """
    all_classes = np.arange(classes)
    predicted = classifier.predict(unseen.features, all_classes[seen_classes:])
    values = {
        "top1": metrics.top1(predicted, unseen.labels),
        "per_class_top1": metrics.per_class_top1(predicted, unseen.labels),
        "unseen": metrics.per_class_top1(classifier.predict(unseen.features, all_classes), unseen.labels),
    }
    if len(seen.labels):
        values["seen"] = metrics.per_class_top1(classifier.predict(seen.features, all_classes), seen.labels)
        values["h"] = metrics.harmonic_mean(values["seen"], values["unseen"])
        values["auc"] = curve(classifier, seen_classes, unseen, seen).area
    values["auc_train"] = curve(classifier, seen_classes, unseen, train).area
    return values


def curve(classifier: Scorer, seen_classes: int, unseen: TestImages, seen: TestImages) -> metrics.Curve:
    """The seen-unseen curve of one classifier on images of seen and of unseen classes."""
    scores = classifier.scores(seen.features), classifier.scores(unseen.features)
    return metrics.seen_unseen_curve(scores[0], seen.labels, scores[1], unseen.labels, seen_classes)
