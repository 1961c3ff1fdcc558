"""Whether samples show their labels: on features where it is known."""

import numpy as np
import pytest

from tinyldm.data.columns import LabelColumn
from tinyldm.evaluation.labels import Labelled, LabelMetrics, renumber
from tinyldm.metrics import distances

RANDOM = np.random.default_rng(0)
VALUES = {"hat": ["none", "cap"], "hair": ["bald", "short", "long"]}


def images(labels: np.ndarray, readable: float = 1.0) -> Labelled:
    """Features that hold the labels: of the second one only in this share of the images."""
    features = RANDOM.normal(size=(len(labels), 24))
    shown = np.where(RANDOM.random(len(labels)) < readable, labels[:, 1], RANDOM.integers(0, 3, len(labels)))
    features[:, 0] += 15 * labels[:, 0]
    features[np.arange(len(labels)), 1 + shown] += 15
    return Labelled(features, labels)


def drawn(count: int) -> np.ndarray:
    return np.stack([RANDOM.integers(0, 2, count), RANDOM.integers(0, 3, count)], 1)


def metrics(samples: np.ndarray, others: Labelled | None = None, reference: Labelled | None = None) -> LabelMetrics:
    held_out = images(drawn(200))
    return LabelMetrics(VALUES, samples, images(drawn(300)), held_out, reference or held_out, others)


def test_the_accuracy_is_the_share_of_samples_that_show_their_label():
    labels = drawn(600)
    found = metrics(labels).accuracies(images(labels, readable=0.4).features)
    hat, hair = found["columns"]["hat"], found["columns"]["hair"]
    assert hat["balanced"]["samples"]["value"] == 1 == hat["ratio"] and hat["values"] == 2
    assert hair["balanced"]["samples"]["value"] == pytest.approx(0.4 + 0.6 / 3, abs=0.06)  # chance reads a third of the rest
    assert hair["balanced"]["real images"]["value"] == pytest.approx(1) and hair["values"] == 3
    mean = found["mean"]["balanced"]["samples"]
    assert mean["value"] == pytest.approx((1 + hair["balanced"]["samples"]["value"]) / 2)
    assert mean["low"] < mean["value"] < mean["high"] and mean["images"] == 600
    assert found["mean"]["ratio"] == pytest.approx(mean["value"] / found["mean"]["balanced"]["real images"]["value"])


def test_labels_that_no_sample_shows_are_guessed():
    labels = drawn(600)
    found = metrics(labels).accuracies(images(drawn(600)).features)["columns"]
    assert found["hat"]["balanced"]["samples"]["value"] == pytest.approx(1 / 2, abs=0.08)
    assert found["hair"]["balanced"]["samples"]["value"] == pytest.approx(1 / 3, abs=0.08)


def test_the_distance_of_a_value_is_that_of_its_images():
    labels, reference, others = drawn(200), images(drawn(180)), images(drawn(500))
    samples = images(labels).features
    found = metrics(labels, others, reference).by_value(samples)
    assert [(value["label"], value["value"]) for value in found] == [(n, v) for n, values in VALUES.items() for v in values]
    ours, real = samples[labels[:, 1] == 2], reference.features[reference.labels[:, 1] == 2]
    assert found[-1]["figures"]["samples"] == {**distances.frechet(ours, real)._asdict(), "images": len(ours)}
    beside = others.features[others.labels[:, 1] == 2][: len(ours)]
    assert found[-1]["figures"]["real images"] == {**distances.frechet(beside, real)._asdict(), "images": len(ours)}
    assert found[-1]["reference"] == len(real)


def test_values_with_few_images_are_left_out_and_named():
    labels = np.array([[0, 0]] * 60 + [[1, 0]] * 19)  # the label hair is given
    measured = metrics(labels, images(drawn(300)))
    found = measured.by_value(images(labels).features)
    assert [(value["label"], value["value"]) for value in found] == [("hat", "none"), ("hair", "bald")]
    assert "hat=cap (19 and " in measured.notes[0] and "hair=long (0 and " in measured.notes[0]
    accuracies = measured.accuracies(images(labels).features)["columns"]
    assert (accuracies["hat"]["values"], accuracies["hair"]["values"]) == (2, 1)


def test_a_label_without_enough_images_has_no_accuracy():
    labels = np.array([[0, -1]] * 40 + [[1, 2]] * 40 + [[1, 1]] * 9)
    measured = metrics(labels)
    assert list(measured.accuracies(images(labels % 3).features)["columns"]) == ["hat"]
    assert measured.notes == ["no accuracy of label hair: fewer than two values with 10 samples and as many real images"]


def test_numbers_of_the_data_become_those_of_the_model():
    columns = [LabelColumn("hair", ["long", "red", "bald"]), LabelColumn("age", ["1"]), LabelColumn("hat", ["cap", "none"])]
    numbers = np.array([[0, 0, 0], [1, 0, 1], [2, 0, -1], [-1, -1, 1]])
    assert renumber(numbers, columns, VALUES).tolist() == [[1, 2], [0, -1], [-1, 0], [0, -1]]
    assert renumber(numbers, columns, {"hair": ["bald", "long"]}).tolist() == [[1], [-1], [0], [-1]]
