"""Distances between sets of images, as pure functions of their features: arrays (N, D), one row per image.

Every function returns an `Estimate`: the value and a 95% interval. The interval covers the values of other sets of as many
samples from the same model, against the same reference. It is the delete-a-group jackknife (Shao & Wu 1989), which computes
the value again without each tenth of the samples.

A bootstrap would fail here. A Frechet distance grows as the number of images falls, and a resampled set has only 63% distinct
images, so the interval would not contain the value. The ten sets of the jackknife have equal sizes, so this growth cancels
in their spread. The bias itself remains: compare values of 500 images only with values of 500 images. A share of 0 or 1 has
no spread, so its interval has no width.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinyldm.errors import UserError

GROUPS = 10  # of the jackknife; also the usual number of splits for an Inception score
T_95 = 2.262  # Student's t of GROUPS - 1 degrees of freedom
MIN_IMAGES = 2 * GROUPS  # two in each group
MAX_MANIFOLD = 10_000  # images per set for precision, recall, density, coverage (Naeem et al.'s number): 1 GB of distances
ROWS = 1000  # of a distance or kernel matrix computed at once


class Estimate(NamedTuple):
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def check_features(features: np.ndarray, what: str) -> np.ndarray:
    """The features in double precision.

    Args:
        features: (N, D).
        what: which images they belong to, for the message.

    Raises:
        UserError: if there are fewer than MIN_IMAGES rows, or a value is not finite.
    """
    if len(features) < MIN_IMAGES:
        raise UserError(
            f"{len(features)} images ({what}) are too few for a covariance and its interval: "
            f"use at least {MIN_IMAGES}, better several thousand"
        )
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise UserError(
            f"the features of {len(broken)} of {len(features)} images ({what}) are not finite, first those of "
            f"number {broken[0]}: check that image, and use --dtype float32"
        )
    return features.astype(np.float64)


def jackknife(value: float, left_out: Sequence[float] | np.ndarray) -> Estimate:
    """The interval of a value from the values without one group each: SE^2 = (g - 1) / g sum_j (t_j - mean t)^2."""
    values = np.asarray(left_out, np.float64)
    error = math.sqrt((len(values) - 1) * values.var())
    return Estimate(float(value), float(value - T_95 * error), float(value + T_95 * error))


def groups(count: int) -> np.ndarray:
    """(count,) the group of each image, assigned round-robin."""
    return np.arange(count) % GROUPS


def average(values: np.ndarray) -> Estimate:
    """The mean of a value per image (N,), such as the PSNR."""
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

    The last trace equals that of (R2 C R2)^(1/2) with R2 = C2^(1/2). This matrix is symmetric, so its eigenvalues are real.
    They are exact even with fewer images than features, when both covariances are singular.

    Args:
        mean, mean2: (D,).
        covariance: C (D, D).
        root2: R2 (D, D).
    """
    mixed = np.sqrt(np.linalg.eigvalsh(root2 @ covariance @ root2).clip(0)).sum()
    return float(((mean - mean2) ** 2).sum() + np.trace(covariance) + (root2**2).sum() - 2 * mixed)


def frechet(samples: np.ndarray, reference: np.ndarray) -> Estimate:
    """The Frechet distance between features (N, D) and the reference's (M, D). For Inception's features it is the FID.

    0 is best. The bias is positive and falls with 1 / N and 1 / M.
    """
    samples, reference = check_features(samples, "samples"), check_features(reference, "the reference")
    mean2, shift, group = reference.mean(0), samples.mean(0), groups(len(samples))
    few = min(len(samples), len(reference)) <= samples.shape[1]
    left_out = (_few if few else _many)(samples - shift, reference - mean2, shift - mean2, group)
    return jackknife(next(left_out), list(left_out))


def _many(centred: np.ndarray, reference: np.ndarray, shift: np.ndarray, group: np.ndarray) -> Iterator[float]:
    """The distance, then those without one group each, of centred features whose means differ by `shift`."""
    root2, none = root(reference.T @ reference / (len(reference) - 1)), np.zeros_like(shift)
    sums = np.stack([centred[group == g].sum(0) for g in range(GROUPS)])
    products = centred.T @ centred

    def distance(total: np.ndarray, product: np.ndarray, count: int) -> float:
        mean = total / count
        covariance = (product - count * np.outer(mean, mean)) / (count - 1)
        return frechet_distance(mean + shift, covariance, none, root2)

    yield distance(sums.sum(0), products, len(centred))
    for g in range(GROUPS):
        part = centred[group == g]
        yield distance(sums.sum(0) - sums[g], products - part.T @ part, len(centred) - len(part))


def _few(centred: np.ndarray, reference: np.ndarray, shift: np.ndarray, group: np.ndarray) -> Iterator[float]:
    """As `_many`, where one of the sets has no more images than features: much faster then.

    With the centred features A and B as rows, C = A'A and C2 = B'B, but for the factors. The roots of the eigenvalues of C C2
    are the singular values of AB', which has a row and a column for each image.
    """
    reference = reference / math.sqrt(len(reference) - 1)
    inner, trace2 = centred @ reference.T, (reference**2).sum()
    for kept in (group >= 0, *(group != g for g in range(GROUPS))):
        count, mean = kept.sum(), centred[kept].mean(0)
        trace = ((centred[kept] - mean) ** 2).sum() / (count - 1)
        mixed = np.linalg.svd(inner[kept] - inner[kept].mean(0), compute_uv=False).sum() / math.sqrt(count - 1)
        yield float(((shift + mean) ** 2).sum() + trace + trace2 - 2 * mixed)


# -------------------------------------------------------------------------------------------------------- kernel distance


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    """Sum over all pairs of rows of the kernel (x . y / D + 1)^3."""
    return sum(float(((a[i : i + ROWS] @ b.T / a.shape[1] + 1) ** 3).sum()) for i in range(0, len(a), ROWS))


def _own_kernel(a: np.ndarray) -> float:
    """Sum over all rows of the kernel of a row with itself."""
    return float((((a * a).sum(1) / a.shape[1] + 1) ** 3).sum())


def kid(samples: np.ndarray, reference: np.ndarray) -> Estimate:
    """The unbiased squared MMD with the kernel (x . y / D + 1)^3 (Binkowski et al. 2018). For Inception's features it is the
    KID.

    Its expectation is 0 for equal distributions, at any number of images. Others average it over random subsets of 1,000
    images. One set of all images, as here, is the limit of that average, without its noise.

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
    """Euclidean distances between `a` (N, D) and `b` (M, D), in blocks of ROWS rows of `a`."""
    squares = (b * b).sum(1)
    for i in range(0, len(a), ROWS):
        rows = a[i : i + ROWS]
        squared = (rows * rows).sum(1)[:, None] + squares - 2 * rows @ b.T
        yield slice(i, i + len(rows)), np.sqrt(squared.clip(0))


def _all_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All distances (N, M) in single precision."""
    matrix = np.empty((len(a), len(b)), np.float32)
    for rows, distances in _distances(a, b):
        matrix[rows] = distances
    return matrix


def nearest(queries: np.ndarray, base: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest rows of `base` (M, D) for each row of `queries` (N, D).

    Returns:
        Distances and indices, both (N, count), nearest first.
    """
    queries, base = queries.astype(np.float64), base.astype(np.float64)
    count = min(count, len(base))
    smallest, indices = np.empty((len(queries), count)), np.empty((len(queries), count), np.int64)
    for rows, distances in _distances(queries, base):
        closest = np.argpartition(distances, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(distances, closest, 1).argsort(axis=1, kind="stable")
        indices[rows] = np.take_along_axis(closest, order, 1)
        smallest[rows] = np.take_along_axis(distances, indices[rows], 1)
    return smallest, indices


def prdc(samples: np.ndarray, reference: np.ndarray, k_pr: int = 3, k_dc: int = 5) -> dict[str, Estimate]:
    """Precision, recall, density and coverage: how well samples and real images cover each other.

    The manifold of a set is a union of balls: one around each image, out to its k-th nearest neighbour in the set.

    - precision: share of samples in the reference's manifold (Kynkäänniemi et al. 2019, section 2, k = 3).
    - recall: share of the reference in the samples' manifold (the same).
    - density: mean number of reference balls around a sample, over k (Naeem et al. 2020, section 3, k = 5). About 1 for
      real images, and it may exceed 1.
    - coverage: share of reference balls that contain a sample (the same).

    Args:
        samples: (N, D); uses at most the first MAX_MANIFOLD.
        reference: (M, D); the same.
    """
    samples = check_features(samples[:MAX_MANIFOLD], "samples")
    reference = check_features(reference[:MAX_MANIFOLD], "the reference")
    own = _all_distances(samples, samples)
    np.fill_diagonal(own, 0)
    real = _all_distances(reference, reference)
    np.fill_diagonal(real, 0)
    real.partition((k_pr, k_dc), axis=1)  # column k: distance to the k-th neighbour; column 0 is the image itself
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
    """How often a sample is nearer to the training set than a held-out image: P(d(sample) < d(held-out)), ties count half.

    The statistic of Meehan et al. 2020 ("A Non-Parametric Test to Detect Data-Copying in Generative Models"), without its
    cells. At 0.5, samples are as far from the training images as new images. Towards 1, they are copies. Below 0.5, they are
    further away than real images, as poor samples are; this says nothing about copies.

    Args:
        samples: (N,) distance of each sample to its nearest training image.
        held_out: (M,) the same for held-out images.
    """
    return average(nearer_shares(samples, held_out))


def nearer_shares(samples: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """For each sample (N,) the share of held-out images that are further away; see nearer."""
    held_out = np.sort(held_out)
    below, up_to = np.searchsorted(held_out, samples, "left"), np.searchsorted(held_out, samples, "right")
    return 1 - (below + up_to) / (2 * len(held_out))


# -------------------------------------------------------------------------------------------------------- Inception score


def inception_score(logits: np.ndarray) -> Estimate:
    """exp(E KL(p(y|x) || p(y))) from logits (N, classes), the mean over GROUPS splits (Salimans et al. 2016).

    It lies between 1 and the number of classes. It is meaningful only for images of ImageNet's classes, so not for faces.
    The interval is that of the mean over the splits.
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


def codebook_use(codes: np.ndarray, size: int) -> dict[str, float]:
    """How many codes a codebook has, the share of them in `codes`, and the perplexity of their distribution."""
    uses = np.bincount(codes.ravel(), minlength=size)
    shares = uses[uses > 0] / uses.sum()
    return {"codes": len(uses), "used": float((uses > 0).mean()), "perplexity": float(np.exp(-(shares * np.log(shares)).sum()))}
