# %% [markdown]
# # Lab 7: features out of texts, and features of classes that do not exist
# A small world: classes have six traits, a text shows them in 30 numbers, an image feature in 16, with noise. GAZSL and CIZSL
# are written out here and held against zsl/, then trained from the same start on the same batches, and asked to recognise
# eight classes of which they saw texts only. The chapter is 7-hallucinated-features.md.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from labkit import Record, holm
from scipy.stats import ttest_1samp
from torch.nn import functional as F

from zsl import divergences, losses, metrics
from zsl.models import Critic, Generator, initialise

SEEN, UNSEEN, TRAITS, TEXT, SIZE, PER_CLASS, NOISE, HIDDEN, BATCH = 20, 8, 6, 30, 16, 60, 4, 64, 128
ITERATIONS, SEEDS, ORDERS = 120, 5, (0.4, 0.6)
record = Record("7-hallucinated-features")


def world(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts of length 1 (28, 30), and two sets of features (28, 60, 16): to train on (of seen classes) and to test on."""
    random = torch.Generator().manual_seed(seed)
    traits = torch.randn(SEEN + UNSEEN, TRAITS, generator=random)
    texts = traits @ torch.randn(TRAITS, TEXT, generator=random) + torch.randn(SEEN + UNSEEN, TEXT, generator=random)
    means = torch.tanh(traits @ torch.randn(TRAITS, SIZE, generator=random) / 2)  # not linear, so that mixtures of texts err
    train, test = (means[:, None] + 0.6 * torch.randn(SEEN + UNSEEN, PER_CLASS, SIZE, generator=random) for _ in range(2))
    return F.normalize(texts, dim=1), train, test


# %% The losses by hand
def gradient_penalty(critic: Critic, real: torch.Tensor, fake: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """E (|grad D(x^)| - 1)^2 (Gulrajani et al. 2017, equation 3)."""
    between = (mix[:, None] * real + (1 - mix[:, None]) * fake).requires_grad_()
    [gradient] = torch.autograd.grad(critic(between)[0].sum(), between, create_graph=True)
    return (gradient.norm(dim=1) - 1).square().mean()


def critic_loss(critic, real, fake, labels, mix) -> torch.Tensor:
    """GAZSL's: is it real, and of which class; both of real and of generated features."""
    (real_score, real_class), (fake_score, fake_class) = critic(real), critic(fake)
    classes = F.cross_entropy(real_class, labels) + F.cross_entropy(fake_class, labels)
    return fake_score.mean() - real_score.mean() + classes + 10 * gradient_penalty(critic, real, fake, mix)


def pivots(made: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The visual pivot: a class's mean generated feature, and its real mean."""
    return sum((made[labels == k].mean(0) - centroids[k]).norm() for k in labels.unique()) / len(centroids)


def hallucinated_texts(texts, first, second, share) -> torch.Tensor:
    """a t_1 + (1 - a) t_2 of two seen classes, of length 1."""
    return F.normalize(share[:, None] * texts[first] + (1 - share[:, None]) * texts[second], dim=1)


def sharma_mittal(p: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """Divergence (B,) of p (B, K) from the uniform distribution."""
    big = (p**a * (1 / p.shape[1]) ** (1 - a)).sum(1)
    return (big ** ((1 - b) / (1 - a)) - 1) / (b - 1)


# %% ... are those of zsl/
torch.manual_seed(0)
texts, train, test = world(0)
labels, centroids = torch.arange(SEEN).repeat_interleave(PER_CLASS), train[:SEEN].mean(1)
generator, critic = Generator(TEXT, TEXT, NOISE, HIDDEN, SIZE), Critic(SIZE, HIDDEN, SEEN)
rows, mix = torch.randint(len(labels), (BATCH,)), torch.rand(BATCH)
real, y, noise = train[:SEEN].flatten(0, 1)[rows], labels[rows], torch.randn(BATCH, NOISE)
made = generator(noise, texts[y]).detach()
before = critic.body(torch.cat([real, made]))
same = {"machine": 0.001}
ours, theirs = gradient_penalty(critic, real, made, mix), losses.gradient_penalty(critic, before, mix)
record.number("gradient_penalty", ours, theirs, 1e-5, **same)
ours, theirs = critic_loss(critic, real, made, y, mix), losses.critic_loss(critic, real, made, y, mix, 10)
record.number("critic_loss", ours, theirs, 1e-5, **same)
record.number("pivots", pivots(made, y, centroids), losses.visual_pivots(made, y, centroids, False), 1e-5, **same)
first, second, share = y, (y + 1 + torch.randint(SEEN - 1, (BATCH,))) % SEEN, 0.2 + 0.6 * torch.rand(BATCH)
mixed = hallucinated_texts(texts, first, second, share)
projected = generator.project(torch.cat([texts[:SEEN], torch.zeros(1, TEXT)]))
short = losses.hallucinate(projected, texts[:SEEN] @ texts[:SEEN].T, first, second, share, 1.0)
record.number("hallucination_difference", (generator.project(mixed) - short).abs().max(), 0, 1e-5)

logits = 3 * torch.randn(BATCH, SEEN, dtype=torch.float64)
p, u = logits.softmax(1), 1 / SEEN
for name, by_hand in {
    "sharma-mittal": sharma_mittal(p, *ORDERS),
    "tsallis": sharma_mittal(p, ORDERS[0], ORDERS[0]),
    "renyi": sharma_mittal(p, ORDERS[0], 1 - 1e-7),  # limits: of b at 1, and of a and b at 1
    "kl": -(u * (p / u).log()).sum(1),
    "bhattacharyya": -(p * u).sqrt().sum(1).log(),
}.items():
    value = divergences.corrected(name, logits, torch.tensor(ORDERS, dtype=torch.float64)).mean()
    record.number(f"divergence_{name.replace('-', '_')}", by_hand.mean(), value, 1e-5, **same)
certain = F.one_hot(torch.tensor([0]), SEEN).double()  # as far from uniform as can be
record.number("first_order", ORDERS[0])
record.number("second_order", ORDERS[1])
record.number("certain_renyi", sharma_mittal(certain, ORDERS[0], 1 - 1e-7), math.log(SEEN), 1e-5)
record.number("certain_tsallis", sharma_mittal(certain, ORDERS[0], ORDERS[0]), (1 - SEEN**-0.6) / 0.6, 1e-9)
limit = (p * (p / u).log()).sum(1).mean()
record.number("limit_kl", sharma_mittal(p, 1 - 1e-6, 1 - 1e-7).mean(), limit, 1e-4, **same)  # KL(p, u), not KL(u, p)


# %% Training: five steps of the critic, one of the generator (Zhu et al. 2018, algorithm 1)
def fit(seed: int, weight: float | None) -> tuple[Generator, Critic]:
    """weight: of the creativity loss; None: GAZSL, without hallucinations."""
    texts, train, _ = world(seed)
    features, centroids = train[:SEEN].flatten(0, 1), train[:SEEN].mean(1)
    random, extra = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(100 + seed)
    generator, critic = Generator(TEXT, TEXT, NOISE, HIDDEN, SIZE), Critic(SIZE, HIDDEN, SEEN)
    for network in (generator, critic):
        initialise(network, random)
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3, (0.5, 0.9)) for network in (generator, critic)]
    for step in range(6 * ITERATIONS):
        rows, noise = torch.randint(len(labels), (BATCH,), generator=random), torch.randn(BATCH, NOISE, generator=random)
        y, mix = labels[rows], torch.rand(BATCH, generator=random)
        made = generator(noise, texts[y])
        if step % 6 < 5:
            loss, optimizer = critic_loss(critic, features[rows], made.detach(), y, mix), optimizers[1]
        else:
            score, logits = critic(made)
            loss, optimizer = F.cross_entropy(logits, y) / 2 - score.mean() + pivots(made, y, centroids), optimizers[0]
            if weight is not None:
                y, other = torch.randint(SEEN, (2, BATCH), generator=extra)
                other = torch.where(other == y, (y + 1) % SEEN, other)
                share, noise = 0.2 + 0.6 * torch.rand(BATCH, generator=extra), torch.randn(BATCH, NOISE, generator=extra)
                score, logits = critic(generator(noise, hallucinated_texts(texts, y, other, share)))
                loss = loss - score.mean() + weight * sharma_mittal(logits.softmax(1), *ORDERS).mean()
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        optimizer.step()
    return generator, critic


# %% Measuring: the cosine to a class's mean of 60 generated features; the curve as an offset moves images to unseen classes
@torch.no_grad()
def measure(seed: int, generator: Generator, critic: Critic) -> tuple[dict[str, float], list[np.ndarray], torch.Tensor]:
    texts, train, test = world(seed)
    random = torch.Generator().manual_seed(200 + seed)
    means = generator(torch.randn(28 * 60, NOISE, generator=random), texts.repeat_interleave(60, 0)).view(28, 60, SIZE).mean(1)
    scores = F.normalize(test, dim=2) @ F.normalize(means, dim=1).T  # (28, 60, 28)
    truth = torch.arange(28)[:, None].expand(-1, PER_CLASS)
    top1 = (scores[SEEN:, :, SEEN:].argmax(2) + SEEN == truth[SEEN:]).float().mean().item()
    shifted = [(scores + offset * (torch.arange(28) >= SEEN)).argmax(2) == truth for offset in torch.arange(-2, 2, 0.002)]
    curve = [np.array([right[part].float().mean() for right in shifted]) for part in (slice(SEEN), slice(SEEN, None))]
    sides = [x[part].flatten(0, 1).numpy() for part in (slice(SEEN), slice(SEEN, None)) for x in (scores, truth)]
    exact = metrics.seen_unseen_curve(*sides, SEEN)
    area = float(np.trapezoid(curve[0], curve[1]))
    assert abs(area - exact.area) < 0.003, (area, exact.area)
    pairs = torch.combinations(torch.arange(SEEN))
    mixed = hallucinated_texts(texts, pairs[:, 0], pairs[:, 1], torch.full((len(pairs),), 0.5))
    made = generator(torch.randn(len(pairs), NOISE, generator=random), mixed)
    nearest = torch.cdist(made, train[:SEEN].mean(1)).min(1).values.mean().item()
    entropy = torch.distributions.Categorical(logits=critic(made)[1]).entropy().mean().item()
    return {"top1": 100 * top1, "auc": 100 * area, "entropy": entropy, "nearest": nearest}, curve, made


settings = {"gazsl": None, "cizsl_0": 0.0, "cizsl_1": 1.0, "cizsl_10": 10.0}
found = {name: [measure(seed, *fit(seed, weight)) for seed in range(SEEDS)] for name, weight in settings.items()}
means, ps = {}, {}
for name, of_seeds in found.items():
    for figure, wide in (("top1", 0.5), ("auc", 0.5), ("entropy", 0.02), ("nearest", 0.02)):
        means[name, figure] = np.mean([one[0][figure] for one in of_seeds])
        record.number(f"{name}_{figure}", means[name, figure], machine=wide)
    for figure in ("top1", "auc") if name != "gazsl" else ():
        change = [one[0][figure] - other[0][figure] for one, other in zip(of_seeds, found["gazsl"], strict=True)]
        record.number(f"{name}_gain_{figure}", np.mean(change), machine=0.5)
        ps[f"{name}_gain_{figure}_p"] = ttest_1samp(change, 0).pvalue
for name, p in zip(ps, holm(list(ps.values())), strict=True):
    record.number(name, p, machine=p / 2)
area, entropy = ([means[name, figure] for name in settings] for figure in ("auc", "entropy"))  # what the chapter says of these:
assert area[1] < area[0] and ps["cizsl_0_gain_auc_p"] < 0.05 / len(ps)  # w = 0 costs
assert abs(area[2] - area[1]) < 2 and abs(entropy[2] - entropy[1]) < 0.1  # w = 1 changes little of that
assert area[3] < area[2] / 2 and entropy[0] < entropy[2] < entropy[3] - 1  # w = 10 ruins it, and the verdict is near uniform

# %%
left, middle, right = (drawing := plt.figure(figsize=(9, 6.6), layout="constrained")).subplot_mosaic("LM;LR").values()
names = {"gazsl": "GAZSL", "cizsl_0": "CIZSL, w = 0", "cizsl_1": "CIZSL, w = 1", "cizsl_10": "CIZSL, w = 10"}
centre = train[:SEEN].mean((0, 1))
_, _, axes = torch.linalg.svd(train[:SEEN].mean(1) - centre, full_matrices=False)
shown = [(train[:SEEN].flatten(0, 1), "0.85", "seen"), (test[SEEN:].flatten(0, 1), "0.5", "unseen")]
for name, color in (("gazsl", "C0"), ("cizsl_1", "C2"), ("cizsl_10", "C3")):
    shown.append((found[name][0][2], color, f"hallucinated, {names[name]}"))
for x, color, label in shown:
    left.scatter(*((x - centre) @ axes[:2].T).T, s=3, color=color, label=label)
left.set(xlabel="first direction", ylabel="second direction", title="Large weight: all in the middle")
left.legend(markerscale=3)
for name, label in names.items():
    middle.plot(100 * found[name][0][1][1], 100 * found[name][0][1][0], label=label)
    right.plot([one[0]["auc"] for one in found[name]], "o-", label=label)
middle.set(xlabel="unseen images right, %", ylabel="seen images right, %", title="GAZSL's curve is the outermost")
right.set(xlabel="world", ylabel="area under it, %", xticks=range(SEEDS), title="So it is in each of the worlds")
middle.legend()
record.figure(drawing)
record.save()
