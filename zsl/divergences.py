"""How far a hallucinated feature is from being seen: divergences of the critic's class probabilities p from uniform u = 1/K.

A hallucinated text is no seen class's, so the creativity loss asks that the critic cannot tell which class its feature is of: p
shall come close to u (Elhoseiny & Elfeki 2019). With A = sum_k p_k^a u^(1-a), the divergence of Sharma and Mittal
(1975) is

    SM_{a,b}(p || u) = (A^((1-b)/(1-a)) - 1) / (b - 1)

and of the others
    Tsallis          b = a:     (A - 1) / (a - 1)
    Renyi            b -> 1:    log A / (a - 1)
    Bhattacharyya    -log sum_k sqrt(p_k u)
    KL               sum_k u log(u / p_k)

All are at least 0, and 0 for p = u alone. The orders a and b are learned where they appear (models.SharmaMittal). The
published code differs in sign, exponent and scale: see `faithful`.
"""

import math

import torch
import torch.nn.functional as F

FAITHFUL_ALPHA, FAITHFUL_BETA = 0.5, 0.9999  # the published defaults of SM_Alpha (Bhattacharyya) and SM_Beta (Renyi)


def _log_a(logits: torch.Tensor, alpha: torch.Tensor | float) -> torch.Tensor:
    """log A (B,), in logarithms, since p_k^alpha underflows."""
    log_u = -math.log(logits.shape[1])
    return torch.logsumexp(alpha * F.log_softmax(logits, 1) + (1 - alpha) * log_u, 1)


def corrected(name: str, logits: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Divergences (B,) of softmax(logits (B, K)) from uniform.

    Args:
        name: one of config.DIVERGENCES but k+1.
        orders: (alpha, beta) of Sharma-Mittal; Tsallis and Renyi take alpha.
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
    """The published loss (a scalar), before its weight, quirks included.

    KL has an extra 1/K and keeps its constant. The others have the exponent (1-a)/(1-b) upside down, add 1e-5 to p, and scale
    the batch from 0 to 1 by its own minimum and maximum without an epsilon: NaN where all rows are equal. Bhattacharyya,
    Tsallis and Renyi are negated first, so that they push p away from uniform. Bhattacharyya takes a = b = 0.5; Renyi takes b =
    0.9999, whose exponent of thousands makes A^e underflow: NaN in practice.
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
