# %% [markdown]
# # Lab 6: scores, Langevin dynamics, three SDEs and their ODEs
# Each noised score of lab 1's mixture (not rounded) is known: errors are the sampler's. t = 0 is data. The chapter is 6-sde.md.

# %%
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from diffusers import ScoreSdeVeScheduler
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from labkit import Mixture, Record, sliced_distance, three_blobs

COUNT, SIGMA_MIN, BETA_MIN, BETA_MAX = 5000, 0.01, 0.1, 20.0
PRIOR = {"ve": 25.0, "vp": 1.0, "subvp": 1.0}  # its standard deviation; VE's is sigma_max
record, data = Record("6-sde"), three_blobs()
torch.manual_seed(0)


# %% Three SDEs dx = f x dt + g dw
def sde(name: str, t: float) -> tuple[float, float, float, float]:
    """f and g at time t (Song et al. 2021, equations 9, 11 and 12), and what they make of x_0: scale x_0 + std eps."""
    if name.startswith("ve"):
        sigma, growth = SIGMA_MIN * (PRIOR[name] / SIGMA_MIN) ** t, math.log(PRIOR[name] / SIGMA_MIN)
        return 0.0, sigma * (2 * growth) ** 0.5, 1.0, (sigma**2 - SIGMA_MIN**2) ** 0.5
    beta = BETA_MIN + t * (BETA_MAX - BETA_MIN)
    decay = math.exp(-BETA_MIN * t - 0.5 * t**2 * (BETA_MAX - BETA_MIN))  # abar in continuous time
    if name == "vp":
        return -beta / 2, beta**0.5, decay**0.5, (1 - decay) ** 0.5
    return -beta / 2, (beta * (1 - decay**2)) ** 0.5, decay**0.5, 1 - decay


def noised(name: str, t: float, data: Mixture = data) -> Mixture:
    """The distribution p_t."""
    return data.noised(*sde(name, t)[2:])


for name in PRIOR:  # f, g and std belong together: d std^2 / dt = 2 f std^2 + g^2
    f, g, _, std = sde(name, 0.5)
    slope = (sde(name, 0.50001)[3] ** 2 - sde(name, 0.49999)[3] ** 2) / 2e-5
    record.number(f"{name}_variance_slope", slope, 2 * f * std**2 + g**2, 1e-5 * slope)


# %% Backwards in time: the reverse SDE and the probability flow ODE (Song et al. 2021, equations 6 and 13)
def reverse_sde(name: str, steps: int, end: float = 1e-3) -> torch.Tensor:
    """Euler-Maruyama from the prior at 1 to `end`, then the mean of x_0 given that."""
    x = PRIOR[name] * torch.randn(COUNT, 2, dtype=torch.float64)
    for now, after in pairwise(torch.linspace(1, end, steps + 1).tolist()):
        f, g, _, _ = sde(name, now)
        x = x - (f * x - g**2 * noised(name, now).score(x)) * (now - after) + g * (now - after) ** 0.5 * torch.randn_like(x)
    return (x + sde(name, end)[3] ** 2 * noised(name, end).score(x)) / sde(name, end)[2]


def flow(name: str, t: float, x: torch.Tensor) -> torch.Tensor:
    """dx/dt of the probability flow."""
    f, g, _, _ = sde(name, t)
    return f * x - 0.5 * g**2 * noised(name, t).score(x)


def runge_kutta(velocity, x: torch.Tensor, times: list[float]) -> list[torch.Tensor]:
    """The states at the times, by the classical method of fourth order. velocity: (t, x) -> dx/dt."""
    states = [x]
    for a, b in pairwise(times):
        k1 = velocity(a, x)
        k2 = velocity((a + b) / 2, x + (b - a) / 2 * k1)
        k3 = velocity((a + b) / 2, x + (b - a) / 2 * k2)
        x = x + (b - a) / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(b, x + (b - a) * k3))
        states.append(x)
    return states


floor = torch.tensor([sliced_distance(data.sample(COUNT), data) for _ in range(10)])
record.number("distance_floor", floor.mean(), machine=0.002)
record.number("distance_floor_worst", floor.max(), machine=0.004)
times, samples, paths = torch.linspace(1, 1e-3, 81).tolist(), {}, {}
# The ODE is a map, and needs no chance: evenly spread starts (Sobol), from p_1 and from the prior, show what it gets wrong.
even = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(8192, dtype=torch.float64)
starts, which = torch.special.ndtri(even[:, :2]), torch.bucketize(even[:, 2].contiguous(), data.shares.cumsum(0)[:-1])
for name, std in PRIOR.items():
    samples[name], end = reverse_sde(name, 400), noised(name, 1.0)
    found = [record.number(f"{name}_sde_distance", sliced_distance(samples[name], data), machine=0.003)]
    for kind, x in (("true_ode", end.means[which] + end.variances[which].sqrt() * starts), ("ode", std * starts)):
        paths[name] = runge_kutta(lambda t, x, name=name: flow(name, t, x), x, times)
        distance = sliced_distance(paths[name][-1] / sde(name, 1e-3)[2], data)
        found.append(record.number(f"{name}_{kind}_distance", distance, machine=0.0005))
    assert found[0] < 1.5 * floor.max() and max(found[1:]) < floor.mean(), "each reaches the right density"


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
    return torch.distributions.Normal(0.0, PRIOR[name]).log_prob(state[:, :2]).sum(1) + state[:, 2] + 2 * math.log(scale)


x, axes = data.sample(200), 2**0.5 * torch.eye(2).double()[:, None].expand(2, 200, 2)  # both axes: the exact trace
record.number("true_log_likelihood", (truth := data.log_prob(x)).mean())
PRIOR["ve_5"] = 5.0  # VE again, with a smaller sigma_max
for name in PRIOR:
    found = log_likelihood(name, x, axes)
    record.number(f"{name}_log_likelihood", found.mean(), truth.mean(), 0.01, machine=0.0003)
    record.number(f"{name}_largest_error", (found - truth).abs().max(), 0, 0.3, machine=0.002)
estimate = log_likelihood("vp", x, torch.randint(0, 2, (1, 200, 2)).double() * 2 - 1) - truth  # one Rademacher probe each
record.number("hutchinson_error", estimate.mean(), 0, 4 * estimate.std() / 200**0.5, machine=0.01)
record.number("hutchinson_spread", estimate.std(), machine=0.05)


# %% Langevin dynamics at one noise level, and at many (Song & Ermon 2019, algorithm 1)
def langevin(of: Mixture, levels: list[float], steps: int, x: torch.Tensor, size: float = 0.1) -> torch.Tensor:
    for level in [level for level in levels for _ in range(steps)]:
        x = x + 0.5 * size * level**2 * of.noised(1.0, level).score(x) + size**0.5 * level * torch.randn_like(x)
    return x


start = 3 * torch.rand(COUNT, 2, dtype=torch.float64)  # a corner, so that what is forgotten is seen
levels = torch.logspace(math.log10(3), math.log10(0.02), 25).tolist()
samples |= {"one": langevin(data, [0.05], 1000, start), "many": langevin(data, levels, 40, start)}
for kind, expected in (("one", (0.0, 0.5, 0.5)), ("many", data.shares)):  # at one level, the two blobs nearest to the corner
    shares = torch.bincount(torch.cdist(samples[kind], data.means).argmin(1), minlength=3) / COUNT
    for k in range(3):
        record.number(f"share_{k}_{kind}", shares[k], expected[k], 0.06, machine=0.02 if shares[k] > 0.1 else 0.001)
# Song & Ermon 2020, technique 4: the variance after a level's steps of r sigma^2 (half of ours), in units of its own, for data
# of one point and a start from the level before, gamma times as wide, is to be near 1; technique 2: the overlap, near 1/2
gamma, r = levels[0] / levels[1], torch.cat([torch.tensor([0.05]), torch.linspace(0.01, 0.2, 1901)]).double()  # 0.05: ours
variance = (1 - r) ** 80 * (gamma**2 - (rest := 2 * r / (1 - (1 - r) ** 2))) + rest  # 80: twice the 40 steps
found = langevin(Mixture(torch.ones(1), *[torch.zeros(1, 2)] * 2), [1.0], 40, gamma * torch.randn(20_000, 2)).var()
record.number("level_variance", variance[0], found, 0.03)
record.number("level_variance_best", variance.min())
ratios = 1 + torch.logspace(-4, 2, 6001, dtype=torch.float64)
middle = torch.tensor([[2.0], [(2 * 3072) ** 0.5]]) * (ratios - 1)  # in 2 and in 3072 dimensions
overlap = torch.special.ndtr(middle + 3 * ratios) - torch.special.ndtr(middle - 3 * ratios)
record.number("overlap_least_2", overlap[0].min())
record.number("overlap_ratio_3072", ratios[(overlap[1] - 0.5).abs().argmin()])

# %% DDPM is a discretisation of VP, NCSN's chain one of VE: one reverse step differs by less and less of its length
x = torch.randn(500, 2, dtype=torch.float64)
for count in (100, 1000):
    beta = (BETA_MIN + torch.arange(1, count + 1, dtype=torch.float64) / count * (BETA_MAX - BETA_MIN)) / count
    b, (before, abar) = beta[count // 2 - 1], torch.cumprod(1 - beta, 0)[count // 2 - 2 : count // 2]
    (f, g, scale, std), score = sde("vp", 0.5), noised("vp", 0.5).score(x)
    ddpm = (x + b * score) / (1 - b).sqrt()  # Ho et al. 2020, equation 11, where eps = -sqrt(1 - abar) score
    vp_step = x - (f * x - g**2 * score) / count
    differences = {"abar": abar / scale**2 - 1, "vp": (ddpm - vp_step).norm() / (ddpm - x).norm()}
    differences["vp_noise"] = (1 - before) / (1 - abar) * b * count / g**2 - 1  # beta tilde
    now, after, g = sde("ve", 0.5)[3] ** 2, sde("ve", 0.5 - 1 / count)[3] ** 2, sde("ve", 0.5)[1]  # Song et al., appendix F
    differences |= {"ve": 1 - g**2 / count / (now - after), "ve_noise": after * (now - after) / now * count / g**2 - 1}
    for name, value in differences.items():
        value = record.number(f"{name}_difference_{count}", abs(value))
        assert count == 100 or 0.08 < value / record.numbers[f"{name}_difference_100"]["value"] < 0.12, "as 1/N"
theirs = ScoreSdeVpScheduler(1000, BETA_MIN, BETA_MAX, 1e-3)
theirs.set_timesteps(1000)
_, mean = theirs.step_pred(-std * noised("vp", 0.5).score(x), x, torch.tensor(0.5, dtype=torch.float64))
record.number("diffusers_vp_difference", (mean - vp_step).abs().max(), 0, 1e-5)
theirs = ScoreSdeVeScheduler(1000, sigma_min=SIGMA_MIN, sigma_max=PRIOR["ve"])
after, now = (SIGMA_MIN * (PRIOR["ve"] / SIGMA_MIN) ** (i / 999) for i in (499, 500))
mean = theirs.step_pred(data.noised(1.0, now).score(x), torch.tensor(500.2 / 999), x).prev_sample_mean
record.number("diffusers_ve_difference", (mean - x - (now**2 - after**2) * data.noised(1.0, now).score(x)).abs().max(), 0, 1e-5)

# %% Likelihood weighting: KL(p || q) = 1/2 integral g^2 E|score_p - score_q|^2 dt + KL(p_1 || q_1) (Song et al. 2021b)
models = {"narrow": Mixture(data.shares, data.means, 0.4 * data.variances)}  # each with the scores of its reverse SDE
models["shares"] = Mixture(torch.tensor([0.15, 0.3, 0.55], dtype=torch.float64), data.means, data.variances)
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
    record.number(f"simple_{name}", simple, machine=0.0003)
assert kl < record.numbers["kl_narrow"]["value"] and simple > record.numbers["simple_narrow"]["value"], "losses disagree"

# %%
figure, axes = plt.subplot_mosaic([[0, 1], [2, 3]], figsize=(9, 6.6), layout="constrained")
titles = {"one": "Langevin, one level: a blob is missed", "many": "25 levels: all blobs", "vp": "Reverse SDE of VP: all blobs"}
for axis, (name, title) in zip(axes.values(), titles.items(), strict=False):
    axis.scatter(*x_0[:1500].T, s=2, color="0.75", label="data")
    axis.scatter(*samples[name][:1500].T, s=2, color="C0", label="samples")
    axis.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xlabel="$x_1$", ylabel="$x_2$", title=title)
axes[3].plot(times, torch.stack(paths["vp"])[:, :40, 0], color="C0", lw=0.6)
axes[3].set(xlabel="t", ylabel="$x_1$", title="Its ODE: smooth paths, the same density")
axes[0].legend(markerscale=4, loc="upper left")
record.figure(figure)
record.save()
