"""Measures whether samples show the labels that they were drawn with, and how far those of each value are from real images.

A linear probe per label learns from real training images to read the label from features. The share of samples whose label
it reads is the label accuracy. Its share of held-out real images is the ceiling: the probe reads no sample better than it
reads photographs. Both are balanced: each value counts the same, however rare it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from tinyldm.data.columns import LabelColumn
from tinyldm.evaluation.workspace import REAL, SAMPLES, entry
from tinyldm.metrics import distances, probe
from tinyldm.metrics.distances import jackknife
from tinyldm.metrics.probe import Probe
from tinyldm.models import conditioning


class Labelled(NamedTuple):
    """Features (N, D) of images, and the numbers of their labels (N, A); UNKNOWN where there is none."""

    features: np.ndarray
    labels: np.ndarray


def renumber(labels: np.ndarray, columns: Sequence[LabelColumn], values: dict[str, list[str]]) -> np.ndarray:
    """The labels (N, A) of a data set as numbers of `values`, in its order of labels. UNKNOWN for values that it lacks.

    Args:
        labels: (N, B) numbers of the values of `columns`, which have a column for each name in `values`.
    """
    return conditioning.renumber(torch.from_numpy(labels), {c.name: c.values for c in columns}, values).numpy()


class LabelMetrics:
    """Judges the labels of samples. Made once for all settings of a sweep.

    Attributes:
        notes: what could not be measured.

    Args:
        values: the labels by name, with the names of their values.
        drawn: (N, A) the labels of the samples.
        train: real images that the probes learn from.
        held_out: real images that give the ceiling.
        reference: real images for the distances.
        others: real images outside the reference, for the anchor of the distances. None: no anchor.
    """

    def __init__(
        self,
        values: dict[str, list[str]],
        drawn: np.ndarray,
        train: Labelled,
        held_out: Labelled,
        reference: Labelled,
        others: Labelled | None,
    ):
        self.values, self.drawn, self.held_out, self.reference, self.others = values, drawn, held_out, reference, others
        self.notes: list[str] = []
        self.probes: dict[int, Probe] = {}
        self.judged: dict[int, np.ndarray] = {}  # for each label the values by which samples and real images are judged
        for i, name in enumerate(tqdm(values, "learning to read labels", unit="label")):
            learned = Probe(train.features, train.labels[:, i])
            counts = [min((part[:, i] == v).sum() for part in (drawn, held_out.labels)) for v in learned.values]
            judged = learned.values[np.array(counts, int) >= probe.MIN_IMAGES]
            all_the_same = (drawn[:, i] == drawn[0, i]).all()  # as where the label was given
            if len(judged) > 1 or (len(judged) and all_the_same):
                self.probes[i], self.judged[i] = learned, judged
            else:  # of a single value, the share would be that of a guess that is always the same
                few = f"fewer than two values with {probe.MIN_IMAGES} samples and as many real images"
                self.notes.append(f"no accuracy of label {name}: {few}")
        self.real = {i: self._shares(i, held_out.features, held_out.labels) for i in self.probes}

    def _shares(self, i: int, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return probe.shares(self.probes[i].right(features, labels[:, i]), labels[:, i], self.judged[i])

    def accuracies(self, samples: np.ndarray) -> dict[str, Any]:
        """The accuracy of each label and their mean, of samples by their features (N, D) and of held-out real images.

        Returns:
            For each name in `values`, and for `mean`: the balanced accuracy of both, their ratio and the plain accuracy.
        """
        shares = {i: self._shares(i, samples, self.drawn) for i in self.probes}
        results = {
            list(self.values)[i]: self._result(shares[i], self.real[i]) | {"values": len(self.judged[i])} for i in self.probes
        }
        if not results:
            return {}
        mean = self._result(*(np.mean(list(found.values()), 0) for found in (shares, self.real)))
        return {"columns": results, "mean": mean}

    def _result(self, samples: np.ndarray, real: np.ndarray) -> dict[str, Any]:
        """Shares as of probe.shares -> JSON."""
        both = {SAMPLES: (samples, len(self.drawn)), REAL: (real, len(self.held_out.labels))}
        kinds = {
            kind: {name: entry(jackknife(found[0, k], found[1:, k]), count) for name, (found, count) in both.items()}
            for k, kind in enumerate(("balanced", "plain"))
        }
        return {**kinds, "ratio": float(samples[0, 0] / real[0, 0]) if real[0, 0] else None}

    def by_value(self, samples: np.ndarray) -> list[dict[str, Any]]:
        """The Frechet distance between the samples of each value and the real images of it.

        Beside it that of as many real images of the value from outside the reference, or of all if there are fewer.
        """
        found, few = [], []
        pairs = [(i, name, v, value) for i, (name, known) in enumerate(self.values.items()) for v, value in enumerate(known)]
        for i, name, v, value in tqdm(pairs, "distances by value", unit="value"):
            ours, reference = (part[labels[:, i] == v] for part, labels in ((samples, self.drawn), self.reference))
            if min(len(ours), len(reference)) < distances.MIN_IMAGES:
                few.append(f"{name}={value} ({len(ours)} and {len(reference)})")
                continue
            columns = {SAMPLES: ours}
            if self.others is not None:
                real = self.others.features[self.others.labels[:, i] == v][: len(ours)]
                columns |= {REAL: real} if len(real) >= distances.MIN_IMAGES else {}
            figures = {column: entry(distances.frechet(part, reference), len(part)) for column, part in columns.items()}
            found.append({"label": name, "value": value, "reference": len(reference), "figures": figures})
        if few:
            listed = ", ".join(few[:12]) + (f" and {len(few) - 12} more" if len(few) > 12 else "")
            self.notes.append(
                f"no distance for values with fewer than {distances.MIN_IMAGES} samples or reference images: {listed}"
            )
        return found
