"""What the labs share: the distribution that they all use, a distance, and the record of their numbers and figures."""

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import labstyle
import matplotlib
import matplotlib.pyplot as plt
import torch
from PIL import Image

if "ipykernel" not in sys.modules:  # a notebook shows figures its own way
    matplotlib.use("Agg")
labstyle.use()
torch.set_num_threads(1)  # one core, and small tensors are slower with more

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1]))  # for the project's own code, from wherever the lab is run
OUT = Path(os.environ.get("THEORY_OUT", HERE))  # numbers/ and figures/ are written here


@dataclass(frozen=True)
class Mixture:
    """A mixture of normals with diagonal covariances; noised, it stays one, so that all of its scores are known.

    Attributes:
        shares: (K,), their sum is 1.
        means: (K, D).
        variances: (K, D).
    """

    shares: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor

    def noised(self, scale: float, std: float) -> "Mixture":
        """The distribution of scale x + std eps."""
        return Mixture(self.shares, scale * self.means, scale**2 * self.variances + std**2)

    def joint(self, x: torch.Tensor) -> torch.Tensor:
        """log p(component, x): (B, K) of x (B, D)."""
        squares = (x[:, None] - self.means).square() / self.variances
        return self.shares.log() - 0.5 * (squares + (2 * math.pi * self.variances).log()).sum(-1)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """(B,) of x (B, D)."""
        return self.joint(x).logsumexp(1)

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """grad log p(x): (B, D), the components' scores weighted by p(component | x)."""
        pulls = (self.means - x[:, None]) / self.variances
        return (self.joint(x).softmax(1)[..., None] * pulls).sum(1)

    def estimates(
        self, x: torch.Tensor, scale: float | torch.Tensor, std: float | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """E[x_0 | x] and E[eps | x], (B, D) each, of x = scale x_0 + std eps (B, D). scale, std: numbers, or of B elements.

        Given the component, x_0 and x are jointly normal: a linear regression. Unlike Tweedie's formula it holds at scale 0."""
        scale, std = (torch.as_tensor(part, dtype=x.dtype).view(-1, 1, 1) for part in (scale, std))
        noised = self.noised(scale, std)
        each = self.means + scale * self.variances / noised.variances * (x[:, None] - noised.means)
        x_0 = (noised.joint(x).softmax(1)[..., None] * each).sum(1)
        return x_0, (x - scale[:, 0] * x_0) / std[:, 0]

    def sample(self, count: int) -> torch.Tensor:
        """(count, D)."""
        which = torch.multinomial(self.shares, count, replacement=True)
        return torch.normal(self.means[which], self.variances[which].sqrt())


def three_blobs() -> Mixture:
    """The distribution of the labs: three blobs in [-1, 1]^2, of unlike shares and widths."""
    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[-0.55, -0.45], [0.5, -0.15], [0.0, 0.6]], dtype=torch.float64),
        torch.tensor([[0.10, 0.14], [0.12, 0.06], [0.05, 0.05]], dtype=torch.float64).square(),
    )


def sliced_distance(x: torch.Tensor, mixture: Mixture, lines: int = 32) -> float:
    """Sliced Wasserstein-2 distance of a sample (N, 2) from a mixture (Rabin et al. 2011): on each line, the sorted sample
    against the mixture's quantiles, which need no second sample since a projected mixture is a mixture of 1-D normals."""
    total = 0.0
    levels = (torch.arange(len(x), dtype=x.dtype) + 0.5) / len(x)
    grid = torch.linspace(-3, 3, 20_001, dtype=x.dtype)
    for angle in torch.arange(lines) * math.pi / lines:
        line = torch.stack([angle.cos(), angle.sin()]).to(x.dtype)
        stds = (mixture.variances @ line.square()).sqrt()
        cdf = torch.special.ndtr((grid[:, None] - mixture.means @ line) / stds) @ mixture.shares
        quantiles = grid[torch.searchsorted(cdf, levels).clamp(max=len(grid) - 1)]
        total += ((x @ line).sort().values - quantiles).square().mean().item()
    return (total / lines) ** 0.5


def holm(ps: list[float]) -> list[float]:
    """Holm's (1979) p of each of several tests: the k-th smallest times the number of those that are not smaller."""
    order, found, worst = sorted(range(len(ps)), key=lambda i: ps[i]), [0.0] * len(ps), 0.0
    for k, i in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - k) * ps[i]))
        found[i] = worst
    return found


class Record:
    """The numbers and the figure of a chapter's lab: numbers/CHAPTER.json and figures/CHAPTER.png."""

    def __init__(self, chapter: str):
        self.chapter, self.numbers, self.start, self.waiting = chapter, {}, time.process_time(), None
        print(f"{'number':34} {'found':>12} {'expected':>12}")

    def number(
        self, name: str, value: float, exact: float | None = None, within: float | None = None, machine: float = 0.0
    ) -> float:
        """Print a number and keep it for the chapter.

        Args:
            exact: the closed form or other implementation that stands beside it; the number must lie `within` of it.
            machine: how far another processor's number may lie from this one's (trained networks differ a little).
                Less than what the prose says of it: a tolerance as large as the number checks nothing.
        """
        value, exact = (None if each is None else torch.as_tensor(each, dtype=torch.float64).item() for each in (value, exact))
        print(f"{name:34} {value:12.6g} {'' if exact is None else format(exact, '12.6g')}", flush=True)
        if exact is not None:
            assert abs(value - exact) <= within, f"{name} is {value}, not within {within} of {exact}"
        self.numbers[name] = {"value": float(f"{value:.6g}"), "machine": float(f"{machine:.2g}")}
        return value

    def waits(self, file: Path, command: str) -> bool:
        """Whether the results of a long run are missing, on which the rest of the lab reports; if so, say it."""
        if not file.exists():
            self.waiting = f"{file.relative_to(HERE.parents[1])} is not there yet; it is written by: {command}"
            print(self.waiting)
        return self.waiting is not None

    def figure(self, figure: matplotlib.figure.Figure, name: str = "") -> None:
        """Save as a PNG with white axes, around which the page shows through (labstyle.py)."""
        path = OUT / "figures" / f"{self.chapter}{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=labstyle.DOTS_PER_INCH, facecolor="none", bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        if path.stat().st_size > 100_000:  # pictures in it: 256 colours are enough
            Image.open(path).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)

    def save(self) -> None:
        """Write the numbers, once all of the lab has been found right."""
        path = OUT / "numbers" / f"{self.chapter}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"  {json.dumps(name)}: {json.dumps(number)}" for name, number in self.numbers.items()]
        if self.waiting:
            lines.append(f'  "waits": {json.dumps(self.waiting)}')
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"{self.chapter}: {len(self.numbers)} numbers, {time.process_time() - self.start:.1f} s of one core")
