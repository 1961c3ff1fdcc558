# %% [markdown]
# # Lab 6: scores, Langevin dynamics, three SDEs and their ODEs
# On the mixture of lab 1 (not rounded) the score of each noised distribution is known, so that what a sampler gets wrong is
# its own doing. Time runs from 0 (data) to 1 (noise). The chapter is 6-sde.md.

# %%
import math
from collections.abc import Callable
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from diffusers import ScoreSdeVeScheduler
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from labkit import Mixture, Record, sliced_distance, three_blobs

COUNT, SIGMA_MIN, SIGMA_MAX, BETA_MIN, BETA_MAX = 5000, 0.01, 25.0, 0.1, 20.0
GROWTH, PRIOR = math.log(SIGMA_MAX / SIGMA_MIN), {"ve": SIGMA_MAX, "vp": 1.0, "subvp": 1.0}
record, data = Record("6-sde"), three_blobs()
torch.manual_seed(0)


# %% Three SDEs dx = f x dt + g dw
def sde(name: str, t: float) -> tuple[float, float, float, float]:
    """f and g at time t (Song et al. 2021, equations 9, 11 and 12), and what they make of x_0: scale x_0 + std eps."""
    if name == "ve":
        sigma = SIGMA_MIN * math.exp(GROWTH * t)
        return 0.0, sigma * (2 * GROWTH) ** 0.5, 1.0, (sigma**2 - SIGMA_MIN**2) ** 0.5
    beta = BETA_MIN + t * (BETA_MAX - BETA_MIN)
    decay = math.exp(-BETA_MIN * t - 0.5 * t**2 * (BETA_MAX - BETA_MIN))  # abar in continuous time
    if name == "vp":
        return -beta / 2, beta**0.5, decay**0.5, (1 - decay) ** 0.5
    return -beta / 2, (beta * (1 - decay**2)) ** 0.5, decay**0.5, 1 - decay


def noised(name: str, t: float, data: Mixture = data) -> Mixture:
    """The distribution p_t."""
    _, _, scale, std = sde(name, t)
    return data.noised(scale, std)


for name in PRIOR:  # f, g and std belong together: d std^2 / dt = 2 f std^2 + g^2
    f, g, _, std = sde(name, 0.5)
    slope = (sde(name, 0.50001)[3] ** 2 - sde(name, 0.49999)[3] ** 2) / 2e-5
    record.number(f"{name}_variance_slope", slope, 2 * f * std**2 + g**2, 1e-5 * slope)


# %% Backwards in time: the reverse SDE and the probability flow ODE (Song et al. 2021, equations 6 and 13)
def reverse_sde(name: str, steps: int, end: float = 1e-3) -> torch.Tensor:
    """Euler-Maruyama from the prior at 1 to `end`, then the mean of x_0 given that."""
    times = torch.linspace(1, end, steps + 1).tolist()
    x = PRIOR[name] * torch.randn(COUNT, 2, dtype=torch.float64)
    for now, after in pairwise(times):
        f, g, _, _ = sde(name, now)
        x = x - (f * x - g**2 * noised(name, now).score(x)) * (now - after) + g * (now - after) ** 0.5 * torch.randn_like(x)
    return (x + sde(name, end)[3] ** 2 * noised(name, end).score(x)) / sde(name, end)[2]


def flow(name: str, t: float, x: torch.Tensor) -> torch.Tensor:
    """dx/dt of the probability flow."""
    f, g, _, _ = sde(name, t)
    return f * x - 0.5 * g**2 * noised(name, t).score(x)


def runge_kutta(velocity: Callable, x: torch.Tensor, times: list[float]) -> list[torch.Tensor]:
    """The states at the times, by the classical method of fourth order."""
    states = [x]
    for a, b in pairwise(times):
        k1 = velocity(a, x)
        k2 = velocity((a + b) / 2, x + (b - a) / 2 * k1)
        k3 = velocity((a + b) / 2, x + (b - a) / 2 * k2)
        x = x + (b - a) / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(b, x + (b - a) * k3))
        states.append(x)
    return states


floor = torch.tensor([sliced_distance(data.sample(COUNT), data) for _ in range(10)])
record.number("distance_floor", floor.mean(), machine=0.004)
record.number("distance_floor_worst", floor.max(), machine=0.01)
times, samples, paths = torch.linspace(1, 1e-3, 81).tolist(), {}, {}
for name, std in PRIOR.items():
    samples[name] = reverse_sde(name, 400)
    paths[name] = runge_kutta(lambda t, x, name=name: flow(name, t, x), std * torch.randn(COUNT, 2).double(), times)
    found = sliced_distance(samples[name], data), sliced_distance(paths[name][-1] / sde(name, 1e-3)[2], data)
    record.number(f"{name}_sde_distance", found[0], machine=0.004)
    record.number(f"{name}_ode_distance", found[1], machine=0.004)
    assert max(found) < 2 * floor.max()


# %% The likelihood of the ODE: d log p(x_t) / dt = -div (Song et al. 2021, appendix D.2)
def with_divergence(name: str, t: float, state: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
    """d/dt of (x, integral of div), div as the mean of e J e over the probes e (N, B, 2)."""
    x = state[:, :2].detach().requires_grad_()
    v = flow(name, t, x)
    products = [(torch.autograd.grad((v * e).sum(), x, retain_graph=True)[0] * e).sum(1) for e in probes]
    return torch.cat([v.detach(), torch.stack(products).mean(0)[:, None]], 1)


def log_likelihood(name: str, x: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
    """log p_0(x) (B,) of x (B, 2) = log prior(x_1) + the integral of the divergence along the flow."""
    times = (torch.linspace(0.01, 1, 61) ** 2).tolist()  # denser towards the data
    scale = sde(name, times[0])[2]  # x stands for x at 1e-4: the noise there is far below the data's widths
    state = torch.cat([scale * x, torch.zeros(len(x), 1)], 1)
    state = runge_kutta(lambda t, s: with_divergence(name, t, s, probes), state, times)[-1]
    prior = torch.distributions.Normal(0.0, PRIOR[name]).log_prob(state[:, :2]).sum(1)
    return prior + state[:, 2] + 2 * math.log(scale)


x, axes = data.sample(200), 2**0.5 * torch.eye(2).double()[:, None].expand(2, 200, 2)  # both axes: the exact trace
truth = data.log_prob(x)
record.number("true_log_likelihood", truth.mean())
for name in PRIOR:
    found = log_likelihood(name, x, axes)
    record.number(f"{name}_log_likelihood", found.mean(), truth.mean(), 0.01, machine=0.001)
    record.number(f"{name}_largest_error", (found - truth).abs().max(), 0, 0.1, machine=0.01)
probe = torch.randint(0, 2, (1, 200, 2)).double() * 2 - 1  # Rademacher
estimate = log_likelihood("vp", x, probe) - truth
record.number("hutchinson_error", estimate.mean(), 0, 4 * estimate.std() / 200**0.5, machine=0.02)
record.number("hutchinson_spread", estimate.std(), machine=0.05)


# %% Langevin dynamics at one noise level, and at many (Song & Ermon 2019, algorithm 1)
def langevin(levels: list[float], steps: int, x: torch.Tensor, size: float = 0.1) -> torch.Tensor:
    for level in levels:
        for _ in range(steps):
            step = size * level**2
            x = x + 0.5 * step * data.noised(1.0, level).score(x) + step**0.5 * torch.randn_like(x)
    return x


start = 3 * torch.rand(COUNT, 2, dtype=torch.float64)  # a corner, so that what is forgotten is seen
levels = torch.logspace(math.log10(3), math.log10(0.02), 25).tolist()
samples |= {"one": langevin([0.05], 1000, start), "many": langevin(levels, 40, start)}
for kind, within in (("one", 1), ("many", 0.06)):
    shares = torch.bincount(torch.cdist(samples[kind], data.means).argmin(1), minlength=3) / COUNT
    for k in range(3):
        record.number(f"share_{k}_{kind}", shares[k], data.shares[k], within, machine=0.02)

# %% DDPM is a discretisation of VP, NCSN's chain one of VE: one reverse step differs by less and less of its length
x = torch.randn(500, 2, dtype=torch.float64)
for count in (100, 1000):
    beta = (BETA_MIN + torch.arange(1, count + 1, dtype=torch.float64) / count * (BETA_MAX - BETA_MIN)) / count
    b, abar = beta[count // 2 - 1], torch.cumprod(1 - beta, 0)[count // 2 - 1]
    record.number(f"abar_difference_{count}", (abar - sde("vp", 0.5)[2] ** 2).abs())
    f, g, _, std = sde("vp", 0.5)
    score = noised("vp", 0.5).score(x)
    ddpm = (x + b * score) / (1 - b).sqrt()  # Ho et al. 2020, equation 11, where eps = -sqrt(1 - abar) score
    vp_step = x - (f * x - g**2 * score) / count
    record.number(f"vp_difference_{count}", (ddpm - vp_step).norm() / (ddpm - x).norm())
    step = sde("ve", 0.5)[3] ** 2 - sde("ve", 0.5 - 1 / count)[3] ** 2
    score = noised("ve", 0.5).score(x)
    ncsn, euler = step * score, sde("ve", 0.5)[1] ** 2 / count * score  # Song et al. 2021, appendix F, its mean's step
    record.number(f"ve_difference_{count}", (ncsn - euler).norm() / ncsn.norm())
theirs = ScoreSdeVpScheduler(1000, BETA_MIN, BETA_MAX, 1e-3)
theirs.set_timesteps(1000)
_, mean = theirs.step_pred(-std * noised("vp", 0.5).score(x), x, torch.tensor(0.5, dtype=torch.float64))
record.number("diffusers_vp_difference", (mean - vp_step).abs().max(), 0, 1e-5)
theirs = ScoreSdeVeScheduler(1000, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
theirs.set_timesteps(1000)
theirs.set_sigmas(1000)
after, now = (SIGMA_MIN * math.exp(GROWTH * i / 999) for i in (499, 500))
mean = theirs.step_pred(data.noised(1.0, now).score(x), torch.tensor(500.2 / 999), x).prev_sample_mean
record.number("diffusers_ve_difference", (mean - x - (now**2 - after**2) * data.noised(1.0, now).score(x)).abs().max(), 0, 1e-5)

# %% Likelihood weighting: KL(p || q) = 1/2 integral g^2 E|score_p - score_q|^2 dt + KL(p_1 || q_1) (Song et al. 2021b)
models = {  # each is the distribution of the reverse SDE that uses its scores
    "narrow": Mixture(data.shares, data.means, 0.4 * data.variances),
    "shares": Mixture(torch.tensor([0.15, 0.3, 0.55], dtype=torch.float64), data.means, data.variances),
}
x_0, many, grid = data.sample(4000), data.sample(100_000), torch.linspace(0, 1, 151, dtype=torch.float64)[1:] ** 2
for name, q in models.items():
    losses = []
    for t in grid.tolist():
        _, g, scale, std = sde("vp", t)
        x = scale * x_0 + std * torch.randn_like(x_0)
        error = (noised("vp", t).score(x) - noised("vp", t, q).score(x)).square().sum(1).mean().item()
        losses.append([0.5 * g**2 * error, 0.5 * std**2 * error])  # likelihood weighting; the simple loss of eps
    weighted, simple = torch.trapezoid(torch.tensor(losses, dtype=torch.float64).T, grid)
    kl = record.number(f"kl_{name}", (data.log_prob(many) - q.log_prob(many)).mean(), machine=0.005)
    record.number(f"bound_{name}", weighted, kl, 0.05 * kl, machine=0.01)
    record.number(f"simple_{name}", simple, machine=0.001)

# %%
figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
titles = {"one": "Langevin, one level", "many": "Langevin, 25 levels", "vp": "VP, reverse SDE"}
for axis, (name, title) in zip(axes, titles.items(), strict=False):
    axis.scatter(*x_0[:1500].T, s=2, color="0.75", label="data")
    axis.scatter(*samples[name][:1500].T, s=2, color="tab:blue", label="samples")
    axis.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xlabel="$x_1$", ylabel="$x_2$", title=title)
axes[3].plot(times, torch.stack(paths["vp"])[:, :40, 0], color="tab:blue", lw=0.6)
axes[3].set(xlabel="t", ylabel="$x_1$", title="VP, probability flow")
axes[0].legend(markerscale=4, loc="upper left", fontsize=7)
record.figure(figure)
record.save()
