"""Samplers of processes in continuous time: ways to follow one differential equation back from noise to image.

With x_0 and eps as the network estimates them at each time, every process has the same probability-flow ODE (Song et al. 2021,
equation 13, in these terms):

    dx = x_0 d alpha + eps d sigma

A solver is a function (predict, path, x, normal, settings) -> x_0. `predict(x, level)` gives x_0 and eps, each (B, C, H, W),
`path` has the levels to visit, and `normal()` gives new noise. Since only alpha and sigma of a level count, a network of one
process is sampled as another one by visiting the levels of that one: x_t / sqrt(alpha^2 + sigma^2) is the same for both where
sigma / alpha is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from scipy.optimize import minimize_scalar

from tinyldm.config.networks import Kind, ProcessConfig, SchedulerConfig
from tinyldm.config.schema import SamplerSettings
from tinyldm.errors import UserError
from tinyldm.process.process import Process
from tinyldm.process.processes import make_process

CORRECTOR_SNR = 0.16  # signal-to-noise ratio of Langevin steps between predictor steps (Song et al. 2021, appendix G)
LANGEVIN_STEPS = 5  # at each level (Song & Ermon 2020, table 2)

Tensor = torch.Tensor


@dataclass(frozen=True)
class Level:
    """A place on the way.

    Attributes:
        alpha, sigma: of the process that is sampled.
        time: of the network's process.
        scale: the network's x_t is x times this.
    """

    alpha: float
    sigma: float
    time: float = 0.0
    scale: float = 1.0

    @property
    def ratio(self) -> float:
        """sigma / alpha."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """log alpha / sigma."""
        return -math.log(self.ratio) if self.sigma else math.inf


IMAGE = Level(1.0, 0.0)
Predict = Callable[[Tensor, Level], tuple[Tensor, Tensor]]
Normal = Callable[[], Tensor]


class Path:
    """The levels that a sampler visits.

    Args:
        process: the network's.
        sampled: the process whose times are visited; its levels beyond those of the network are cut off.
        count: how many levels before the image.
    """

    def __init__(self, process: Process, sampled: Process, count: int):
        self.process, self.sampled = process, sampled
        alpha, sigma = (part.flatten() for part in sampled.levels(sampled.grid(count), torch.float64))
        if sampled is process:
            times = process.grid(count)
            self.levels = [Level(*level) for level in zip(alpha.tolist(), sigma.tolist(), times.tolist(), strict=True)]
        else:
            low, high = process.ratio_ends()
            ratios = dict.fromkeys(min(max(ratio, low), high) for ratio in (sigma / alpha).tolist())  # each once
            self.levels = [self.at(ratio) for ratio in ratios]
        self.levels.append(IMAGE)

    def at(self, ratio: float) -> Level:
        """The level with this sigma / alpha."""
        wanted = torch.tensor([ratio], dtype=torch.float64)
        alpha, sigma = (float(part) for part in self.sampled.levels(self.sampled.time_of(wanted), torch.float64))
        if not math.isclose(sigma / alpha, ratio, rel_tol=1e-9):  # beyond the ends of the sampled process
            alpha, sigma = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        time = self.process.time_of(wanted)
        ours = [float(part) for part in self.process.levels(time, torch.float64)]
        return Level(alpha, sigma, float(time), math.hypot(*ours) / math.hypot(alpha, sigma))


def euler(predict: Predict, path: Path, x: Tensor, normal: Normal, settings: SamplerSettings) -> Tensor:
    """Euler's method, which is DDIM (Song et al. 2020, equation 12, with its eta). Its error is proportional to the step."""
    for now, after in pairwise(path.levels):
        x0, eps = predict(x, now)
        x = towards(x0, eps, now, after, settings.eta, normal)
    return x


def ancestral(predict: Predict, path: Path, x: Tensor, normal: Normal, settings: SamplerSettings) -> Tensor:
    """DDPM's sampler: each step draws from q(x_s | x_t, x_0) (Ho et al. 2020, equation 6)."""
    for now, after in pairwise(path.levels):
        x0, eps = predict(x, now)
        x = towards(x0, eps, now, after, 1.0, normal)
    return x


def heun(predict: Predict, path: Path, x: Tensor, normal: Normal, settings: SamplerSettings) -> Tensor:
    """Heun's method of second order, with EDM's churn (Karras et al. 2022, algorithm 2)."""
    extra, most = min(settings.churn / (len(path.levels) - 1), math.sqrt(2) - 1), path.process.ratio_ends()[1]
    for now, after in pairwise(path.levels):
        if extra and now.alpha:
            noisier = path.at(min(now.ratio * (1 + extra), most))
            added = noisier.alpha * math.sqrt(max(noisier.ratio**2 - now.ratio**2, 0.0))
            x, now = noisier.alpha / now.alpha * x + added * normal(), noisier
        x0, eps = predict(x, now)
        moved = after.alpha * x0 + after.sigma * eps
        if after.sigma:
            x0_after, eps_after = predict(moved, after)
            moved = x + (after.alpha - now.alpha) * (x0 + x0_after) / 2 + (after.sigma - now.sigma) * (eps + eps_after) / 2
        x = moved
    return x


def dpm_solver(predict: Predict, path: Path, x: Tensor, normal: Normal, settings: SamplerSettings) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): x_0 as a line in log SNR, through this level and the one before."""
    before: tuple[Tensor, float] | None = None
    for now, after in pairwise(path.levels):
        x0, _ = predict(x, now)
        step, line = after.half_log_snr - now.half_log_snr, x0
        if before is not None and after.sigma:
            line = x0 + step / (2 * before[1]) * (x0 - before[0])
        x = after.sigma / now.sigma * x - after.alpha * math.expm1(-step) * line
        before = x0, step
    return x


def unipc(predict: Predict, path: Path, x: Tensor, normal: Normal, settings: SamplerSettings) -> Tensor:
    """UniPC of order 2 (Zhao et al. 2023): DPM-Solver++(2M), whose result the next evaluation corrects. Third order."""
    start, steps, known = x, list[float](), list[Tensor]()
    for index, (now, after) in enumerate(pairwise(path.levels)):
        x0, _ = predict(x, now)
        if known:
            x = _corrected(start, x0, known, steps, path.levels[index - 1], now)
        start, step, line = x, after.half_log_snr - now.half_log_snr, x0
        if known and after.sigma:
            line = x0 + step / (2 * steps[-1]) * (x0 - known[-1])
        x = after.sigma / now.sigma * x - after.alpha * math.expm1(-step) * line
        known, steps = [*known[-1:], x0], [*steps[-1:], step]
    return x


def _corrected(start: Tensor, x0: Tensor, known: list[Tensor], steps: list[float], last: Level, now: Level) -> Tensor:
    """UniC: x at `now` again, from x at `last`, with x_0 of both (and of the level before) on a parabola."""
    h = -steps[-1]
    whole = math.expm1(h)
    plain = now.sigma / last.sigma * start - now.alpha * whole * known[-1]
    if len(known) == 1:
        return plain - now.alpha * whole * (x0 - known[-1]) / 2
    back = -steps[-2] / steps[-1]
    first = whole / h - 1
    b1, b2 = first / whole, 2 * (first / h - 0.5) / whole
    weight = (b1 - b2) / (1 - back)
    return plain - now.alpha * whole * (weight / back * (known[0] - known[1]) + (b1 - weight) * (x0 - known[1]))


def predictor_corrector(predict: Predict, path: Path, x: Tensor, normal: Normal, settings: SamplerSettings) -> Tensor:
    """Ancestral steps, and after each a Langevin step (Song et al. 2021, algorithms 1 to 3)."""
    for now, after in pairwise(path.levels):
        x0, eps = predict(x, now)
        x = towards(x0, eps, now, after, 1.0, normal)
        if after.sigma:
            _, eps = predict(x, after)
            size = 2 * CORRECTOR_SNR**2  # times the ratio of the norms of noise and eps, which is 1 in so many dimensions
            x = x + after.sigma * (math.sqrt(2 * size) * normal() - size * eps)
    return x


def annealed_langevin(predict: Predict, path: Path, x: Tensor, normal: Normal, settings: SamplerSettings) -> Tensor:
    """LANGEVIN_STEPS steps at each level, then the mean x_0 (Song & Ermon 2020, algorithm 1)."""
    size = langevin_size(path.levels[0].ratio / path.levels[-2].ratio, len(path.levels) - 1)
    for now in path.levels[:-1]:
        for _ in range(LANGEVIN_STEPS):
            _, eps = predict(x, now)
            x = x + now.sigma * (math.sqrt(2 * size) * normal() - size * eps)
    return predict(x, path.levels[-2])[0]


def langevin_size(span: float, levels: int) -> float:
    """The step size epsilon / sigma^2 that best keeps the spread of the noise (Song & Ermon 2020, technique 4).

    Args:
        span: the ratio of the first level to the last of `levels` geometric ones.
    """
    growth = span ** (1 / max(levels - 1, 1))

    def variance(size: float) -> float:
        """Of the noise after the steps at a level, in units of what it should be (equation 5)."""
        limit = 2 / (2 - size)
        return (1 - size) ** (2 * LANGEVIN_STEPS) * (growth**2 - limit) + limit

    return float(minimize_scalar(variance, bounds=(1e-4, 1.0), method="bounded").x)


def towards(x0: Tensor, eps: Tensor, now: Level, after: Level, eta: float, normal: Normal) -> Tensor:
    """x at the next level: alpha x_0 + sigma eps, with a part of eps replaced by new noise."""
    if not eta or not after.sigma:
        return after.alpha * x0 + after.sigma * eps
    kept = now.alpha / after.alpha
    new = eta * after.sigma / now.sigma * math.sqrt(now.sigma**2 - kept**2 * after.sigma**2)
    return after.alpha * x0 + math.sqrt(after.sigma**2 - new**2) * eps + new * normal()


SOLVERS: dict[str, Callable[[Predict, Path, Tensor, Normal, SamplerSettings], Tensor]] = {
    "ddim": euler,
    "ddpm": ancestral,
    "dpm-solver++": dpm_solver,
    "euler": euler,
    "heun": heun,
    "langevin": annealed_langevin,
    "predictor-corrector": predictor_corrector,
    "unipc": unipc,
}


@dataclass(frozen=True)
class Solver:
    """A sampler with the levels that it visits.

    Attributes:
        name: a key of SOLVERS.
        kind: the process whose times are visited.
        settings: eta and churn.
    """

    name: str
    kind: Kind
    path: Path
    settings: SamplerSettings

    @property
    def evaluations(self) -> int:
        """How often the network is called."""
        levels = len(self.path.levels) - 1
        twice = self.name in ("heun", "predictor-corrector")
        return LANGEVIN_STEPS * levels + 1 if self.name == "langevin" else 2 * levels - 1 if twice else levels

    def start(self, noise: Tensor) -> Tensor:
        """x at the first level, from standard normal noise of its shape."""
        return math.hypot(self.path.levels[0].alpha, self.path.levels[0].sigma) * noise

    def __call__(self, predict: Predict, x: Tensor, normal: Normal) -> Tensor:
        """x_0 (B, C, S, S) from x at the first level."""
        return SOLVERS[self.name](predict, self.path, x, normal, self.settings)


def make_solver(process: Process, settings: SamplerSettings) -> Solver:
    """The sampler that these settings ask for.

    Raises:
        UserError: for a sampler that cannot reverse the process, or settings that it does not have.
    """
    name, kind = settings.scheduler or process.deterministic, settings.process or process.kind
    if name == "langevin" and kind != "ve":
        raise UserError(f"langevin does not know the process {kind}: add --process ve, or choose another --scheduler")
    if settings.churn and name != "heun":
        raise UserError(f"churn only applies to heun, not {name}: remove it or use --scheduler heun")
    sampled = process if kind == process.kind else make_process(ProcessConfig(kind=kind), SchedulerConfig())
    return Solver(name, kind, Path(process, sampled, settings.num_inference_steps), settings)
