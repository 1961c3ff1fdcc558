"""Divergences between the critic's class probabilities p for a hallucinated feature and the uniform distribution u = 1/K.

A hallucinated text belongs to no seen class. The creativity loss therefore pushes p towards u, so that the critic cannot assign
the feature to a class (Elhoseiny & Elfeki 2019). With A = sum_k p_k^a u^(1-a), the divergence of Sharma and Mittal (1975) is

    SM_{a,b}(p || u) = (A^((1-b)/(1-a)) - 1) / (b - 1)

The other divergences are
    Tsallis          b = a:     (A - 1) / (a - 1)
    Renyi            b -> 1:    log A / (a - 1)
    Bhattacharyya    -log sum_k sqrt(p_k u)
    KL               sum_k u log(u / p_k)

All are at least 0, and 0 only for p = u. The orders a and b are learned (models.SharmaMittal). The published code uses other
signs, exponents and scales: see `faithful`.
"""

import math

import torch
import torch.nn.functional as F

FAITHFUL_ALPHA, FAITHFUL_BETA = 0.5, 0.9999  # the published defaults of SM_Alpha (Bhattacharyya) and SM_Beta (Renyi)


def _log_a(logits: torch.Tensor, alpha: torch.Tensor | float) -> torch.Tensor:
    """log A (B,). Computed from logarithms, since p_k^alpha underflows."""
    log_u = -math.log(logits.shape[1])
    return torch.logsumexp(alpha * F.log_softmax(logits, 1) + (1 - alpha) * log_u, 1)


def corrected(name: str, logits: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Divergences (B,) between softmax(logits (B, K)) and the uniform distribution.

    Args:
        name: one of config.DIVERGENCES except k+1.
        orders: (alpha, beta) of Sharma-Mittal. Tsallis and Renyi use alpha only.
    """
    alpha, beta = orders
    match name:
        case "sharma-mittal":
            return torch.expm1((1 - beta) / (1 - alpha) * _log_a(logits, alpha)) / (beta - 1)
        case "tsallis":
            return torch.expm1(_log_a(logits, alpha)) / (alpha - 1)
        case "renyi":
            return _log_a(logits, alpha) / (alpha - 1)
        case "bhattacharyya":
            return -_log_a(logits, 0.5)
        case "kl":
            return -math.log(logits.shape[1]) - F.log_softmax(logits, 1).mean(1)
    raise ValueError(f"unknown divergence {name!r}")


def faithful(name: str, logits: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """The published loss (a scalar) before its weight, including its quirks.

    KL has an extra 1/K and keeps its constant. The others invert the exponent, (1-a)/(1-b), and add 1e-5 to p. They scale the
    batch to 0..1 by its own minimum and maximum without an epsilon, which gives NaN if all rows are equal. Bhattacharyya,
    Tsallis and Renyi are negated first, which pushes p away from uniform. Bhattacharyya uses a = b = 0.5. Renyi uses b =
    0.9999, so its exponent is in the thousands and A^e underflows: in practice the loss is NaN.
    """
    count = logits.shape[1]
    if name == "kl":
        return -(F.log_softmax(logits, 1) / count).mean()
    alpha, beta = orders
    alpha, beta = {
        "sharma-mittal": (alpha, beta),
        "bhattacharyya": (FAITHFUL_ALPHA, FAITHFUL_ALPHA),
        "tsallis": (alpha, alpha),
        "renyi": (alpha, FAITHFUL_BETA),
    }[name]
    p = torch.softmax(logits, 1) + 1e-5
    a = (p**alpha * (1 / count) ** (1 - alpha)).sum(1)
    values = (a ** ((1 - alpha) / (1 - beta)) - 1) / (beta - 1)
    if name != "sharma-mittal":
        values = -values
    low, high = values.min(), values.max()
    return ((values - low) / (high - low)).mean()
