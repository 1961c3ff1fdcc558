"""Images classified by generated features: the classifiers of `evaluate.classifier`, and every figure that is reported."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from zsl import metrics
from zsl.config import EvaluateConfig
from zsl.models import Generator
from zsl.text import unit

ROWS = 2000  # images whose similarities to all generated features are held at a time


@dataclass
class TestImages:
    """Scaled features (N, D) and class numbers (N,), seen classes first."""

    features: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def generate(generator: Generator, texts: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
    """Features (C, S, D) of each class from texts (C, T) and noise (C, S, Z)."""
    classes, samples, _ = noise.shape
    rows = generator.project(texts).repeat_interleave(samples, 0)
    return generator.from_projected(noise.flatten(0, 1), rows).view(classes, samples, -1).cpu().numpy()


class Classifier:
    """Made of generated features (C, S, D) of the classes 0..C-1.

    `scores` are what the seen-unseen curve shifts: similarities to each class's mean, or logits.
    """

    def __init__(self, generated: np.ndarray, config: EvaluateConfig):
        self.config = config
        classes, samples, size = generated.shape
        self.owners = np.repeat(np.arange(classes), samples)
        if config.classifier == "softmax":
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.linear_model import LogisticRegression

            with warnings.catch_warnings():  # 200 steps are the setting, not a failure to get further
                warnings.simplefilter("ignore", ConvergenceWarning)
                self.model = LogisticRegression(max_iter=200).fit(generated.reshape(-1, size), self.owners)
        else:
            self.means = unit(generated.mean(1))
            self.samples = unit(generated.reshape(-1, size))

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(N, C) of features (N, D)."""
        if self.config.classifier == "softmax":
            scores = self.model.decision_function(features)
            return scores if scores.ndim == 2 else np.stack([-scores, scores], 1)  # two classes have one column
        return unit(features) @ self.means.T

    def predict(self, features: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Classes (N,) of features (N, D), chosen among these (A,)."""
        if self.config.classifier != "knn":
            return among[self.scores(features)[:, among].argmax(1)]
        kept = np.isin(self.owners, among)
        samples, owners, found = self.samples[kept].T, self.owners[kept], []
        for start in range(0, len(features), ROWS):
            similarities = unit(features[start : start + ROWS]) @ samples
            found.append(metrics.vote(similarities, owners, self.config.neighbours, owners.max() + 1))
        return np.concatenate(found)


def figures(
    classifier: Classifier, seen_classes: int, classes: int, unseen: TestImages, seen: TestImages, train: TestImages
) -> dict[str, float]:
    """All figures of one classifier, as shares of 1.

    Args:
        seen_classes: K; classes 0..K-1 are seen, K..`classes`-1 unseen.
        unseen, seen: test images of unseen and of seen classes; `seen` may be empty.
        train: training images.

    Returns:
        top1, per_class_top1: of unseen images among unseen classes. unseen, seen, h: per-class accuracies among all classes,
        and their harmonic mean. auc: under the seen-unseen curve. auc_train: the same with training images as the seen ones, as
        published for texts. Without seen test images there are no seen, h and auc.
    """
    everything = np.arange(classes)
    predicted = classifier.predict(unseen.features, everything[seen_classes:])
    found = {
        "top1": metrics.top1(predicted, unseen.labels),
        "per_class_top1": metrics.per_class_top1(predicted, unseen.labels),
        "unseen": metrics.per_class_top1(classifier.predict(unseen.features, everything), unseen.labels),
    }
    if len(seen.labels):
        found["seen"] = metrics.per_class_top1(classifier.predict(seen.features, everything), seen.labels)
        found["h"] = metrics.harmonic_mean(found["seen"], found["unseen"])
        found["auc"] = curve(classifier, seen_classes, unseen, seen).area
    found["auc_train"] = curve(classifier, seen_classes, unseen, train).area
    return found


def curve(classifier: Classifier, seen_classes: int, unseen: TestImages, seen: TestImages) -> metrics.Curve:
    """The seen-unseen curve of one classifier, by images of seen and of unseen classes."""
    scores = classifier.scores(seen.features), classifier.scores(unseen.features)
    return metrics.seen_unseen_curve(scores[0], seen.labels, scores[1], unseen.labels, seen_classes)
