# %% [markdown]
# # Lab 1: DDPM with a denoiser that makes no error
# The data are three normals in the plane, rounded to 256 values per axis like pixels. E[x_0 | x_t] is a closed form: what the
# bound loses comes from the method itself. Timesteps count from 1 as in the papers. The chapter is 1-ddpm.md.

# %%
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from labkit import Record, sliced_distance, three_blobs
from torch.distributions import Normal, kl_divergence

from tinyldm.process.bound import step_bits
from tinyldm.process.discrete_vp import DiscreteVP

T, STEPS, COUNT, HALF_BIN = 1000, 20, 20_000, 1 / 255
record, data = Record("1-ddpm"), three_blobs()
torch.manual_seed(0)
x0 = ((data.sample(COUNT).clamp(-1, 1) + 1) / (2 * HALF_BIN)).round() * 2 * HALF_BIN - 1

# %% Noise schedules: abar_t for t = 0..T, abar_0 = 1
one, infinity = torch.ones(1, dtype=torch.float64), torch.full((1,), math.inf)
beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
linear = torch.cat([one, torch.cumprod(1 - beta, 0)])
cosine = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2).square()
cosine_beta = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)  # Nichol & Dhariwal 2021, equation 17
cosine = torch.cat([one, torch.cumprod(1 - cosine_beta, 0)])
schedules = {"1000": linear, "20": linear[:: T // STEPS], "cosine": cosine}  # a strided schedule is a schedule
record.number("cosine_difference", (cosine_beta - DDPMScheduler(T, beta_schedule="squaredcos_cap_v2").betas).norm(), 0, 1e-5)

# %% Forward: 500 small steps are one large step
x = x0
for b in beta[: T // 2]:
    x = (1 - b).sqrt() * x + b.sqrt() * torch.randn_like(x)
record.number("forward_variance", x.var(0).mean(), 1 + linear[T // 2] * (x0.var(0).mean() - 1), 0.03)


# %% Posterior, denoiser, reverse step
def posterior(abar: float, before: float, x_0: torch.Tensor, x_t: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Mean and variance of q(x_s | x_t, x_0), s < t; abar at t, before at s (Ho et al. 2020, equations 6 and 7)."""
    alpha = abar / before
    mean = before**0.5 * (1 - alpha) / (1 - abar) * x_0 + alpha**0.5 * (1 - before) / (1 - abar) * x_t
    return mean, (1 - before) / (1 - abar) * (1 - alpha)


def denoise(abar: float, x_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E[x_0 | x_t] and Var[x_0 | x_t] of each coordinate, for x_t (B, D): a linear regression in each component."""
    noised = data.noised(abar**0.5, (1 - abar) ** 0.5)
    chances = noised.joint(x_t).softmax(1)[..., None]  # (B, K, 1)
    gain = abar**0.5 * data.variances / noised.variances
    expected = data.means + gain * (x_t[:, None] - noised.means)
    mean = (chances * expected).sum(1)
    return mean, (chances * (data.variances * (1 - gain * abar**0.5) + (expected - mean[:, None]).square())).sum(1)


def reverse(abar: float, before: float, x_t: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the model's p(x_s | x_t). kind: small, large, best (which a learned variance aims at), range (best
    in the range from small to large), or ddim (Song, Meng & Ermon 2021, equation 12 with sigma = 0)."""
    expected, spread = denoise(abar, x_t)
    if kind == "ddim":
        mean = before**0.5 * expected + (1 - before) ** 0.5 * (x_t - abar**0.5 * expected) / (1 - abar) ** 0.5
        return mean, torch.zeros_like(mean)
    mean, small = posterior(abar, before, expected, x_t)
    slope = before**0.5 * (1 - abar / before) / (1 - abar)  # d mean / d x_0
    large, best = 1 - abar / before, small + slope**2 * spread
    return mean, {"small": small, "large": large, "best": best, "range": best.clamp(small, large)}[kind] + 0 * mean


abar, x_t = linear[400].item(), torch.randn_like(x0[:100])  # Tweedie's formula says the same with the score
tweedie = (x_t + (1 - abar) * data.noised(abar**0.5, (1 - abar) ** 0.5).score(x_t)) / abar**0.5
record.number("denoiser_difference", (denoise(abar, x_t)[0] - tweedie).abs().max(), 0, 1e-10)


# %% The bound, term by term, in bits per dimension
def divergence(mean, variance, other_mean, other_variance) -> torch.Tensor:
    """KL of two normals, in bits, of each element."""
    ratio = torch.as_tensor(variance / other_variance)
    return 0.5 * (ratio - 1 - ratio.log() + (mean - other_mean).square() / other_variance) / math.log(2)


def bound(abar: torch.Tensor, kind: str, x0: torch.Tensor) -> torch.Tensor:
    """[L_0, L_1, ..., L_T] of each x_0: (T + 1, B), for a schedule abar (T + 1,)."""
    terms = []
    for t in range(1, len(abar)):
        now, before = abar[t].item(), abar[t - 1].item()
        x = x0.repeat(10 if t <= 20 else 1, 1)  # the first terms are the noisy ones
        x_t = now**0.5 * x + (1 - now) ** 0.5 * torch.randn_like(x)
        mean, variance = reverse(now, before, x_t, kind)
        if t > 1:
            term = divergence(*posterior(now, before, x, x_t), mean, variance)
        else:
            if kind != "best":  # the posterior has no width here; that of the next step stands for it (Ho et al.'s code)
                variance = variance.clamp(least := posterior(abar[2].item(), now, x, x_t)[1], 1 if kind == "range" else least)
            high, low = torch.where(x > 0.999, math.inf, x + HALF_BIN), torch.where(x < -0.999, -math.inf, x - HALF_BIN)
            inside = [torch.special.ndtr((edge - mean) / variance.sqrt()) for edge in (high, low)]
            term = -(inside[0] - inside[1]).clamp(min=1e-300).log2()
        terms.append(term.mean(1).view(-1, len(x0)).mean(0))
    return torch.stack([*terms, divergence(abar[-1].sqrt() * x0, 1 - abar[-1], torch.zeros(1), 1.0).mean(1)])


edges = torch.cat([-infinity, (2 * torch.arange(255) + 1) * HALF_BIN - 1, infinity])
cdf = Normal(data.means[..., None], data.variances.sqrt()[..., None]).cdf(edges)  # (K, 2, 257)
masses = torch.einsum("k,kx,ky->xy", data.shares, *cdf.diff(dim=-1).unbind(1))  # of the 256 x 256 values
entropy = record.number("entropy", -torch.special.xlogy(masses, masses).sum() / math.log(2) / 2)
few = x0[: int(record.number("few", 2000))]
few_bits = -masses.log2()[((few + 1) / (2 * HALF_BIN)).round().long().unbind(1)] / 2  # what the true distribution needs
kinds, curves, bounds = ("small", "large", "range", "best"), {}, {}
for kind, name in [("small", "cosine"), *((kind, name) for kind in kinds for name in ("1000", "20"))]:
    terms = bound(schedules[name], kind, few)
    gap, error = terms.sum(0) - few_bits, (terms.sum(0) - few_bits).std() / len(few) ** 0.5
    assert gap.mean() > -4 * error, "a bound lies above the entropy"
    bounds[kind, name] = record.number(f"bound_{kind}_{name}", entropy + gap.mean(), machine=0.002)
    record.number(f"error_{kind}_{name}", error, machine=0.001)
    curves[kind, name] = terms.mean(1)
assert all(bounds["small", n] > bounds["large", n] > bounds["range", n] > bounds["best", n] - 0.01 for n in ("1000", "20"))
record.number("loss_small_1000", bounds["small", "1000"] - entropy, machine=0.002)
for name, key in (("linear", "1000"), ("cosine", "cosine")):
    terms, last = curves["small", key], schedules[key][T]
    record.number(f"L_0_{name}", terms[0], machine=0.002)
    record.number(f"L_first_{name}", terms[1:20].sum(), machine=0.002)
    exact = kl_divergence(Normal(last.sqrt() * few, (1 - last).sqrt()), Normal(0.0, 1.0)).mean() / math.log(2)
    record.number(f"L_T_{name}", terms[-1], exact, 1e-12)

# %% L_t by the project's code, and as a weight on the simple loss: beta_t^2 / (2 sigma_t^2 alpha_t (1 - abar_t))
process = DiscreteVP(DDPMScheduler(T, beta_start=1e-4, beta_end=0.02, clip_sample=False, prediction_type="sample"))
small = (1 - linear[1:-1]) / (1 - linear[2:]) * beta[1:]
weights = beta[1:].square() / (2 * small * (1 - beta[1:]) * (1 - linear[2:])) / math.log(2)  # of t = 2..T
record.number("weight_ratio", weights[0] / weights[-1])
for t in (2, 100):  # the step from x_t to x_{t-1}: L_1 and L_99
    now, before = linear[t].item(), linear[t - 1].item()
    x_t = now**0.5 * few + (1 - now) ** 0.5 * (noise := torch.randn_like(few))
    expected, _ = denoise(now, x_t)
    ours = divergence(*posterior(now, before, few, x_t), *reverse(now, before, x_t, "small")).mean()
    images, steps = [x.float()[..., None, None] for x in (expected, few, x_t)], torch.full((len(few),), t - 1)
    record.number(f"L_{t - 1}_by_project", step_bits(process, *images, steps).mean(), ours, 0.005 * ours)  # float32 tables
    error = (noise - (x_t - now**0.5 * expected) / (1 - now) ** 0.5).square().mean()
    record.number(f"L_{t - 1}_by_weight", ours, weights[t - 2] * error, 1e-9)
above = reverse(now, before, x_t, "best")[1] > reverse(now, before, x_t, "large")[1]
record.number("best_above_large_100", 100 * above.double().mean(), machine=0.5)


# %% Sampling: 20 steps against 1000, by hand
def sample(abar: torch.Tensor, kind: str, x: torch.Tensor) -> torch.Tensor:
    """Ho et al. 2020, algorithm 2, on any increasing subset of the timesteps."""
    for now, before in pairwise(abar.flip(0).tolist()):
        mean, variance = reverse(now, before, x, kind)
        x = mean + (variance.sqrt() * torch.randn_like(x) if before < 1 else 0)
    return x


record.number("distance_floor", (floor := torch.tensor([sliced_distance(data.sample(COUNT), data) for _ in range(10)])).mean())
record.number("distance_floor_worst", floor.max(), machine=0.004)
pictures, distances = {}, {}
for kind, name in (("small", "1000"), *((kind, "20") for kind in ("small", "large", "best", "ddim"))):
    runs = [sample(schedules[name], kind, torch.randn_like(x0)) for _ in range(5 if name == "20" else 1)]
    pictures[kind, name], distances[kind] = runs[0], [sliced_distance(x, data) for x in runs]
    record.number(f"distance_{kind}_{name}", sum(distances[kind]) / len(runs), machine=0.002)
assert min(distances.pop("small")) > max(map(max, distances.values())) and sum(distances["best"]) > sum(distances["large"])

# %% One step by hand is one step of diffusers' schedulers
worst = {"exact": 0.0, "float32": 0.0, "float32_later": 0.0, "last": 0.0}
for cls, kind in ((DDPMScheduler, "small"), (DDPMScheduler, "large"), (DDIMScheduler, "ddim")):
    extra = {} if kind == "ddim" else {"variance_type": f"fixed_{kind}"}
    scheduler = cls(T, 1e-4, 0.02, timestep_spacing="trailing", clip_sample=False, prediction_type="sample", **extra)
    for count, precision in ((T, "float32"), (T, "exact"), (STEPS, "exact")):
        scheduler.set_timesteps(count)
        if precision == "exact":
            scheduler.alphas_cumprod = linear[1:]  # its own table is float32
        for t in scheduler.timesteps.tolist():
            now, before = linear[t + 1].item(), linear[t + 1 - T // count].item()
            x_t, seed = torch.randn_like(x0[:50]), torch.Generator().manual_seed(t)
            step = scheduler.step(denoise(now, x_t)[0], t, x_t, generator=seed).prev_sample
            noise = torch.randn(x_t.shape, generator=seed.manual_seed(t), dtype=x_t.dtype)
            mean, variance = reverse(now, before, x_t, kind)
            mine = mean + (variance.sqrt() * noise if before < 1 else 0)
            odd = kind == "large" and before == 1 and t > 0  # diffusers leaves noise out at t = 0 only: see the chapter
            case = "last" if odd else precision + "_later" * (precision == "float32" and t >= 20)
            worst[case] = max(worst[case], (step - mine).abs().max().item())
record.number("scheduler_difference", worst["exact"], 0, 1e-9)
record.number("float32_difference", worst["float32"], machine=1e-4)
record.number("float32_later_difference", worst["float32_later"], 0, 2e-5, machine=5e-6)
assert worst["last"] > record.number("large_last_noise", (1 - linear[T // STEPS]).sqrt())

# %%
figure, axes = plt.subplot_mosaic([[0, 1], [2, 3]], figsize=(9, 6.6), layout="constrained")
titles = ("1000 steps: as the data", "20 steps, small variance: too narrow", "20 steps, true variance: points between blobs")
for axis, kind, count, title in zip(axes.values(), ("small", "small", "best"), ("1000", "20", "20"), titles, strict=False):
    axis.scatter(*x0[:1500].T, s=2, color="0.75", label="data")
    axis.scatter(*pictures[kind, count][:1500].T, s=2, color="C0", label="samples")
    axis.set(xlim=(-1, 1), ylim=(-1, 1), xlabel="$x_1$", ylabel="$x_2$", title=title)
axes[3].loglog(torch.stack([curves["small", name][:-1] for name in ("1000", "cosine")], 1), label=("linear", "cosine"), lw=0.8)
axes[3].set(xlabel="t - 1", ylabel="$L_{t-1}$, bits per dimension", title="The first few steps take most bits")
axes[0].legend(markerscale=4, loc="upper left")
axes[3].legend()
record.figure(figure)
record.save()
