"""Speed of zsl/: each part compared with a plain implementation, and an iteration compared with its matrix products.

    python -m benchmarks.zero_shot                      # the published sizes of CIZSL on CUB easy: about 2 GB of memory
    python -m benchmarks.zero_shot --small true         # one second, to check that it runs

Both implementations draw the same random numbers and compute the same weights (tests/zsl/test_game.py).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import zero_shot_plain
from zsl import losses, metrics
from zsl.config import DataConfig, ModelConfig, Train, TrainConfig, parse_method
from zsl.game import Game, TrainingSet


@dataclass
class Sizes:
    """Sizes: images per batch, terms, features, layers, seen and unseen classes, training and test images."""

    batch: int = 1000
    terms: int = 7551
    features: int = 3584
    hidden: int = 4086
    text: int = 1000
    noise: int = 100
    seen: int = 150
    unseen: int = 50
    train: int = 8855
    test: int = 2933


SMALL = Sizes(32, 60, 24, 20, 10, 8, 9, 4, 80, 30)


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call, after one call that is not counted."""
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def products(s: Sizes, critic_steps: int = 5) -> list[tuple[str, int, int, int, int]]:
    """The matrix products (m x k) (k x n) in an iteration of CIZSL, as (purpose, count, m, k, n).

    A linear layer needs one product forward, one for the gradient of its weights, and one for the gradient of its input if that
    is needed. A critic step has the fake features (forward only), the body on real and fake features (no gradient of its
    input), W^T (v * active) of the penalty with both gradients, and the two heads as one. The generator step has B features of
    real texts and B of hallucinated ones, forward and backward through generator and critic, without gradients of the critic's
    weights. Interpolated features and hallucinated texts need no products, and texts are projected once per class.
    """
    b, two, k, c = s.batch, 2 * s.batch, s.seen + 1, critic_steps
    return [
        ("texts reduced: twice forward, gradient of the weights", 3, k, s.terms, s.text),
        ("reduced texts into the hidden layer", 4, k, s.text, s.hidden),
        ("noise into the hidden layer, critic steps", c, b, s.noise, s.hidden),
        ("noise into the hidden layer, generator step", 2, two, s.noise, s.hidden),
        ("fake features, critic steps", c, b, s.hidden, s.features),
        ("body: forward, gradient of the weights", 2 * c, two, s.features, s.hidden),
        ("penalty: forward, both gradients", 3 * c, b, s.hidden, s.features),
        ("heads: forward, both gradients", 3 * c, two, s.hidden, k),
        ("generated features: forward, both gradients", 3, two, s.hidden, s.features),
        ("body, generator step: forward, gradient of the input", 2, two, s.features, s.hidden),
        ("heads, generator step: forward, gradient of the input", 2, two, s.hidden, k),
    ]


def make(kind: type[Game], s: Sizes) -> Game:
    """A CIZSL game with Sharma-Mittal on random data."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(s.train) % s.seen
    texts = torch.rand(s.seen, s.terms, generator=random).pow(20)
    data = TrainingSet(torch.randn(s.train, s.features, generator=random), labels, texts)
    model = ModelConfig(hidden_size=s.hidden, text_size=s.text, noise_size=s.noise)
    config = Train("x", DataConfig("x"), model=model, train=TrainConfig(batch_size=s.batch))
    return kind(parse_method("cizsl"), 0.1, config, 0, data)


def parts(s: Sizes, repeats: int) -> list[tuple[str, float, float]]:
    """(part, seconds of the plain implementation, seconds of ours)."""
    fast, random = make(Game, s), torch.Generator().manual_seed(1)
    rows, labels = fast._batch(0)
    noise, real = fast._noise(random), fast.data.features[rows]
    generated = torch.randn(s.batch, s.features, generator=random, requires_grad=True)
    mix = torch.rand(s.batch, generator=random)
    timings = []

    def curve() -> None:
        scores = np.random.default_rng(0).normal(size=(s.train + s.test, s.seen + s.unseen)).astype(np.float32)
        seen_labels, unseen_labels = np.arange(s.train) % s.seen, s.seen + np.arange(s.test) % s.unseen
        args = (scores[: s.train], seen_labels, scores[s.train :], unseen_labels, s.seen)
        plain = best_of(lambda: zero_shot_plain.curve_at(zero_shot_plain.published_offsets(), *args), 1)
        timings.append(
            ("seen-unseen curve, 400 offsets -> exact", plain, best_of(lambda: metrics.seen_unseen_curve(*args), repeats))
        )

    def pivots() -> None:
        centroids = fast.data.centroids
        pair = [
            best_of(lambda pivot=pivot: torch.autograd.grad(pivot(generated, labels, centroids, False), generated), repeats)
            for pivot in (zero_shot_plain.visual_pivots, losses.visual_pivots)
        ]
        timings.append(("pivots with their gradient, class loop -> scatter-mean", *pair))

    def texts() -> None:
        generator, every = fast.generator, fast.data.texts
        with torch.no_grad():
            plain = best_of(lambda: generator(noise, every[labels]), repeats)
            ours = best_of(lambda: generator.from_projected(noise, generator.project(every)[labels]), repeats)
        timings.append(("generated features, text per sample -> text per class", plain, ours))

    def hallucination() -> None:
        generator, every, length = fast.generator, fast.data.texts, 1.0
        other = (labels + 1) % s.seen
        with torch.no_grad():
            projected = generator.project(fast.with_zero)
            plain = best_of(
                lambda: generator.project(zero_shot_plain.hallucinated_texts(every, labels, other, mix, length)), repeats
            )
            ours = best_of(lambda: losses.hallucinate(projected, fast.gram, labels, other, mix, length), repeats)
        timings.append(("hallucinated texts, projected -> mixed projections", plain, ours))

    def penalty() -> None:
        learned = (fast.critic.body.weight, fast.critic.critic.weight)

        def plain() -> None:
            torch.autograd.grad(zero_shot_plain.gradient_penalty(fast.critic, real, generated.detach(), mix), learned)

        with torch.no_grad():
            before = fast.critic.body(torch.cat([real, generated]))  # already known from the forward pass of the critic
        ours = best_of(lambda: torch.autograd.grad(losses.gradient_penalty(fast.critic, before, mix), learned), repeats)
        timings.append(("gradient penalty with its gradient, autograd twice -> closed form", best_of(plain, repeats), ours))

    def vote() -> None:
        similarities = np.random.default_rng(0).normal(size=(s.test, 60 * s.unseen)).astype(np.float32)
        owners = np.repeat(np.arange(s.unseen), 60)
        plain = best_of(lambda: zero_shot_plain.vote(similarities, owners, 20, s.unseen), 1)
        timings.append(
            ("vote of 20 neighbours", plain, best_of(lambda: metrics.vote(similarities, owners, 20, s.unseen), repeats))
        )

    for part in (curve, pivots, texts, hallucination, penalty, vote):
        part()
    return timings


def iterations(s: Sizes, repeats: int) -> tuple[float, float]:
    """Seconds of an iteration in the plain implementation and in ours."""
    seconds = []
    for kind in (zero_shot_plain.PlainGame, Game):
        game = make(kind, s)
        seconds.append(best_of(lambda game=game: game.iterate(0), repeats))
        del game
    return seconds[0], seconds[1]


def main(small: bool = False, repeats: int = 3) -> None:
    """Print the table.

    Args:
        small: use tiny sizes, to check that it runs.
        repeats: number of calls, of which the fastest counts.
    """
    s = SMALL if small else Sizes()
    print(f"{s}\n{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"{'part':68s} {'plain':>10s} {'ours':>10s}  ratio")
    for name, plain, ours in parts(s, repeats):
        print(f"{name:68s} {1e3 * plain:7.1f} ms {1e3 * ours:7.1f} ms  {plain / ours:.1f}", flush=True)
    plain, ours = iterations(s, repeats)
    print(f"{'an iteration of CIZSL':68s} {1e3 * plain:7.1f} ms {1e3 * ours:7.1f} ms  {plain / ours:.2f}\n")

    print(f"{'matrix products of the iteration':56s} times      GFLOP   alone")
    total, bound = 0.0, 0.0
    for name, times, m, k, n in products(s):
        a, b = torch.randn(m, k), torch.randn(k, n)
        alone = times * best_of(lambda a=a, b=b: a @ b, repeats)
        work = 2e-9 * times * m * k * n
        total, bound = total + work, bound + alone
        print(f"{name:56s} {times:5d} {work:10.2f} {1e3 * alone:7.1f} ms")
    print(f"{'all':56s}       {total:10.2f} {1e3 * bound:7.1f} ms, {total / bound:.0f} GFLOP/s")
    print(f"outside the products: {100 * (ours - bound) / ours:.1f}% of an iteration")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False, prog="python -m benchmarks.zero_shot")
