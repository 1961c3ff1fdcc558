"""A plain implementation of zsl/: tests compare numbers with it, and benchmarks/zero_shot.py compares speed.

Texts are projected once per sample, and the gradient penalty differentiates twice. Classes and samples are handled in loops.
Regularisers are explicit sums. The seen-unseen curve is evaluated at 400 offsets, as published.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from zsl.config import Method
from zsl.game import Game
from zsl.models import Critic, Generator


def gradient_penalty(critic: Critic, real: torch.Tensor, fake: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """E (|grad D(x^)| - 1)^2, by differentiating the critic at x^."""
    between = (mix[:, None] * real + (1 - mix[:, None]) * fake).requires_grad_(True)
    scores, _ = critic(between)
    [gradients] = torch.autograd.grad(scores.sum(), between, create_graph=True)
    return ((gradients.norm(dim=1) - 1) ** 2).mean()


def visual_pivots(features: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor, faithful: bool) -> torch.Tensor:
    """The pivot loss, class by class."""
    total = features.new_zeros(())
    for k in range(len(centroids)):
        rows = torch.nonzero(labels == k).squeeze()
        if rows.numel() == 0:
            continue
        if not faithful and rows.ndim == 0:
            rows = rows[None]
        total = total + (features[rows, :].mean(dim=0) - centroids[k]).pow(2).sum().sqrt()  # 0-d rows: a mean over dimensions
    return total / len(centroids)


def squares(generator: Generator) -> torch.Tensor:
    """Sum of squares of all weights."""
    return sum(p.pow(2).sum() for name, p in generator.named_parameters() if "weight" in name)


def text_sparsity(generator: Generator) -> torch.Tensor:
    """Sum over terms of the norm of their column."""
    return sum(column.pow(2).sum().sqrt() for column in generator.text.weight.T)


def hallucinated_texts(
    texts: torch.Tensor, first: torch.Tensor, second: torch.Tensor, share: torch.Tensor, length: float
) -> torch.Tensor:
    """Mixtures of the texts of two classes (B, T)."""
    mixed = share[:, None] * texts[first] + (1 - share[:, None]) * texts[second]
    return length * mixed / mixed.norm(dim=1, keepdim=True)


def faithful_creativity(method: Method, logits: torch.Tensor, orders: torch.Tensor, weight: float) -> torch.Tensor:
    """The published creativity loss, sample by sample."""
    count = logits.shape[1]
    if method.divergence == "k+1":
        return torch.stack([torch.logsumexp(row, 0) - row[-1] for row in logits]).mean()
    if method.divergence == "kl":
        return -weight * torch.stack([(row - torch.logsumexp(row, 0)).sum() / count for row in logits]).sum() / logits.numel()
    alpha, beta = orders
    if method.divergence == "bhattacharyya":
        alpha = beta = torch.tensor(0.5)
    if method.divergence == "tsallis":
        beta = alpha
    if method.divergence == "renyi":
        beta = torch.tensor(0.9999)
    rows = []
    for row in logits:
        p = row.exp() / row.exp().sum() + 1e-5
        a = sum(p[k] ** alpha * (1 / count) ** (1 - alpha) for k in range(count))
        s = (a ** ((1 - alpha) / (1 - beta)) - 1) / (beta - 1)
        rows.append(s if method.divergence == "sharma-mittal" else -s)
    s = torch.stack(rows)
    return weight * ((s - s.min()) / (s.max() - s.min())).mean()


def corrected_creativity(method: Method, logits: torch.Tensor, orders: torch.Tensor, weight: float) -> torch.Tensor:
    """The corrected creativity loss, from the textbook formulas."""
    if method.divergence == "k+1":
        return weight * torch.stack([torch.logsumexp(row, 0) - row[-1] for row in logits]).mean()
    alpha, beta = orders
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    u = 1 / logits.shape[1]
    a = (p**alpha * u ** (1 - alpha)).sum(1)
    values = {
        "sharma-mittal": lambda: (a ** ((1 - beta) / (1 - alpha)) - 1) / (beta - 1),
        "tsallis": lambda: (a - 1) / (alpha - 1),
        "renyi": lambda: a.log() / (alpha - 1),
        "bhattacharyya": lambda: -(p * u).sqrt().sum(1).log(),
        "kl": lambda: (u * (u / p).log()).sum(1),
    }
    return weight * values[method.divergence]().mean()


class PlainGame(Game):
    """The same game with the same random numbers, implemented plainly."""

    def __init__(self, *args):
        super().__init__(*args)
        for group in self.optimizers["generator"].param_groups:
            group["weight_decay"] = 0.0  # an explicit sum below

    def iterate(self, iteration: int) -> None:
        train = self.config.train
        number = iteration * (train.critic_steps + 1)
        for step in range(train.critic_steps):
            self.plain_critic_step(number + step)
        self.plain_generator_step(number + train.critic_steps)

    def plain_critic_step(self, number: int) -> None:
        rows, labels = self._batch(number)
        real, random = self.data.features[rows], self._random("critic", number)
        mix = torch.rand(len(labels), generator=random).to(self.device)
        fake = self.generator(self._noise(random), self.data.texts[labels]).detach()
        guide = self._guide().detach() if self.method.family == "cizslv2" else None
        real_scores, real_logits = self.critic(real, guide)
        fake_scores, fake_logits = self.critic(fake, guide)
        loss = fake_scores.mean() - real_scores.mean()
        loss = loss + F.cross_entropy(real_logits, labels) + F.cross_entropy(fake_logits, labels)
        loss = loss + self.config.train.gradient_penalty * gradient_penalty(self.critic, real, fake, mix)
        if self.method.divergence == "k+1" and not self.config.faithful:
            noise, texts = self.plain_hallucination(number)
            _, logits = self.critic(self.generator(noise, texts).detach())
            loss = loss + corrected_creativity(self.method, logits, self.orders(), self.weight)
        self._step(loss, "critic")

    def plain_generator_step(self, number: int) -> None:
        train, faithful = self.config.train, self.config.faithful
        rows, labels = self._batch(number)
        guide = self._guide()
        generated = self.generator(self._noise(self._random("generator", number)), self.data.texts[labels])
        scores, logits = self.critic(generated, guide)
        loss = -scores.mean() + F.cross_entropy(logits, labels) / 2
        loss = loss + F.cross_entropy(self.critic(self.data.features[rows], guide)[1], labels) / 2
        loss = loss + train.pivot_weight * visual_pivots(generated, labels, self.data.centroids, faithful)
        loss = loss + train.weight_decay * squares(self.generator)
        if self.config.model.text_size:
            loss = loss + train.text_sparsity * text_sparsity(self.generator)
        if self.creative:
            scores, logits = self.critic(self.generator(*self.plain_hallucination(number)), guide)
            creativity = faithful_creativity if faithful else corrected_creativity
            loss = loss - scores.mean() + creativity(self.method, logits, self.orders(), self.weight)
        self.optimizers["critic"].zero_grad()
        self._step(loss, "generator", "orders")

    def plain_hallucination(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and texts (B, T), from the same random numbers as Game._hallucinated."""
        random, count = self._random("hallucinate", number), self.config.train.batch_size
        images = torch.randint(len(self.data.labels), (2, count), generator=random)
        first, second = (self.data.labels[row.to(self.device)] for row in images)
        if not self.config.faithful:
            offset = torch.randint(1, self.classes, (count,), generator=random).to(self.device)
            second = torch.tensor([(a + b) % self.classes for a, b in zip(first.tolist(), offset.tolist(), strict=True)])
        share = (0.2 + 0.6 * torch.rand(count, generator=random)).to(self.device)
        return self._noise(random), hallucinated_texts(self.data.texts, first, second, share, self.config.model.text_length)


# ------------------------------------------------------------------------------------------------------------ evaluation


def curve_at(
    offsets: np.ndarray,
    seen_scores: np.ndarray,
    seen_labels: np.ndarray,
    unseen_scores: np.ndarray,
    unseen_labels: np.ndarray,
    seen_classes: int,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Accuracies on seen and on unseen images at each offset, and the area."""
    seen, unseen = [], []
    for offset in offsets:
        shift = np.zeros(seen_scores.shape[1])
        shift[seen_classes:] = offset
        seen.append(((seen_scores.astype(np.float64) + shift).argmax(1) == seen_labels).mean())
        unseen.append(((unseen_scores.astype(np.float64) + shift).argmax(1) == unseen_labels).mean())
    return np.array(seen), np.array(unseen), float(np.trapezoid(seen, unseen))


def published_offsets() -> np.ndarray:
    """The 400 offsets of the published code."""
    return np.arange(-2, 2, 0.01)


def vote(similarities: np.ndarray, owners: np.ndarray, neighbours: int, classes: int) -> np.ndarray:
    """The most frequent class among the nearest samples, image by image."""
    predicted = []
    for row in similarities:
        votes = [0] * classes
        for sample in np.argsort(-row)[:neighbours]:
            votes[owners[sample]] += 1
        predicted.append(votes.index(max(votes)))
    return np.array(predicted)


def sharma_mittal_limits(p: np.ndarray) -> dict[str, float]:
    """Limits of Sharma-Mittal between p (K,) and uniform in closed form: b -> 1 (Renyi of 1/2), and a, b -> 1 (KL)."""
    u = 1 / len(p)
    return {"renyi half": -2 * math.log(np.sqrt(p * u).sum()), "kl": float((p * np.log(p / u)).sum())}
