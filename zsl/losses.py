"""The losses of GAZSL, CIZSL and CIZSLv2, each computed only from the quantities that it needs.

    critic      E D(x~) - E D(x) + CE(x, y) + CE(x~, y) + 10 E (|grad D(x^)| - 1)^2
    generator   -E D(x~) + CE(x~, y) / 2 + pivots + regularisers                            (both: Zhu et al. 2018)
    CIZSL adds  -E D(x_h) + w L_creative(x_h),  x_h from a hallucinated text      (Elhoseiny & Elfeki 2019)

Terms without a gradient are left out. The published loss of the generator also has CE(x, y) / 2 of real features, which is
constant for the generator except in CIZSLv2. The sum of squares of the generator's weights is Adam's weight decay (game.py).
"""

import torch
import torch.nn.functional as F

from zsl import divergences
from zsl.config import Method
from zsl.models import Critic, Generator


def gradient_penalty(critic: Critic, before: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """E (|grad D(x^)|_2 - 1)^2 at x^ = mix x + (1 - mix) x~, without differentiating twice.

    The critic has one hidden layer, so grad D(x^) = W^T (v * [W x^ + b > 0]). W x^ + b is the same mixture of W x + b and
    W x~ + b, which are already computed.

    Args:
        before: body(x) and body(x~), concatenated (2 B, H).
        mix: (B,) in [0, 1].
    """
    real, fake = before.detach().chunk(2)
    active = torch.lerp(fake, real, mix[:, None]) > 0
    gradients = (active * critic.critic.weight) @ critic.body.weight  # (B, D)
    return (torch.linalg.vector_norm(gradients, dim=1) - 1).square().mean()


def critic_loss(
    critic: Critic,
    real: torch.Tensor,
    fake: torch.Tensor,
    labels: torch.Tensor,
    mix: torch.Tensor,
    penalty_weight: float,
    guide: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of the critic.

    Args:
        real, fake: features (B, D), both with the classes `labels` (B,).
        mix: mixture weights for the gradient penalty (B,).
        guide: see Critic.heads.
    """
    before = critic.body(torch.cat([real, fake]))
    scores, logits = critic.heads(before, guide)
    real_scores, fake_scores = scores.chunk(2)
    # Twice the mean over both halves is the sum of the two means.
    classes = 2 * F.cross_entropy(logits, labels.repeat(2))
    return fake_scores.mean() - real_scores.mean() + classes + penalty_weight * gradient_penalty(critic, before, mix)


def visual_pivots(features: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor, faithful: bool) -> torch.Tensor:
    """1/K sum_k |m_k - c_k|_2 over the classes k in the batch; m_k is the mean generated feature (Zhu et al. 2018).

    Args:
        features: generated features (B, D).
        labels: (B,) in 0..K-1.
        centroids: c_k, means of the real training features (K, D).
        faithful: as in the published code, use the mean over dimensions for a class with one sample in the batch. One number is
            then compared with the whole centroid.
    """
    counts = torch.bincount(labels, minlength=len(centroids))
    sums = torch.zeros_like(centroids).index_add(0, labels, features)
    present = counts > 0
    means = sums[present] / counts[present, None]
    if faithful:
        means = torch.where(counts[present, None] == 1, means.mean(1, keepdim=True), means)
    return torch.linalg.vector_norm(means - centroids[present], dim=1).sum() / len(centroids)


def text_sparsity(generator: Generator) -> torch.Tensor:
    """Sum over terms of the norm of their column in the text reduction. It moves the columns of useless terms to 0."""
    return torch.linalg.vector_norm(generator.text.weight, dim=0).sum()


def hallucinate(
    projected: torch.Tensor, gram: torch.Tensor, first: torch.Tensor, second: torch.Tensor, share: torch.Tensor, length: float
) -> torch.Tensor:
    """Generator.project of hallucinated texts a t_1 + (1 - a) t_2, scaled to `length`, without projecting again.

    The projection is affine, and the length of the mixture follows from the inner products of the texts.

    Args:
        projected: projections of the K class texts, followed by that of the zero text (K + 1, H).
        gram: inner products of the texts (K, K).
        first, second: classes (B,).
        share: a (B,).
        length: length of the mixtures. Published: 1, even if the class texts have another length.

    Returns:
        Projections (B, H).
    """
    zero, rest = projected[-1], 1 - share
    squared = share**2 * gram[first, first] + rest**2 * gram[second, second] + 2 * share * rest * gram[first, second]
    scale = length * squared.clamp(min=1e-24).rsqrt()
    # Several threads would add up the gradient of projected[first], in another order and so with another rounding each time.
    one, other = projected.index_select(0, first), projected.index_select(0, second)
    mixed = (share * scale)[:, None] * one + (rest * scale)[:, None] * other
    return mixed + (1 - scale)[:, None] * zero


def creativity(method: Method, logits: torch.Tensor, orders: torch.Tensor, weight: float, faithful: bool) -> torch.Tensor:
    """The creativity loss on the critic's class logits (B, K) of hallucinated features, which should fit no seen class.

    Args:
        orders: the learned (alpha, beta).
        weight: w. The published code omits it for k+1.
    """
    if method.divergence is None:
        raise ValueError(f"{method.name} has no creativity loss")
    if method.divergence == "k+1":  # logits are (B, K + 1): the last class stands for everything that is not a seen class
        loss = F.cross_entropy(logits, torch.full((len(logits),), logits.shape[1] - 1, device=logits.device))
        return loss if faithful else weight * loss
    if faithful:
        return weight * divergences.faithful(method.divergence, logits, orders)
    return weight * divergences.corrected(method.divergence, logits, orders).mean()
