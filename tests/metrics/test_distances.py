import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from tinyldm.errors import UserError
from tinyldm.metrics import distances as metrics
from tinyldm.metrics.distances import Estimate


def normal(count: int, dim: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (count, dim)).astype(np.float32)


def mixed(count: int, dim: int, seed: int) -> np.ndarray:
    """Correlated and skewed data, like the features of networks."""
    mix = np.random.default_rng(99).normal(size=(dim, dim)) / math.sqrt(dim)
    return np.exp(0.5 * normal(count, dim, seed) @ mix).astype(np.float32)


class Given(nn.Module):
    """Passes features instead of images to torchmetrics."""

    num_features = 24

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def of_torchmetrics(metric: nn.Module, samples: np.ndarray, reference: np.ndarray):
    metric.update(torch.from_numpy(reference), real=True)
    metric.update(torch.from_numpy(samples), real=False)
    return metric.compute()


# ------------------------------------------------------------------------------------------------------ Frechet distance


@pytest.mark.parametrize(("count", "others", "dim"), [(30, 50, 64), (50, 30, 40), (25, 90, 24)])
def test_few_images_take_another_way_to_the_same_distance(count, others, dim):
    samples, reference = mixed(count, dim, 1).astype(np.float64), mixed(others, dim, 2).astype(np.float64) + 0.1
    parts = samples - samples.mean(0), reference - reference.mean(0), samples.mean(0) - reference.mean(0)
    few, many = (list(way(*parts, metrics.groups(count))) for way in (metrics._few, metrics._many))
    assert len(few) == 11 and few == pytest.approx(many, rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    """For commuting covariances it is the distance of the means plus that of the standard deviations."""
    random = np.random.default_rng(0)
    axes, _ = np.linalg.qr(random.normal(size=(6, 6)))
    a, b = random.uniform(0.1, 3, (2, 6))
    means = random.normal(size=(2, 6))
    covariances = [(axes * deviations**2) @ axes.T for deviations in (a, b)]
    expected = ((means[0] - means[1]) ** 2).sum() + ((a - b) ** 2).sum()
    actual = metrics.frechet_distance(means[0], covariances[0], means[1], metrics.root(covariances[1]))
    assert actual == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_tends_to_the_true_one():
    actual = metrics.frechet(normal(40_000, 4, 1, mean=1.0, scale=2.0), normal(40_000, 4, 2))
    assert actual.value == pytest.approx(4 * 1 + 4 * 1, rel=0.02) and actual.low < 8 < actual.high


@pytest.mark.parametrize("count", [200, 20])  # more images than features, and fewer: singular covariances
def test_frechet_distance_agrees_with_torchmetrics_and_torch_fidelity(count):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    samples, reference = mixed(count, 24, 1), mixed(150, 24, 2) * 1.3
    mine = metrics.frechet(samples, reference).value
    theirs = of_torchmetrics(FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64), samples, reference)
    assert mine == pytest.approx(float(theirs), rel=1e-3)
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (samples, reference)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert mine == pytest.approx(theirs, rel=1e-3)


def test_frechet_distance_to_itself_and_without_a_scale():
    features = mixed(100, 24, 1)
    assert abs(metrics.frechet(features, features).value) < 1e-6
    far, reference = mixed(100, 24, 2) + 1000, mixed(80, 24, 3)  # a large common mean loses no digits
    shifted = metrics.frechet(far, reference + 1000).value
    assert shifted == pytest.approx(metrics.frechet(far - np.float32(1000), reference).value, rel=1e-3)


# -------------------------------------------------------------------------------------------------------- kernel distance


def test_kernel_distance_agrees_with_torchmetrics_and_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    samples, reference = mixed(120, 24, 1), mixed(120, 24, 2) * 1.2
    mine = metrics.kid(samples, reference).value
    theirs = of_torchmetrics(KernelInceptionDistance(feature=Given(), subsets=1, subset_size=120), samples, reference)[0]
    assert mine == pytest.approx(float(theirs), rel=1e-3)
    tensors = [torch.from_numpy(features.astype(np.float64)) for features in (samples, reference)]
    few = kid_features_to_metric(*tensors, kid_subsets=400, kid_subset_size=60, verbose=False)
    error = few["kernel_inception_distance_std"] / math.sqrt(400)  # subsets overlap, and vary around our value
    assert mine == pytest.approx(few["kernel_inception_distance_mean"], abs=4 * error)


def test_kernel_distance_of_equal_distributions_is_about_0_at_any_size():
    for count in (50, 400):
        actual = [metrics.kid(normal(count, 16, 2 * i), normal(300, 16, 2 * i + 1)).value for i in range(20)]
        assert abs(np.mean(actual)) < 3 * np.std(actual) / math.sqrt(20) + 1e-12
    assert metrics.kid(normal(200, 16, 0, mean=0.5), normal(200, 16, 1)).low > 0


def test_kernel_sums_in_parts(monkeypatch):
    samples, reference = mixed(130, 8, 1), mixed(90, 8, 2)
    whole = metrics.kid(samples, reference)
    monkeypatch.setattr(metrics, "ROWS", 7)
    assert metrics.kid(samples, reference) == pytest.approx(whole, rel=1e-9)


# ------------------------------------------------------------------------------------------------- neighbours and manifolds


def test_precision_and_recall_of_known_sets():
    """Real: two clusters. Samples: one of these clusters twice, and a cluster where no real images are."""
    first, second, nowhere = normal(100, 4, 0), normal(100, 4, 1) + 50, normal(50, 4, 2) - 50
    actual = metrics.prdc(np.concatenate([first + 1e-4, nowhere]), np.concatenate([first, second]))
    assert actual["precision"].value == pytest.approx(100 / 150)
    assert actual["recall"].value == pytest.approx(0.5) and actual["coverage"].value == pytest.approx(0.5)
    assert actual["density"].value == pytest.approx(100 / 150, rel=0.25)
    same = metrics.prdc(first, first)
    assert same["precision"].value == same["recall"].value == same["coverage"].value == 1
    # Each image is in its own ball, and in those of images that have it among their five nearest: six on average, k = 5.
    assert same["density"].value == pytest.approx(6 / 5)


def test_precision_and_recall_agree_with_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, reference = mixed(150, 24, 1) * 1.1, mixed(200, 24, 2)
    mine = metrics.prdc(samples, reference)
    theirs = prc_features_to_metric(
        torch.from_numpy(samples).double(), torch.from_numpy(reference).double(), prc_neighborhood=3, verbose=False
    )
    assert mine["precision"].value == pytest.approx(theirs["precision"], abs=1e-3)
    assert mine["recall"].value == pytest.approx(theirs["recall"], abs=1e-3)


def test_density_and_coverage_by_their_definitions():
    samples, reference = mixed(60, 6, 1), mixed(50, 6, 2)
    among = np.linalg.norm(reference[:, None].astype(float) - reference[None], axis=-1)
    radius = np.sort(among, axis=1)[:, 5]
    inside = np.linalg.norm(reference[:, None].astype(float) - samples[None], axis=-1) <= radius[:, None]
    actual = metrics.prdc(samples, reference)
    assert actual["density"].value == pytest.approx(inside.sum() / (5 * 60))
    assert actual["coverage"].value == pytest.approx(inside.any(1).mean())


def test_manifolds_use_a_limited_number_of_images(monkeypatch):
    monkeypatch.setattr(metrics, "MAX_MANIFOLD", 40)
    samples, reference = mixed(60, 6, 1), mixed(50, 6, 2)
    assert metrics.prdc(samples, reference) == metrics.prdc(samples[:40], reference[:40])


def test_nearest(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 8)
    base, queries = mixed(70, 5, 0), mixed(30, 5, 1)
    queries[3] = base[17]
    distances, indices = metrics.nearest(queries, base, 4)
    every = np.linalg.norm(queries[:, None].astype(float) - base[None], axis=-1)
    np.testing.assert_array_equal(indices, every.argsort(axis=1)[:, :4])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :4], atol=1e-6)
    assert indices[3, 0] == 17 and distances[3, 0] < 1e-6
    assert metrics.nearest(queries, base[:2], 4)[1].shape == (30, 2)


def test_nearer_distinguishes_copies_from_new_images():
    train, held_out = normal(500, 8, 0), normal(400, 8, 1)

    def measured(samples: np.ndarray) -> Estimate:
        return metrics.nearer(*(metrics.nearest(actual, train, 1)[0][:, 0] for actual in (samples, held_out)))

    fresh = measured(normal(400, 8, 2))
    assert fresh.low < 0.5 < fresh.high and fresh.high - fresh.low < 0.2
    assert measured(train[:100] + normal(100, 8, 3, scale=0.01)).low > 0.99
    half = measured(np.concatenate([train[:200], normal(200, 8, 4)]))
    assert half.low < 0.75 < half.high
    assert metrics.nearer(np.ones(30), np.ones(40)).value == 0.5
    assert measured(normal(200, 8, 5, mean=9)).value < 0.01


# -------------------------------------------------------------------------------------------------------- Inception score


def test_inception_score_of_known_classes_and_of_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    sure = 100 * np.eye(4)[np.arange(400) % 4]
    assert metrics.inception_score(sure).value == pytest.approx(4)
    assert metrics.inception_score(np.zeros((100, 7))).value == pytest.approx(1)
    logits = 3 * normal(300, 12, 0) + 500
    theirs = isc_features_to_metric(torch.from_numpy(logits), 10, shuffle=False)
    actual = metrics.inception_score(logits)
    assert actual.value == pytest.approx(theirs["inception_score_mean"], rel=1e-3) and actual.low < actual.value < actual.high


# -------------------------------------------------------------------------------------------------------------- intervals


def test_the_interval_of_a_mean_is_students_t():
    values = np.random.default_rng(0).normal(size=100)
    group_means = np.array([values[g::10].mean() for g in range(10)])
    error = group_means.std(ddof=1) / math.sqrt(10)
    actual = metrics.average(values)
    assert actual == pytest.approx((values.mean(), values.mean() - 2.262 * error, values.mean() + 2.262 * error), abs=2e-3)


@pytest.mark.parametrize("name", ["frechet", "kid", "precision", "recall", "density", "coverage"])
def test_intervals_are_as_wide_as_other_samples_scatter(name):
    """For 40 sets of samples of one model against one reference: their spread, and the widths of their intervals."""

    def measure(samples: np.ndarray) -> Estimate:
        if name in ("frechet", "kid"):
            return getattr(metrics, name)(samples, reference)
        return metrics.prdc(samples, reference)[name]

    reference = mixed(300, 8, 0)
    estimates = [measure(mixed(200, 8, seed) * 1.1) for seed in range(1, 41)]
    scatter = np.std([estimate.value for estimate in estimates], ddof=1)
    widths = np.sqrt(np.mean([((estimate.high - estimate.low) / 2 / 2.262) ** 2 for estimate in estimates]))
    assert 0.6 < widths / scatter < 2
    middle = np.mean([estimate.value for estimate in estimates])
    assert np.mean([estimate.low <= middle <= estimate.high for estimate in estimates]) >= 0.85


def test_intervals_by_hand():
    """The fast sums of the Frechet and the kernel distance equal recomputing them without each group."""
    samples, reference = mixed(50, 6, 1), mixed(40, 6, 2)
    for measure in (metrics.frechet, metrics.kid):
        parts = [measure(samples[np.arange(50) % 10 != g], reference).value for g in range(10)]
        actual = measure(samples, reference)
        assert actual == pytest.approx(metrics.jackknife(actual.value, parts), rel=1e-6)


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("measure", [metrics.frechet, metrics.kid, metrics.prdc, lambda a, b: metrics.inception_score(a)])
def test_too_few_images_and_features_that_are_not_finite(measure):
    good = mixed(40, 6, 0)
    with pytest.raises(UserError, match=r"19 images \(samples\) are too few"):
        measure(good[:19], good)
    broken = good.copy()
    broken[7, 2], broken[9, 0] = np.nan, np.inf
    with pytest.raises(UserError, match=r"2 of 40 images \(samples\) are not finite, first those of number 7"):
        measure(broken, good)


def test_too_few_images_of_the_reference():
    with pytest.raises(UserError, match=r"5 images \(the reference\)"):
        metrics.frechet(mixed(40, 6, 0), mixed(5, 6, 0))
