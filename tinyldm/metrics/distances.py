"""Distances between sets of images, as pure functions of their features: arrays (N, D), one row an image.

Every function returns an `Estimate`: the figure and a 95% interval that says how far another set of as many samples from the
same model would be off, with the reference held fixed. The interval is the delete-a-group jackknife (Shao & Wu 1989): the
figure is computed again without each tenth of the samples. A bootstrap would not do: a Frechet distance grows as images get
fewer, and a resampled set has only 63% of them, so that its interval would lie beside the figure. The ten sets of the
jackknife have the same size, the growth is common to them and falls out of their spread. It does not mend the bias: a figure
of 500 images compares with figures of 500 images only. A share that is 0 or 1 has no spread, and so no width here.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinyldm.errors import UserError

GROUPS = 10  # of the jackknife, and the usual ten splits of an Inception score
T_95 = 2.262  # Student's t of GROUPS - 1 degrees of freedom
MIN_IMAGES = 2 * GROUPS  # two in each group
MAX_MANIFOLD = 10_000  # images a side of precision, recall, density and coverage: Naeem et al.'s number, and 1 GB of distances
ROWS = 1000  # of a matrix of distances or kernel values at a time


class Estimate(NamedTuple):
    """A figure and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def check_features(features: np.ndarray, what: str) -> np.ndarray:
    """The features in double precision.

    Args:
        features: (N, D).
        what: whose they are, for the message.

    Raises:
        UserError: for fewer than MIN_IMAGES rows, or a value that is not finite.
    """
    if len(features) < MIN_IMAGES:
        raise UserError(
            f"{len(features)} images ({what}) are too few for a covariance and its interval; "
            f"give at least {MIN_IMAGES}, better as many thousands"
        )
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise UserError(
            f"the features of {len(broken)} of {len(features)} images ({what}) are not finite, those of number {broken[0]} "
            "first: look at that image, and use --dtype float32"
        )
    return features.astype(np.float64)


def jackknife(value: float, left_out: Sequence[float]) -> Estimate:
    """The interval of a figure from the figures without one group each: SE^2 = (g - 1) / g sum_j (t_j - mean t)^2."""
    left_out = np.asarray(left_out, np.float64)
    error = math.sqrt((len(left_out) - 1) * left_out.var())
    return Estimate(float(value), float(value - T_95 * error), float(value + T_95 * error))


def groups(count: int) -> np.ndarray:
    """(count,) the group of each image: images in turn, so that all groups see the whole order."""
    return np.arange(count) % GROUPS


def average(values: np.ndarray) -> Estimate:
    """The mean of a figure that each image (N,) has by itself, such as a PSNR."""
    group = groups(len(values))
    sums, counts = np.bincount(group, values, GROUPS), np.bincount(group, minlength=GROUPS)
    return jackknife(values.mean(), (sums.sum() - sums) / (len(values) - counts))


# ------------------------------------------------------------------------------------------------------ Frechet distance


def root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance (D, D)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(mean: np.ndarray, covariance: np.ndarray, mean2: np.ndarray, root2: np.ndarray) -> float:
    """|m - m2|^2 + tr(C + C2 - 2 (C C2)^(1/2)), of two Gaussians (Heusel et al. 2017, equation 6).

    The last trace is that of (R2 C R2)^(1/2) with R2 = C2^(1/2): a symmetric matrix, whose eigenvalues are real and found
    without loss even when there are fewer images than features and both covariances are singular.

    Args:
        mean, mean2: (D,).
        covariance: C (D, D).
        root2: R2 (D, D).
    """
    mixed = np.sqrt(np.linalg.eigvalsh(root2 @ covariance @ root2).clip(0)).sum()
    return float(((mean - mean2) ** 2).sum() + np.trace(covariance) + (root2**2).sum() - 2 * mixed)


def frechet(samples: np.ndarray, reference: np.ndarray) -> Estimate:
    """The Frechet distance of features (N, D) to those of the reference (M, D): FID where they are Inception's.

    0 is best. It is biased upwards by about a constant / N + another / M.
    """
    samples, reference = check_features(samples, "samples"), check_features(reference, "the reference")
    mean2, root2 = reference.mean(0), root(np.cov(reference, rowvar=False))
    shift = samples.mean(0)
    centred, group = samples - shift, groups(len(samples))
    sums = np.stack([centred[group == g].sum(0) for g in range(GROUPS)])
    products = centred.T @ centred

    def distance(total: np.ndarray, product: np.ndarray, count: int) -> float:
        mean = total / count
        covariance = (product - count * np.outer(mean, mean)) / (count - 1)
        return frechet_distance(mean + shift, covariance, mean2, root2)

    left_out = []
    for g in range(GROUPS):
        part = centred[group == g]
        left_out.append(distance(sums.sum(0) - sums[g], products - part.T @ part, len(samples) - len(part)))
    return jackknife(distance(sums.sum(0), products, len(samples)), left_out)


# -------------------------------------------------------------------------------------------------------- kernel distance


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    """Sum over all pairs of rows of the kernel (x . y / D + 1)^3."""
    return sum(float(((a[i : i + ROWS] @ b.T / a.shape[1] + 1) ** 3).sum()) for i in range(0, len(a), ROWS))


def _own_kernel(a: np.ndarray) -> float:
    """Sum over the rows of their kernel with themselves."""
    return float((((a * a).sum(1) / a.shape[1] + 1) ** 3).sum())


def kid(samples: np.ndarray, reference: np.ndarray) -> Estimate:
    """The unbiased squared MMD with the kernel (x . y / D + 1)^3 (Binkowski et al. 2018): KID where the features are
    Inception's.

    0 in expectation for equal distributions, at any number of images. Usually it is averaged over random subsets of 1,000
    images; all images taken as one set, as here, are what that average tends to, without its noise.

    Args:
        samples: (N, D).
        reference: (M, D).
    """
    samples, reference = check_features(samples, "samples"), check_features(reference, "the reference")
    group, n, m = groups(len(samples)), len(samples), len(reference)
    parts = [samples[group == g] for g in range(GROUPS)]
    within = np.array([[_kernel_sum(a, b) for b in parts[: i + 1]] + [0.0] * (GROUPS - 1 - i) for i, a in enumerate(parts)])
    within = within + np.tril(within, -1).T - np.diag([_own_kernel(part) for part in parts])
    across = np.array([_kernel_sum(part, reference) for part in parts])
    other = (_kernel_sum(reference, reference) - _own_kernel(reference)) / (m * (m - 1))

    def mmd(pairs: float, mixed: float, count: int) -> float:
        return pairs / (count * (count - 1)) + other - 2 * mixed / (count * m)

    left_out = [
        mmd(within.sum() - within[g].sum() - within[:, g].sum() + within[g, g], across.sum() - across[g], n - len(parts[g]))
        for g in range(GROUPS)
    ]
    return jackknife(mmd(within.sum(), across.sum(), n), left_out)


# ------------------------------------------------------------------------------------------------- neighbours and manifolds


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances of `a` (N, D) to `b` (M, D), ROWS rows of the (N, M) at a time."""
    squares = (b * b).sum(1)
    for i in range(0, len(a), ROWS):
        rows = a[i : i + ROWS]
        squared = (rows * rows).sum(1)[:, None] + squares - 2 * rows @ b.T
        yield slice(i, i + len(rows)), np.sqrt(squared.clip(0))


def _all_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) in single precision."""
    found = np.empty((len(a), len(b)), np.float32)
    for rows, distances in _distances(a, b):
        found[rows] = distances
    return found


def nearest(queries: np.ndarray, base: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest rows of `base` (M, D) for each row of `queries` (N, D).

    Returns:
        Distances and indices, both (N, count), the nearest first.
    """
    queries, base = queries.astype(np.float64), base.astype(np.float64)
    count = min(count, len(base))
    found, indices = np.empty((len(queries), count)), np.empty((len(queries), count), np.int64)
    for rows, distances in _distances(queries, base):
        closest = np.argpartition(distances, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(distances, closest, 1).argsort(axis=1, kind="stable")
        indices[rows] = np.take_along_axis(closest, order, 1)
        found[rows] = np.take_along_axis(distances, indices[rows], 1)
    return found, indices


def prdc(samples: np.ndarray, reference: np.ndarray, k_pr: int = 3, k_dc: int = 5) -> dict[str, Estimate]:
    """How many samples lie where real images lie, and how many real images where samples lie.

    A set's manifold is the union of the balls around its images that reach to their k-th nearest neighbours in it.

    precision: share of samples in the reference's manifold; recall: share of the reference in the samples' (Kynkäänniemi et
    al. 2019, section 2, k = 3). density: how many reference balls a sample lies in, over k, about 1 for real images
    and not bounded by it; coverage: share of reference balls with a sample in them (Naeem et al. 2020, section 3,
    k = 5).

    Args:
        samples: (N, D); at most MAX_MANIFOLD of them are looked at.
        reference: (M, D), the same.
    """
    samples = check_features(samples[:MAX_MANIFOLD], "samples")
    reference = check_features(reference[:MAX_MANIFOLD], "the reference")
    own = _all_distances(samples, samples)
    np.fill_diagonal(own, 0)
    real = _all_distances(reference, reference)
    np.fill_diagonal(real, 0)
    real.partition((k_pr, k_dc), axis=1)  # column k: the distance to the k-th neighbour, as column 0 is the image itself
    radius_pr, radius_dc = real[:, k_pr].copy(), real[:, k_dc].copy()
    del real
    across = _all_distances(reference, samples)  # (M, N)

    def figures(kept: np.ndarray) -> tuple[float, float, float, float]:
        distances = across[:, kept]
        radius = np.partition(own[np.ix_(kept, kept)], k_pr, axis=1)[:, k_pr]
        precision = (distances <= radius_pr[:, None]).any(0).mean()
        recall = (distances <= radius).any(1).mean()
        density = (distances <= radius_dc[:, None]).sum(0).mean() / k_dc
        return precision, recall, density, (distances.min(1) <= radius_dc).mean()

    group = groups(len(samples))
    whole = figures(np.arange(len(samples)))
    left_out = zip(*(figures(np.flatnonzero(group != g)) for g in range(GROUPS)), strict=True)
    names = ("precision", "recall", "density", "coverage")
    return {name: jackknife(value, others) for name, value, others in zip(names, whole, left_out, strict=True)}


def nearer(samples: np.ndarray, held_out: np.ndarray) -> Estimate:
    """How often a sample is nearer to the training part than a held-out image is: P(d(sample) < d(held-out)), ties half.

    The statistic of Meehan et al. 2020 ("A Non-Parametric Test to Detect Data-Copying in Generative Models")
    without its cells. 0.5: samples are as far from the training images as new images are. Towards 1: they are copies.
    Below 0.5: they are further away than real images, as poor samples are, which says nothing about copies.

    Args:
        samples: (N,) each sample's distance to its nearest training image.
        held_out: (M,) the same for held-out images.
    """
    held_out = np.sort(held_out)
    below, up_to = np.searchsorted(held_out, samples, "left"), np.searchsorted(held_out, samples, "right")
    return average(1 - (below + up_to) / (2 * len(held_out)))


# -------------------------------------------------------------------------------------------------------- Inception score


def inception_score(logits: np.ndarray) -> Estimate:
    """exp(E KL(p(y|x) || p(y))), the mean over GROUPS splits (Salimans et al. 2016), from logits (N, classes).

    From 1 to the number of classes. It says something only where the images show what ImageNet's classes are: for faces it
    does not. The interval is that of the mean of the splits.
    """
    logits = check_features(logits, "samples")
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    scores = []
    for g in range(GROUPS):
        part = log_p[g * len(log_p) // GROUPS : (g + 1) * len(log_p) // GROUPS]
        p = np.exp(part)
        scores.append(math.exp((p * (part - np.log(p.mean(0)))).sum(1).mean()))
    error = np.std(scores, ddof=1) / math.sqrt(GROUPS)
    return Estimate(float(np.mean(scores)), float(np.mean(scores) - T_95 * error), float(np.mean(scores) + T_95 * error))
