import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from benchmarks.zero_shot_plain import curve_at, published_offsets
from benchmarks.zero_shot_plain import vote as plain_vote
from zsl import metrics


def scores(seed: int = 0, seen: int = 5, unseen: int = 4, images: int = 60, ties: bool = False):
    """Scores and labels of seen images, scores and labels of unseen images, and K. Most predictions are correct."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, seen, images), random.integers(seen, seen + unseen, images)
    tables = []
    for own in labels:
        table = random.uniform(-0.5, 0.5, (images, seen + unseen))
        table[np.arange(images), own] += 0.4
        tables.append((table.round(1) if ties else table).astype(np.float32))
    return tables[0], labels[0], tables[1], labels[1], seen


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_curve_equals_brute_force_at_every_offset(seed, ties):
    args = scores(seed, ties=ties)
    curve = metrics.seen_unseen_curve(*args)
    edges = curve.offsets[1:]
    between = np.concatenate([[edges[0] - 1], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1]])
    seen, unseen, area = curve_at(between, *args)
    assert np.array_equal(curve.seen, seen) and np.array_equal(curve.unseen, unseen)
    assert curve.area == pytest.approx(area, abs=1e-12)
    assert (np.diff(curve.seen) <= 0).all() and (np.diff(curve.unseen) >= 0).all()


def test_400_offsets_approximate_the_area_and_more_offsets_do_it_better():
    args = scores(images=400)
    exact = metrics.seen_unseen_curve(*args).area
    coarse, fine = (curve_at(offsets, *args)[2] for offsets in (published_offsets(), np.arange(-2, 2, 0.001)))
    assert abs(fine - exact) < abs(coarse - exact) < 0.01
    assert fine == pytest.approx(exact, abs=1e-3)


def test_the_ends_of_the_curve():
    """At one end no unseen class can win, at the other no seen class: the accuracies of two separate tasks."""
    seen_scores, seen_labels, unseen_scores, unseen_labels, known = scores()
    curve = metrics.seen_unseen_curve(seen_scores, seen_labels, unseen_scores, unseen_labels, known)
    assert curve.seen[0] == (seen_scores[:, :known].argmax(1) == seen_labels).mean() and curve.unseen[0] == 0
    assert curve.unseen[-1] == (unseen_scores[:, known:].argmax(1) + known == unseen_labels).mean() and curve.seen[-1] == 0


def test_a_perfect_classifier_has_area_1_and_a_wrong_one_0():
    table = np.eye(6, dtype=np.float32)
    labels = np.arange(6)
    assert metrics.seen_unseen_curve(table[:4], labels[:4], table[4:], labels[4:], 4).area == 1
    wrong = np.roll(table, 1, 1)
    assert metrics.seen_unseen_curve(wrong[:3], labels[:3], wrong[4:], labels[4:] * 0 + 4, 4).area == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_vote_equals_one_counted_image_by_image(seed):
    random = np.random.default_rng(seed)
    similarities, owners = random.normal(size=(50, 40)), np.repeat(np.arange(8), 5)
    assert np.array_equal(metrics.vote(similarities, owners, 7, 8), plain_vote(similarities, owners, 7, 8))


def test_ties_of_a_vote_go_to_the_smallest_class():
    similarities = np.array([[0.1, 0.9, 0.2, 0.8]])
    assert metrics.vote(similarities, np.array([0, 2, 0, 1]), 2, 3) == [1]


def test_accuracies():
    random = np.random.default_rng(0)
    labels, predicted = random.integers(3, 7, 200), random.integers(3, 7, 200)
    assert metrics.top1(predicted, labels) == (predicted == labels).mean()
    assert metrics.per_class_top1(predicted, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics.harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)
    assert metrics.harmonic_mean(0.0, 0.0) == 0
