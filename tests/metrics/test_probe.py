import numpy as np
import pytest

from tinyldm.data.batch import UNKNOWN
from tinyldm.metrics import probe
from tinyldm.metrics.probe import Probe

RANDOM = np.random.default_rng(0)


def examples(count: int, signal: float, values: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features of 40 normal numbers, of which one for each value is larger by `signal`."""
    labels = RANDOM.integers(0, values, count)
    features = RANDOM.normal(size=(count, 40))
    features[np.arange(count), labels] += signal
    return features, labels


@pytest.mark.parametrize(("signal", "low", "high"), [(12.0, 0.99, 1.0), (0.0, 0.25, 0.42)])
def test_a_probe_reads_what_is_linear_in_the_features_and_guesses_otherwise(signal, low, high):
    learned = Probe(*examples(600, signal))
    features, labels = examples(600, signal)
    assert low <= learned.right(features, labels).mean() <= high
    assert np.array_equal(Probe(*examples(600, signal)).values, [0, 1, 2])


def test_unknown_and_very_rare_values_are_not_learned():
    features, labels = examples(300, 12.0)
    labels[labels == 2] = UNKNOWN
    labels[:9] = 3
    learned = Probe(features, labels)
    assert learned.values.tolist() == [0, 1]
    assert len(Probe(features, np.zeros(300, np.int64)).values) == 0


def test_a_probe_does_not_depend_on_the_scale_of_the_features_and_repeats_to_the_bit():
    features, labels = examples(200, 2.0)
    others, expected = examples(200, 2.0)
    first = Probe(features, labels).right(others, expected)
    assert np.array_equal(first, Probe(features, labels).right(others, expected))
    assert np.array_equal(first, Probe(100 * features + 7, labels).right(100 * others + 7, expected))


def test_a_rare_value_counts_as_much_as_a_common_one():
    """95 of 100 are of value 0, and the answer is always 0; five images of another value do not count."""
    labels = np.array([*[0] * 95, *[1] * 5, *[2] * 5])
    found = probe.shares(labels == 0, labels, np.array([0, 1]))
    assert found.shape == (11, 2) and found[0].tolist() == pytest.approx([0.5, 0.95])
    assert found[6].tolist() == pytest.approx([0.5, 86 / 90])  # without images 5, 15, ..., 95, of which the last is one of five


def test_a_rare_value_is_learned_as_much_as_a_common_one():
    labels = (np.arange(1000) >= 960).astype(int)
    features = RANDOM.normal(size=(1000, 1)) + 2 * labels[:, None]
    answers = Probe(features, labels).right(features, labels)
    assert answers[labels == 1].mean() > 0.7  # a plain regression reads a fifth of them
