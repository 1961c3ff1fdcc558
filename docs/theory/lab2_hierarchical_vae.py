# %% [markdown]
# # Lab 2: latent variable models of the same data, with the same number of parameters
# Two VAEs of two levels (bottom-up, Ladder), two of one (one has an inverse autoregressive flow), and a diffusion model. The
# data's density is known, so that each bound, in nats, stands beside the entropy. The chapter is 2-hierarchical-vae.md.

# %%
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from diffusers import DDPMScheduler
from labkit import Mixture, Record
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from tinyldm.process.bound import step_bits
from tinyldm.process.discrete_vp import DiscreteVP

DIM, BOTTOM, TOP, STEPS, BATCH = 8, 4, 2, 1000, 256
record = Record("2-hierarchical-vae")
torch.manual_seed(0)
groups, within = 1.2 * torch.randn(3, 1, DIM), 0.6 * torch.randn(3, 3, DIM)
data = Mixture(torch.full((9,), 1 / 9), (groups + within).flatten(0, 1), torch.full((9, DIM), 0.5**2))
held_out, standard = data.sample(10_000), Normal(0.0, 1.0)
entropy = record.number("entropy", -data.log_prob(data.sample(200_000)).mean(), machine=0.005)
harder = -data.log_prob(held_out).mean().item() - entropy  # than average are the held-out points; taken off from each bound


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(*[part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())][:-1])


def normal(parameters: torch.Tensor) -> Normal:
    mean, log_std = parameters.chunk(2, dim=1)
    return Normal(mean, log_std.clamp(-5, 5).exp(), validate_args=False)


# %% Two levels: p(z2) p(z1 | z2) p(x | z1)
class TwoLevels(nn.Module):
    """Terms of the bound: -log p(x | z1), KL of z1, KL of z2, each (B,)."""

    def __init__(self, ladder: bool, width: int):
        super().__init__()
        self.ladder = ladder
        self.up_1, self.head_1 = mlp(DIM, width, width), nn.Linear(width, 2 * BOTTOM)
        self.up_2 = mlp(width if ladder else BOTTOM, width, 2 * TOP)
        self.down_1, self.decoder = mlp(TOP, width, 2 * BOTTOM), mlp(BOTTOM, width, 2 * DIM)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        hidden = F.silu(self.up_1(x))
        q1 = normal(self.head_1(hidden))
        z1 = q1.rsample()  # bottom-up: q(z1 | x) q(z2 | z1); in the Ladder VAE the top level is inferred first
        q2 = normal(self.up_2(hidden if self.ladder else z1))
        p1 = normal(self.down_1(q2.rsample()))
        if self.ladder:  # what goes down is merged with what came up
            q1 = merge(q1, p1)
            z1 = q1.rsample()
        return [-normal(self.decoder(z1)).log_prob(x).sum(1), kl_divergence(q1, p1).sum(1), kl_divergence(q2, standard).sum(1)]


def merge(a: Normal, b: Normal) -> Normal:
    """The product of two normals: precisions add up (Sonderby et al. 2016, section 2)."""
    precision = a.scale**-2 + b.scale**-2
    return Normal((a.loc / a.scale**2 + b.loc / b.scale**2) / precision, precision**-0.5)


# %% One level with a flow (Kingma et al. 2016)
class Flow(nn.Module):
    """One step, z_i <- gate_i z_i + (1 - gate_i) m_i, where gate_i and m_i depend on z_1..z_{i-1} and on the context."""

    def __init__(self, dim: int, width: int, context: int):
        super().__init__()
        ranks, hidden = torch.arange(dim), torch.arange(width) % (dim - 1)
        self.enter, self.leave, self.context = nn.Linear(dim, width), nn.Linear(width, 2 * dim), nn.Linear(context, width)
        self.register_buffer("sees", (hidden[:, None] >= ranks).float())
        self.register_buffer("later", (ranks.repeat(2)[:, None] > hidden).float())

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = F.silu(F.linear(z, self.enter.weight * self.sees, self.enter.bias) + self.context(context))
        mean, gate = F.linear(hidden, self.leave.weight * self.later, self.leave.bias).chunk(2, dim=1)
        gate = (gate + 1.5).sigmoid()  # starts near the identity
        return (gate * z + (1 - gate) * mean).flip(1), gate.log().sum(1)


class FlowPosterior(nn.Module):
    """Terms of the bound: -log p(x | z), KL of z by its sample."""

    def __init__(self, flows: int, width: int, dim: int = TOP + BOTTOM):
        super().__init__()
        self.encoder, self.head = mlp(DIM, width, width), nn.Linear(width, 2 * dim)
        self.flows, self.decoder = nn.ModuleList(Flow(dim, 24, width) for _ in range(flows)), mlp(dim, width, 2 * DIM)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        hidden = F.silu(self.encoder(x))
        q = normal(self.head(hidden))
        z = q.rsample()
        log_q = q.log_prob(z).sum(1)
        for flow in self.flows:
            z, log_determinant = flow(z, hidden)
            log_q = log_q - log_determinant
        return [-normal(self.decoder(z)).log_prob(x).sum(1), log_q - standard.log_prob(z).sum(1)]


# %% Diffusion, with log SNR linear in time: all steps then have the same weight (Kingma et al. 2021, section 4)
HIGH, LOW, T, LAST = 6.0, -8.0, 1000, 1 / (1 + math.exp(8.0))  # LAST: abar at T


class Diffusion(nn.Module):
    """Terms of the bound: L_0, the sum of the L_t (estimated by one of them), L_T."""

    def __init__(self, width: int):
        super().__init__()
        self.network = mlp(DIM + 8, width, width, DIM)

    def eps(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        angles = log_snr / 8 * torch.tensor([1, 2, 4, 8])
        return self.network(torch.cat([x, angles.sin(), angles.cos()], 1))

    def forward(self, x: torch.Tensor, t: torch.Tensor | None = None) -> list[torch.Tensor]:
        if t is None:  # 1..T, spread evenly over the batch
            t = (((torch.randperm(len(x)) + torch.rand(1)) / len(x) % 1) * T).floor() + 1
        log_snr, noise = HIGH + (LOW - HIGH) * t[:, None] / T, torch.randn_like(x)
        noised = log_snr.sigmoid().sqrt() * x + (-log_snr).sigmoid().sqrt() * noise
        step = 0.5 * T * math.expm1((HIGH - LOW) / T) * (noise - self.eps(noised, log_snr)).square().sum(1)
        first = torch.full_like(step, 0.5 * DIM * (1 + math.log(2 * math.pi) - HIGH))  # -log N(x; x_0 / scale, 1 / SNR)
        return [first, step, kl_divergence(Normal(LAST**0.5 * x, (1 - LAST) ** 0.5), standard).sum(1)]


# %% Training: the same steps, batches and optimizer for all
def train(model: nn.Module, warm_up: int = 0) -> tuple[list[float], list[list[float]]]:
    """The terms of the bound on held-out points, and on the way. warm_up: steps in which the KLs' weight grows to 1."""
    optimizer, curve = torch.optim.Adam(model.parameters(), fused=True), []
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, STEPS)
    for step in range(STEPS):
        terms = model(data.sample(BATCH))
        (terms[0] + min(1, (step + 1) / (warm_up + 1)) * sum(terms[1:])).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        curve.append([term.mean().item() for term in terms])
    return evaluate(model), curve


@torch.no_grad()
def evaluate(model: nn.Module) -> list[float]:
    steps = range(1, T + 1) if isinstance(model, Diffusion) else []  # all timesteps, each with another twentieth of the points
    terms = [model(held_out[t % 20 :: 20], torch.full((500,), float(t))) for t in steps] or [model(held_out)]
    return [sum(part.mean().item() for part in column) / len(terms) for column in zip(*terms, strict=True)]


models = {"plain": (TwoLevels, False, 46, 0), "plain_warm": (TwoLevels, False, 46, 400), "ladder": (TwoLevels, True, 37, 0)}
models |= {"ladder_warm": (TwoLevels, True, 37, 400), "gauss_warm": (FlowPosterior, 0, 50, 400)}
models |= {"flow_warm": (FlowPosterior, 2, 31, 400), "diffusion": (Diffusion, 58, 0)}
bounds, curves, tops = {}, {}, {}
for name, (kind, *sizes, warm_up) in models.items():
    trained = [kind(*sizes) for _ in range(3 if name in ("plain", "plain_warm", "ladder", "diffusion") else 1)]
    record.number(f"{name}_parameters", sum(p.numel() for p in trained[0].parameters()), 4850, 80)
    terms, curves[name] = map(torch.tensor, zip(*[train(model, warm_up) for model in trained], strict=True))  # of each run
    bound, tops[name] = terms.sum(1) - harder, terms[:, -1]
    bounds[name] = record.number(f"{name}_bound", bound.mean(), machine=0.2)
    record.number(f"{name}_spread", bound.max() - bound.min(), machine=0.2)  # 0 of one run
    for i, term in enumerate(terms.mean(0).tolist()):  # how the KLs are shared out differs much between seeds, so machines
        allowed = min(1.0, 0.4 + 0.3 * term) if term > 0.05 else 0.02 if name == "plain" else 0.001
        record.number(f"{name}_term_{i}", term, machine=allowed)
exact = Diffusion(1)  # with the denoiser that makes no error: what is left is the price of T steps of fixed width
exact.eps = lambda x, t: -(-t).sigmoid().sqrt() * data.noised(t[0, 0].sigmoid().sqrt(), (-t[0, 0]).sigmoid().sqrt()).score(x)
bounds["exact"] = record.number("exact_bound", sum(evaluate(exact)) - harder, machine=0.05)
record.number("ladder_collapsed", (tops["ladder"] < 0.1).sum(), machine=1)
assert tops["plain"].max() < 0.1 < tops["plain_warm"].mean() and tops["ladder"].max() > 0.5, "what the chapter says"
assert entropy < bounds["exact"] < bounds["ladder"] < bounds["diffusion"] and bounds["plain"] < bounds["plain_warm"], "and here"

# %% Checks: the merge, the flow's determinant, the diffusion model's L_t by the project's code
grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
product = (Normal(0.3, 0.7).log_prob(grid) + Normal(-1.0, 0.4).log_prob(grid)).softmax(0)
record.number("merged_mean", merge(Normal(0.3, 0.7), Normal(-1.0, 0.4)).loc, product @ grid, 1e-5)
step, z, context = Flow(TOP + BOTTOM, 24, 31), torch.randn(TOP + BOTTOM), torch.randn(1, 31)
jacobian = torch.autograd.functional.jacobian(lambda z: step(z[None], context)[0][0], z)
record.number("flow_log_determinant", step(z[None], context)[1], jacobian.slogdet()[1], 1e-4, machine=0.001)
abar = torch.cat([torch.ones(1), torch.linspace(HIGH, LOW, T + 1).sigmoid()]).double()
process = DiscreteVP(DDPMScheduler(T + 1, trained_betas=(1 - abar[1:] / abar[:-1]).numpy(), clip_sample=False))
x, t, noise = held_out[:1000], torch.full((1000,), T // 2), torch.randn(1000, DIM)
predicted = trained[0].eps(x_t := process.scheduler.add_noise(x, noise, t), torch.full((1000, 1), (HIGH + LOW) / 2)).detach()
ours = 0.5 * math.expm1((HIGH - LOW) / T) * (noise - predicted).square().sum(1).mean()
theirs = step_bits(process, *(image[..., None, None] for image in (predicted, x, x_t)), t).mean() * math.log(2) * DIM
record.number("step_by_project", ours, theirs, 1e-3 * theirs, machine=0.0005)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
shown = {name: name.replace("plain", "bottom-up").replace("_warm", ", warm-up") for name in bounds}
axes[0].barh([*shown.values()], [value - entropy for value in bounds.values()])
axes[0].set(xlabel="bound minus entropy, nats", title="The Ladder VAE loses least of those trained")
for name, line in (("plain", "-"), ("plain_warm", ":"), ("ladder", "-"), ("ladder_warm", ":")):
    axes[1].plot(range(10, STEPS, 20), curves[name].mean(0)[:, 2].view(-1, 20).mean(1), line, label=shown[name])
axes[1].set(xlabel="training step", ylabel="KL of $z_2$, nats", ylim=(0, 2.5), title="Bottom-up: the upper level collapses")
axes[1].legend()
record.figure(figure)
record.save()
