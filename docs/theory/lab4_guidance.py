# %% [markdown]
# # Lab 4: what guidance samples, where everything is known
# First one dimension, where p(x) and p(x | c) are normal: the distribution that guidance is said to sample, and the two that
# its ODE and its SDE do sample, all in closed form. Then classes that are mixtures, in the plane. The noise is added without
# scaling (VE): x_tau = x_0 + sqrt(tau) eps. The chapter is 4-guidance.md.

# %%
import math
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from diffusers import DDIMScheduler
from labkit import Mixture, Record

from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing.sampling import Model, denoise
from tinyldm.models.denoiser import Denoiser
from tinyldm.process.discrete_vp import DiscreteVP

COUNT, STEPS, TAU_MAX = 20_000, 1000, 1e4
record = Record("4-guidance")
torch.manual_seed(0)
taus = torch.cat([torch.logspace(math.log10(TAU_MAX), -6, STEPS, dtype=torch.float64), torch.zeros(1).double()]).tolist()


def sample(score, x: torch.Tensor, noisy: bool) -> torch.Tensor:
    """From tau_max to 0, by the reverse SDE (Euler-Maruyama) or by its ODE (Heun). score: (x, tau) -> like x."""
    for now, after in pairwise(taus):
        dt, slope = now - after, score(x, now)
        if noisy:
            x = x + dt * slope + (dt**0.5 * torch.randn_like(x) if after else 0)
        else:
            guess = x + dt / 2 * slope
            x = x + dt / 4 * (slope + score(guess, after))
    return x


# %% One dimension: p(x) = N(0, S^2), p(x | c) = N(m, s^2), guided with weight w
S, s, m, w = 1.0, 0.5, 0.6, 3
R = S**2 / s**2


def guided(x: torch.Tensor, tau: float, w: float = w) -> torch.Tensor:
    """w grad log p_tau(x | c) + (1 - w) grad log p_tau(x)."""
    return -w * (x - m) / (s**2 + tau) + (w - 1) * x / (S**2 + tau)


def sharpened_variance(w: float) -> float:
    """Of p(x) p(c | x)^w / Z, the distribution that the weight suggests."""
    return 1 / (w / s**2 - (w - 1) / S**2)


def ode_variance(w: float) -> float:
    """Of what the ODE makes of the guided scores, from the linear equation dx/dtau = -guided / 2."""
    return s ** (2 * w) * S ** (-2 * (w - 1))


def sde_variance(w: float) -> float:
    """Of what the reverse SDE makes of them, from dV/dtau = -2 V d guided/dx - 1."""
    return s**4 * (R - R ** (-2 * (w - 1))) / ((2 * w - 1) * (S**2 - s**2))


def ode_mean(w: float) -> float:
    """By the same equation; after u = 1 + v^2 the integrand is smooth, and the trapezoidal rule finds it."""
    v = torch.linspace(0, math.sqrt(R - 1), 20_001, dtype=torch.float64)
    integral = torch.trapezoid(2 * (1 + v**2) ** ((w - 1) / 2), v).item()  # of u^((w - 1) / 2) (u - 1)^(-1 / 2) from 1 to R
    return m * w / (2 * math.sqrt(S**2 - s**2)) * s**w * S ** (1 - w) * integral


def sde_mean(w: float) -> float:
    """From dM/dtau = -guided(M)."""
    return m * (R - R ** (1 - w)) / (R - 1)


noise = TAU_MAX**0.5 * torch.randn(COUNT, dtype=torch.float64)
sharp = sharpened_variance(w)
record.number("sharpened_mean", sharp * w * m / s**2)
record.number("sharpened_std", sharp**0.5)
right = sample(lambda x, tau: -(x - sharp * w * m / s**2) / (sharp + tau), noise, noisy=False)
record.number("true_score_std", right.std(), sharp**0.5, 0.02 * sharp**0.5, machine=0.001)
record.number("ode_std_exact", ode_variance(w) ** 0.5)
record.number("ode_mean_exact", ode_mean(w))
record.number("sde_std_exact", sde_variance(w) ** 0.5)
record.number("sde_mean_exact", sde_mean(w))
by_ode, by_sde = sample(guided, noise, noisy=False), sample(guided, noise, noisy=True)
record.number("ode_std", by_ode.std(), ode_variance(w) ** 0.5, 0.02 * ode_variance(w) ** 0.5, machine=0.001)
record.number("ode_mean", by_ode.mean(), ode_mean(w), 0.005, machine=0.001)
record.number("sde_std", by_sde.std(), sde_variance(w) ** 0.5, 0.02 * sde_variance(w) ** 0.5, machine=0.002)
record.number("sde_mean", by_sde.mean(), sde_mean(w), 0.005, machine=0.002)
for of in (ode_variance, sde_variance, sharpened_variance):
    assert math.isclose(of(1), s**2) and math.isclose(of(0), S**2), "w = 1 is p(x | c), w = 0 is p(x)"
assert all(math.isclose(of(1), m) and of(0) == 0 for of in (ode_mean, sde_mean))
assert ode_variance(w) < sharp / 4 < sde_variance(w) < sharp and ode_mean(w) > sde_mean(w) > sharp * w * m / s**2
# The cause: noising and sharpening do not commute. Slopes of the two scores at the noise of variance s^2:
record.number("slope_guided", w / (2 * s**2) - (w - 1) / (S**2 + s**2))
record.number("slope_noised_sharpened", 1 / (sharp + s**2))

# %% The same by this project's guidance and sampling loop, with diffusers' DDIMScheduler: one denoiser, and one as its guide
ddim = DDIMScheduler(1000, 1e-4, 0.02, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
abar = ddim.alphas_cumprod.double()


def exact(mean: float, std: float) -> Denoiser:  # of the noise in x_t for x_0 ~ N(mean, std^2)
    network = torch.nn.PReLU().double()  # any module with a parameter
    network.forward = lambda x, t, class_labels: SimpleNamespace(
        sample=(1 - abar[t]).sqrt() * (x - abar[t].sqrt() * mean) / (abar[t] * std**2 + 1 - abar[t])
    )
    return Denoiser(network)


model = Model(exact(m, s), DiscreteVP(ddim), None, guide=exact(0, S), scale=w)
x = denoise(model, noise.view(-1, 1, 1, 1) / TAU_MAX**0.5, SamplerSettings("ddim", 1000))
record.number("ddim_std", x.std(), ode_variance(w) ** 0.5, 0.03 * ode_variance(w) ** 0.5, machine=0.001)
record.number("ddim_mean", x.mean(), ode_mean(w), 0.02, machine=0.001)


# %% The plane: three classes; one of the two blobs of class 0 has a neighbour of class 1
def mixture(shares: list, means: list, stds: list) -> Mixture:
    return Mixture(*(torch.tensor(part, dtype=torch.float64) for part in (shares, means, [[std**2] * 2 for std in stds])))


classes = [
    mixture([0.5, 0.5], [[-0.7, 0.5], [0.3, 0.1]], [0.2, 0.2]),
    mixture([1.0], [[0.85, 0.0]], [0.2]),
    mixture([1.0], [[-0.1, -0.8]], [0.2]),
]
everything = mixture([1 / 6, 1 / 6, 1 / 3, 1 / 3], [[-0.7, 0.5], [0.3, 0.1], [0.85, 0.0], [-0.1, -0.8]], [0.2] * 4)
calls = {"denoiser": 0}


def score(of: Mixture, x: torch.Tensor, tau: float) -> torch.Tensor:
    calls["denoiser"] += 1
    return of.noised(1.0, tau**0.5).score(x)


def classifier_free(x: torch.Tensor, tau: float, w: float) -> torch.Tensor:
    """Ho & Salimans 2022: two denoisers."""
    return (1 - w) * score(everything, x, tau) + w * score(classes[0], x, tau)


def classifier(x: torch.Tensor, tau: float, w: float) -> torch.Tensor:
    """Dhariwal & Nichol 2021: one denoiser, and the gradient of a classifier that knows noised data."""
    x = x.detach().requires_grad_()
    chances = torch.stack([c.noised(1.0, tau**0.5).log_prob(x) for c in classes], 1).log_softmax(1)
    return score(everything, x.detach(), tau) + w * torch.autograd.grad(chances[:, 0].sum(), x)[0]


x = 2 * torch.randn(100, 2, dtype=torch.float64)
difference = max((classifier_free(x, tau, 4.0) - classifier(x, tau, 4.0)).abs().max().item() for tau in (0.01, 0.3, 10.0))
record.number("guidances_difference", difference, 0, 1e-9)

grid = torch.cartesian_prod(*[torch.linspace(-2.5, 2.5, 401, dtype=torch.float64)] * 2)
near = (grid - torch.tensor([0.3, 0.1])).norm(dim=1) < (grid - torch.tensor([-0.7, 0.5])).norm(dim=1)
joint = torch.stack([c.log_prob(grid) for c in classes], 1)
noise = 100 * torch.randn(4000, 2, dtype=torch.float64)
taus, pictures = torch.cat([torch.logspace(4, -4, 120, dtype=torch.float64), torch.zeros(1).double()]).tolist(), {}
for weight in (1, 2, 4, 8):
    sharp = (everything.log_prob(grid) + weight * joint.log_softmax(1)[:, 0]).softmax(0)
    calls["denoiser"] = 0
    x = pictures[weight] = sample(lambda x, tau, weight=weight: classifier_free(x, tau, weight), noise, noisy=False)
    evaluations = calls["denoiser"]
    is_near = (x - torch.tensor([0.3, 0.1])).norm(dim=1) < (x - torch.tensor([-0.7, 0.5])).norm(dim=1)
    record.number(f"near_share_sharpened_{weight}", 100 * sharp[near].sum())
    record.number(f"near_share_{weight}", share := 100 * is_near.double().mean().item(), machine=0.05 + 0.01 * share)
    chances = torch.stack([c.log_prob(x) for c in classes], 1).softmax(1)
    record.number(f"right_class_{weight}", 100 * chances[:, 0].mean(), machine=0.1)
    far = grid[~near], sharp[~near] / sharp[~near].sum()
    record.number(f"far_std_sharpened_{weight}", (((far[0] - far[1] @ far[0]).square().sum(1) @ far[1]) / 2).sqrt())
    record.number(f"far_std_{weight}", x[~is_near].var(0).mean().sqrt(), machine=0.001)
    record.number(f"loglik_{weight}", classes[0].log_prob(x).mean(), machine=0.01)
own = record.number("loglik_own", classes[0].log_prob(classes[0].sample(100_000)).mean(), machine=0.01)
found = {name: number["value"] for name, number in record.numbers.items()}
assert found["near_share_4"] < 2 and found["near_share_sharpened_8"] > 30 and found["loglik_8"] < own - 2
assert all(found[f"far_std_{a}"] > found[f"far_std_{b}"] + 0.01 for a, b in ((1, 2), (2, 4), (4, 8)))
# The cost: Heun's method asks twice a step, and classifier-free guidance twice as often
record.number("steps", len(taus) - 1)
record.number("calls_classifier_free", evaluations, 2 * 2 * (len(taus) - 1), 0)
calls["denoiser"] = 0
x = sample(lambda x, tau: classifier(x, tau, 8.0), noise[:500], noisy=False)
record.number("calls_classifier", calls["denoiser"], evaluations / 2, 0)
record.number("guided_difference", (x - pictures[8][:500]).abs().max(), 0, 1e-6)

# %%
figure, axes = plt.subplot_mosaic([[0, 1], [2, 3]], figsize=(9, 6.6), layout="constrained")
for axis, weight, seen in zip(axes.values(), (1, 2, 8), ("class 0", "one blob fades", "only the far blob"), strict=False):
    for k, c in enumerate(classes):
        axis.scatter(*c.sample(300).T, s=2, color=("C0", "C1", "C2")[k], alpha=0.4, label=f"class {k}")
    axis.scatter(*pictures[weight][:400].T, s=2, color="black", label="guided to class 0")
    axis.set(xlim=(-1.6, 1.5), ylim=(-1.5, 1.3), xlabel="$x_1$", ylabel="$x_2$", title=f"Weight {weight}: {seen}")
axes[0].legend(markerscale=4, loc="upper right")
for name, variance in (("sharpened", sharpened_variance), ("SDE", sde_variance), ("ODE", ode_variance)):
    axes[3].semilogy(*zip(*[(w, variance(w) ** 0.5) for w in torch.linspace(1, 6, 51).tolist()], strict=True), label=name)
axes[3].plot([w, w, w], [right.std(), by_sde.std(), by_ode.std()], "k.", label="sampled")
axes[3].set(xlabel="guidance weight", ylabel="standard deviation", title="What comes out depends on the sampler")
axes[3].legend()
record.figure(figure)
record.save()
