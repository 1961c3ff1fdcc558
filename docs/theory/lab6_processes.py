# %% [markdown]
# # Lab 6, second part: the product's six processes
# lab6_sde.py writes three SDEs by hand. Here the product's own processes, samplers, likelihood and losses work on the same
# mixture, with a network that makes no error (exact_model.py). The chapter is 6-sde.md.

# %%
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from exact_model import KINDS, SIGMA_MAX, exact_model, exact_process
from labkit import Mixture, Record, sliced_distance, three_blobs

from tinyldm.config.schema import SamplerSettings
from tinyldm.diffusion.objective import loss_of
from tinyldm.drawing import likelihood
from tinyldm.drawing.sampling import denoise
from tinyldm.process.solvers import SOLVERS, Level, Path
from tinyldm.randomness import Draw

ORDERS = {"euler": 1, "heun": 2, "dpm-solver++": 2, "unipc": 3}  # that the methods promise
record, data, plain = Record("6-sde-processes"), three_blobs(), SamplerSettings()
torch.manual_seed(0)


def number(*name: str, value: float, exact: float | None = None, within: float | None = None, machine: float = 0.0) -> None:
    """Keep a number whose name has a process or a sampler in it."""
    record.number("_".join(name).replace("-", "_").replace("+", ""), value, exact, within, machine)


def even(count: int, columns: int) -> torch.Tensor:
    """Evenly spread points (count, columns) of the unit cube."""
    return torch.quasirandom.SobolEngine(columns, scramble=True, seed=0).draw(count, dtype=torch.float64)


def predict(x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 and eps, as the solvers ask for them."""
    return data.estimates(x, level.alpha, level.sigma)


# %% f and g^2 of the product's levels are those of the chapter's table, and flow's velocity is that of a probability flow
def sde(kind: str, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """f = d log alpha / dt, g^2 = d sigma^2 / dt - 2 f sigma^2, alpha and sigma."""
    t = t.clone().requires_grad_()
    alpha, sigma = exact_process(kind).law.levels(t)
    f, growth = (torch.autograd.grad(y.sum(), t, retain_graph=True)[0] for y in (alpha.log() + 0 * t, sigma.square()))
    return tuple(part.detach() for part in (f, growth - 2 * f * sigma.square(), alpha, sigma))


t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
beta, decay = 0.1 + 19.9 * t, (-0.1 * t - 9.95 * t**2).exp()  # e^-B
table = {"ve": (0 * t, 2 * math.log(SIGMA_MAX / 0.01) * sde("ve", t)[3].square()), "vp-continuous": (-beta / 2, beta)}
table |= {"subvp": (-beta / 2, beta * (1 - decay**2)), "flow": (-1 / (1 - t), 2 * t / (1 - t))}
off = [(ours - by_hand) / (1 + by_hand) for kind in table for ours, by_hand in zip(sde(kind, t), table[kind], strict=False)]
number("sde_difference", value=torch.stack(off).abs().max(), exact=0, within=1e-12)
x, (f, squared, alpha, sigma) = torch.randn(500, 2, dtype=torch.float64), sde("flow", t[2:3])
velocity = exact_model("flow", data).denoiser(x[..., None, None], t[2:3]).flatten(1)
by_score = f * x - squared / 2 * data.noised(alpha, sigma).score(x)
number("velocity_difference", value=(velocity - by_score).abs().max(), exact=0, within=1e-12, machine=1e-14)


# %% Ten evaluations of the network
def distance(kind: str, name: str, steps: int) -> float:
    """From the true distribution, of what the product draws with --process, from evenly spread starts."""
    settings = SamplerSettings(scheduler=name, num_inference_steps=steps, process=kind)
    return sliced_distance(denoise(exact_model(kind, data), starts[..., None, None], settings).flatten(1), data)


starts = torch.special.ndtri(even(8192, 2))
for kind in KINDS:
    for name in ORDERS:  # Heun's method evaluates the network 2 N - 1 times
        number(kind, name, "distance", value=distance(kind, name, 5 if name == "heun" else 10), machine=0.0005)
for kind, name, steps in (("ve", "euler", 5), ("edm", "euler", 5), ("edm", "heun", 18)):  # 18 steps: Karras et al. 2022
    number(kind, name, f"distance_{steps}", value=distance(kind, name, steps), machine=0.0005)


# %% On the same ratios sigma / alpha: the orders of convergence, and what the process changes
def follow(kind: str, name: str, steps: int, ends: tuple[float, float]) -> torch.Tensor:
    """x / sqrt(alpha^2 + sigma^2) at the last ratio, from `few` at the first, in equal steps of log SNR."""
    path = Path(process := exact_process(kind), process, 2)
    path.levels = [path.at(ratio) for ratio in torch.linspace(*map(math.log, ends), steps + 1).exp().tolist()]
    sizes = [math.hypot(level.alpha, level.sigma) for level in path.levels]
    return SOLVERS[name](predict, path, sizes[0] * few, lambda: None, plain) / sizes[-1]


few, ends = starts[:256], (20.0, 0.05)
angles = tuple(math.atan(ratio) for ratio in ends)
truth = likelihood.follow(exact_model("flow", data), few[..., None, None], angles, 1e-10).z.flatten(1)
for name, order in ORDERS.items():
    counts = (256, 512) if order < 3 else (32, 64)  # with more steps UniPC's errors are near those of `truth`
    errors = [[(follow(kind, name, steps, ends) - truth).norm(dim=1).median() for steps in counts] for kind in KINDS]
    orders = [math.log2(before / after) for before, after in errors]
    number(name, "order_least", value=min(orders), exact=order, within=0.1, machine=0.002)
    number(name, "order_most", value=max(orders), exact=order, within=0.1, machine=0.002)
    drawn = torch.stack([follow(kind, name, 10, ends) for kind in KINDS])
    number(name, "spread", value=(spread := (drawn - drawn[0]).abs().max().item()), machine=0.001 if name == "heun" else 3e-14)
    assert spread < 1e-12 or name == "heun", "only Heun's steps depend on the process"
images = torch.stack([likelihood.decode(exact_model(kind, data), few[..., None, None], 1e-6).flatten(1) for kind in KINDS])
number("map_difference", value=(images - images[-1]).norm(dim=2).median(1).values.max(), exact=0, within=0.05, machine=0.0005)

# %% log p
x, calls, means = data.sample(200), [], []
for kind in KINDS:
    least, _ = exact_process(kind).ratio_ends()
    found, evaluations = likelihood.log_density(exact_model(kind, data), x[..., None, None], 1e-5, likelihood.exact_divergence)
    calls.append(evaluations)
    means.append((found - data.log_prob(x)).mean().abs().item())
    number(kind, "log_p_largest", value=(found - data.log_prob(x)).abs().max(), exact=0, within=0.2, machine=0.002)
    noised = data.noised(1.0, least).log_prob(x)  # what x stands for
    number(kind, "log_p_largest_noised", value=(found - noised).abs().max(), exact=0, within=0.05, machine=0.002)
number("log_p_mean_error", value=max(means), exact=0, within=0.003, machine=0.0002)
number("log_p_calls_least", value=min(calls), machine=12)
number("log_p_calls_most", value=max(calls), machine=12)


# %% Losses: one error of eps as a function of log SNR, with weights
def normal(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """The density of a normal distribution."""
    return torch.distributions.Normal(mean, std).log_prob(x).exp()


points = even(2**16, 5)
which = torch.bucketize(points[:, 4].contiguous(), data.shares.cumsum(0)[:-1])
noise = torch.special.ndtri(points[:, 2:4])
x_0 = data.means[which] + data.variances[which].sqrt() * torch.special.ndtri(points[:, :2])
models = {"narrow": Mixture(data.shares, data.means, 0.4 * data.variances)}  # the wrong models of lab6_sde.py
models["shares"] = Mixture(torch.tensor([0.15, 0.3, 0.55], dtype=torch.float64), data.means, data.variances)
losses = {  # process, diffusion.loss, and the weight of half the squared error of eps
    "flow": (exact_process("flow"), "simple", lambda log_snr: (-log_snr / 2).exp()),
    "edm": (exact_process("edm"), "simple", lambda log_snr: 2 * normal(log_snr, 2.4, 2.4) * (1 + 4 * (-log_snr).exp())),
    "likelihood": (exact_process("vp-continuous", times="log-snr"), "likelihood", torch.ones_like),
}
log_snr = torch.linspace(-14, 14, 281, dtype=torch.float64)
for name, wrong in models.items():
    curve = []
    for alpha, sigma in zip(log_snr.sigmoid().sqrt().tolist(), (-log_snr).sigmoid().sqrt().tolist(), strict=True):
        x = alpha * x_0[:4096] + sigma * noise[:4096]
        eps, wrong_eps = (mixture.estimates(x, alpha, sigma)[1] for mixture in (data, wrong))
        curve.append((wrong_eps - eps).square().sum(1).mean())
    kl = (data.log_prob(x_0) - wrong.log_prob(x_0)).mean()
    for loss, (process, kind, weight) in losses.items():
        integral = torch.trapezoid(weight(log_snr) * torch.stack(curve) / 2, log_snr)
        times = process.draw_times(len(x_0), Draw(0, 0, 0))
        alpha, sigma = (part.flatten(1) for part in process.levels(times, torch.float64))
        x = alpha * x_0 + sigma * noise
        right, other = ([part[..., None, None] for part in m.estimates(x, alpha, sigma)] for m in (data, wrong))
        predicted = process.target(*other, times)  # the product's loss, with the best prediction as its target
        found = 2 * loss_of(process, predicted, right[0], x[..., None, None], right[1], times, None, kind).mean()
        number(loss, name, value=found, exact=integral, within=0.03 * integral, machine=0.01 * integral)
        number(loss, name, "integral", value=integral, machine=0.01 * integral)
    number("kl_product", name, value=kl, exact=found, within=0.02 * kl)


# %% Paths of one coordinate: forward by the SDE, backward by the product's samplers from the same noises
def forward(kind: str, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """x at the times: each step draws from q(x_s | x_t), which is normal."""
    alpha, sigma = (part.flatten().tolist() for part in exact_process(kind).levels(times, torch.float64))
    states = [alpha[0] * x + sigma[0] * torch.randn_like(x)]
    for (a, b), (a_after, b_after) in pairwise(zip(alpha, sigma, strict=True)):
        kept = a_after / a
        states.append(kept * states[-1] + (b_after**2 - (kept * b) ** 2) ** 0.5 * torch.randn_like(x))
    return torch.stack(states)


def backward(kind: str, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The times that a sampler visits, and x there."""
    path, states = Path(process := exact_process(kind), process, 400), []

    def watched(x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        states.append(x)
        return predict(x, level)

    end = SOLVERS[name](watched, path, x, lambda: torch.randn_like(x), plain)
    return torch.tensor([level.time for level in path.levels]), torch.stack([*states, end])


figure, axes = plt.subplots(2, 3, figsize=(9, 5.4), layout="constrained", sharex=True, sharey=True)
marginal, edge = Mixture(data.shares, data.means[:, :1], data.variances[:, :1]), 2.6  # of x_1
grid, firsts = torch.linspace(-edge, edge, 261).double()[:, None], data.means.repeat(2, 1) + 0.1 * torch.randn(6, 2)
times = torch.linspace(1e-3, 0.995, 400, dtype=torch.float64)
for row, kind, title in zip(axes, ("vp-continuous", "flow"), ("VP", "flow"), strict=True):
    levels = zip(*(part.flatten().tolist() for part in exact_process(kind).levels(times, torch.float64)), strict=True)
    density = torch.stack([marginal.noised(*level).log_prob(grid).exp() for level in levels], 1)
    drawn = {"forward SDE": (times, forward(kind, firsts, times), 0)}  # and where the data are
    drawn |= {
        "reverse SDE": (*backward(kind, "ddpm", starts[:6]), -1),
        "ODE": (*backward(kind, "dpm-solver++", starts[:10]), -1),
    }
    for axis, (way, (when, paths, end)) in zip(row, drawn.items(), strict=True):
        shade, extent = density / density.max(0).values, (0, 1, -edge, edge)
        axis.imshow(shade, extent=extent, origin="lower", aspect="auto", cmap="Greys", vmax=2)  # half as dark as it could be
        for path, blob in zip(paths[..., 0].T, torch.cdist(paths[end], data.means).argmin(1).tolist(), strict=True):
            axis.plot(when, path, color=f"C{blob}", lw=0.8)
        axis.set(title=f"{title}, {way}", xlabel="t (0: data, 1: noise)", ylabel="$x_1$", ylim=(-edge, edge))
        axis.label_outer()
figure.suptitle("Each row: other paths, the same density (grey) at each t")
record.figure(figure)
record.save()
