import numpy as np
import pytest

from tests.support import zsl as support
from zsl import baselines
from zsl.classify import unit
from zsl.division import divide


def training_data():
    data = support.dataset()
    division = divide(data, 0, 0.25)
    return data.features[division.train], division.labels[division.train], data.texts[division.classes], division.seen_classes


def test_eszsl_equals_its_closed_form():
    features, labels, texts, seen = training_data()
    x = (features - features.mean(0)).astype(np.float64)
    s, y = texts[:seen].astype(np.float64), -np.ones((len(labels), seen))
    y[np.arange(len(labels)), labels] = 1
    images = np.random.default_rng(0).normal(size=(5, features.shape[1]))
    count = 0
    for setting, classifier in baselines.eszsl(features, labels, texts, seen):
        g = setting["visual"] * np.trace(x.T @ x) / x.shape[1]
        strength = setting["textual"] * np.trace(s @ s.T) / seen
        v = (
            np.linalg.inv(x.T @ x + g * np.eye(x.shape[1]))
            @ x.T
            @ y
            @ s
            @ np.linalg.inv(s.T @ s + strength * np.eye(s.shape[1]))
        )
        expected = (images - features.mean(0)) @ v @ texts.T
        np.testing.assert_allclose(classifier.scores(images), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
        count += 1
    assert count == 49


def test_an_unseen_prototype_averages_the_most_similar_seen_classes():
    features, labels, texts, seen = training_data()
    means = np.stack([features[labels == k].mean(0) for k in range(seen)])
    centred = texts - texts[:seen].mean(0)
    settings = {
        setting["neighbours"]: classifier for setting, classifier in baselines.prototypes(features, labels, texts, seen)
    }
    assert set(settings) == {1, 2, 3, 5}  # not more than the 7 seen classes
    for u in range(seen, len(texts)):
        cosines = [centred[u] @ centred[k] / np.linalg.norm(centred[u]) / np.linalg.norm(centred[k]) for k in range(seen)]
        nearest = np.argsort(cosines)[::-1][:3]
        weights = np.maximum([cosines[k] for k in nearest], 1e-6)
        direction = weights @ means[nearest] / weights.sum() - means.mean(0)
        np.testing.assert_allclose(settings[3].weights[u], direction / np.linalg.norm(direction), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(settings[1].weights, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", list(baselines.BASELINES))
def test_baselines_recognise_unseen_classes_if_texts_determine_features(name):
    """Features are a linear map of the texts, so both must be far better than chance, 1 of 3."""
    data = support.dataset(classes=40, unseen=3, terms=5)
    division = divide(data, 0, 0.25)
    texts = data.texts[division.classes]
    texts = unit(texts - texts.mean(0))
    args = (data.features[division.train], division.labels[division.train], texts, division.seen_classes)
    images, labels = data.features[division.unseen_test], division.labels[division.unseen_test]
    best = max((c.predict(images, np.arange(37, 40)) == labels).mean() for _, c in baselines.BASELINES[name](*args))
    assert best > 0.6


def test_predictions_are_restricted_to_the_given_classes():
    *args, seen = training_data()
    _, classifier = next(baselines.prototypes(*args, seen))
    assert set(classifier.predict(args[0], np.array([1, 8]))) <= {1, 8}
