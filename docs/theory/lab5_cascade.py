# %% [markdown]
# # Lab 5: a cascade, and how much noise its condition should have
# toyfaces at 16 and at 32 pixels. A first network draws small faces out of noise, a second one large faces from noisy small
# ones, and is told how noisy they are. Both are trained here, for seconds. The chapter is 5-cascades.md.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DDIMScheduler
from labkit import Record
from torch import nn
from torch.nn import functional as F

from tinyldm.data import toyfaces

SMALL, LARGE, TRAIN, COUNT, BATCH, WIDTH, BLOCKS = 16, 32, 4000, 400, 32, 64, 4
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
record = Record("5-cascades")
torch.manual_seed(0)


def faces(first: int, count: int) -> torch.Tensor:
    """(count, 3, 32, 32) in [-1, 1]."""
    pictures = [np.asarray(toyfaces.draw(0, first + i, LARGE)) for i in range(count)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


large, held_out = faces(0, TRAIN), faces(toyfaces.SPLITS["validation"][0], 1000)
small = F.avg_pool2d(large, 2)


# %% The forward process of both stages, and of the noise in the condition: abar = cos^2, at levels from 0 to 1
def angle(level: torch.Tensor) -> torch.Tensor:
    return (level * math.pi / 2).view(-1, 1, 1, 1)


def noise(x: torch.Tensor, level: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """sqrt(abar) x + sqrt(1 - abar) eps."""
    return angle(level).cos() * x + angle(level).sin() * eps


# %% Both networks: x_0 from x_t, its level, and for the second stage the noisy small face and the level of that
class Denoiser(nn.Module):
    """Convolutions over patches at 8 x 8. It predicts x_0, which is simpler than the noise of a whole patch."""

    def __init__(self, patch: int, condition: int):
        super().__init__()
        self.patch, size = patch, 3 * patch**2
        self.enter, self.leave = nn.Conv2d(size + condition, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, size, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(BLOCKS))
        self.levels = nn.Sequential(nn.Linear(12, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2 * BLOCKS * WIDTH))
        self.place = nn.Parameter(torch.zeros(1, WIDTH, 8, 8))
        nn.init.zeros_(self.leave.weight)

    def forward(self, x, t, condition=None, level=None):
        angles = torch.stack([t, torch.zeros_like(t) if level is None else level], 1)[..., None]
        angles = angles * torch.tensor([1.0, 2.0, 4.0]) * math.pi / 2
        shifts = self.levels(torch.cat([angles.sin(), angles.cos()], 2).flatten(1)).view(len(x), BLOCKS, 2, -1, 1, 1)
        h = F.pixel_unshuffle(x, self.patch)
        h = self.enter(h if condition is None else torch.cat([h, F.pixel_unshuffle(condition, 2)], 1)) + self.place
        for block, shift in zip(self.blocks, shifts.unbind(1), strict=True):
            h = h + block(F.silu(h * (1 + shift[:, 0]) + shift[:, 1]))
        return F.pixel_shuffle(self.leave(F.silu(h)), self.patch)


def train(network: Denoiser, images: torch.Tensor, conditions: torch.Tensor | None, steps: int) -> None:
    """The level in the condition is drawn anew each time: one network learns all levels."""
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        index, t, level = torch.randint(TRAIN, (BATCH,)), torch.rand(BATCH), torch.rand(BATCH)
        x, seen = images[index], ()
        if conditions is not None:
            seen = noise(conditions[index], level, torch.randn_like(conditions[index])), level
        made = network(noise(x, t, torch.randn_like(x)), t, *seen)
        loss = ((made - x).square() / (angle(t).sin().square() + 0.05)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


first, second = Denoiser(2, 0), Denoiser(4, 12)
record.number("parameters", sum(p.numel() for network in (first, second) for p in network.parameters()))
train(first, small, None, 350)
train(second, large, small, 550)


# %% Sampling: DDIM. The states on the way are what a truncated first stage hands on
@torch.no_grad()
def sample(network: Denoiser, x: torch.Tensor, steps: int, *seen: torch.Tensor) -> dict[float, torch.Tensor]:
    """Level -> the images at that level, from 1 (the noise x) down to 0."""
    states = {1.0: x}
    for i in range(steps, 0, -1):
        now, after = i / steps * math.pi / 2, (i - 1) / steps * math.pi / 2
        x0 = network(x, torch.full((len(x),), i / steps), *seen).clamp(-1, 1)
        x = math.cos(after) * x0 + math.sin(after) * (x - math.cos(now) * x0) / math.sin(now)
        states[round((i - 1) / steps, 6)] = x
    return states


abar = torch.cos(torch.arange(20, 0, -1, dtype=torch.float64) / 20 * math.pi / 2).square().flip(0).clamp(min=1e-18)
betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
scheduler = DDIMScheduler(20, trained_betas=betas.numpy(), prediction_type="sample", clip_sample=True)
scheduler.alphas_cumprod = abar  # its own table is float32
scheduler.set_timesteps(20)
start = torch.randn(COUNT, 3, SMALL, SMALL)
states = sample(first, start, 20)
x, made = start[:8].double(), states[0.0]
with torch.no_grad():
    for t in scheduler.timesteps.tolist():
        x0 = first(x.float(), torch.full((8,), (t + 1) / 20)).double()
        x = scheduler.step(x0, t, x, use_clipped_model_output=True).prev_sample  # eps of the clipped x_0, as above
record.number("ddim_difference", (x - states[0.0][:8]).abs().max(), 0, 1e-4)

# %% The distance: Frechet's, of the 100 directions in which faces vary most, each scaled to variance 1, or not
_, spreads, directions = torch.svd_lowrank(large.flatten(1) - large.flatten(1).mean(0), 100, niter=4)


def frechet(mean, covariance, other_mean, other_covariance) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2) (Dowson & Landau 1982): FID's formula (Heusel et al. 2017)."""
    root = torch.linalg.eigvals(covariance @ other_covariance).real.clamp(min=0).sqrt().sum()
    return float((mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * root)


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mean(0), torch.cov(x.T)


def distance(x: torch.Tensor, scaled: bool = True) -> float:
    """Of images (N, 3, 32, 32) from held-out faces."""
    scale = spreads / TRAIN**0.5 if scaled else 1
    return frechet(*(part for y in (x, held_out) for part in moments((y.flatten(1) @ directions / scale).double())))


record.number("floor", distance(large[:COUNT]), machine=0.02)
record.number("enlarged", distance(F.interpolate(made, scale_factor=2, mode="bilinear")), machine=0.5)

# %% The mismatch of the conditions: noise brings real and generated small faces together, as the closed form says
axes = torch.linalg.qr(torch.randn(3 * SMALL**2, 40, generator=torch.Generator().manual_seed(1))).Q.double()
(m, c), (n, d) = (moments(x.flatten(1).double() @ axes) for x in (small, made))
for level in LEVELS[:-1]:
    cos, sin = math.cos(level * math.pi / 2), math.sin(level * math.pi / 2)
    exact = frechet(cos * m, cos**2 * c + sin**2 * torch.eye(40), cos * n, cos**2 * d + sin**2 * torch.eye(40))
    record.number(f"mismatch_{100 * level:.0f}", exact, machine=0.1 * exact)
    if level == 0.45:
        codes = (small.repeat(20, 1, 1, 1).flatten(1).double() @ axes, made.repeat(200, 1, 1, 1).flatten(1).double() @ axes)
        x, y = (moments(cos * z + sin * torch.randn_like(z)) for z in codes)  # noise in orthogonal directions is noise again
        record.number("mismatch_45_sampled", frechet(*x, *y), exact, 0.1 * exact, machine=0.1 * exact)


# %% The cascade at each level: of generated small faces, of real ones, and truncated
def enlarge(seen: torch.Tensor, level: float) -> torch.Tensor:
    return sample(second, noise_large, 10, seen, torch.full((COUNT,), level))[0.0]


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Of distance(x) - distance(y), whose images belong to each other in pairs: the jackknife over ten groups."""
    changes = torch.tensor([distance(x[k]) - distance(y[k]) for k in (torch.arange(COUNT) % 10 != i for i in range(10))])
    return ((changes - changes.mean()).square().sum() * 9 / 10).sqrt().item()


noise_large, noise_small = torch.randn(COUNT, 3, LARGE, LARGE), torch.randn_like(made)
drawn, reals, curves = {}, {}, {"generated": {}, "pixels": {}, "real": {}, "truncated": {}}
for level in LEVELS:
    levels, name = torch.full((COUNT,), level), f"{100 * level:.0f}"
    record.number(f"level_{name}", level)
    drawn[level] = enlarge(noise(made, levels, noise_small), level)
    curves["generated"][level] = record.number(f"generated_{name}", distance(drawn[level]), machine=0.5)
    curves["pixels"][level] = record.number(f"pixels_{name}", distance(drawn[level], scaled=False), machine=1.5)
    record.number(f"change_{name}", curves["generated"][level] - curves["generated"][0.0], machine=0.05)
    record.number(f"change_error_{name}", error(drawn[level], drawn[0.0]), machine=0.05)
    if level in (0.0, 0.2, 0.45, 0.6):
        reals[level] = enlarge(noise(small[:COUNT], levels, noise_small), level)
        curves["real"][level] = record.number(f"real_{name}", distance(reals[level]), machine=0.5)
        curves["truncated"][level] = record.number(f"truncated_{name}", distance(enlarge(states[level], level)), machine=0.5)
best = {kind: record.number(f"best_{kind}", min(curve, key=curve.get)) for kind, curve in curves.items()}
record.number("pixels_fall", 1 - curves["pixels"][best["pixels"]] / curves["pixels"][0.0], machine=0.003)
# What the chapter says of the table: too little and too much noise hurt, real small faces want little, truncated is worse
assert 0 < best["pixels"] < best["generated"] and curves["generated"][0.0] < curves["generated"][1.0]
assert 0 < best["real"] < best["generated"] and curves["real"][0.0] < curves["real"][0.45] < curves["real"][0.6]
assert all(curves["truncated"][level] > curves["generated"][level] + 0.5 for level in (0.2, 0.45, 0.6))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 1.1))
for name, marker in (("generated", "o-"), ("truncated", "s:"), ("real", "^--")):
    left.plot(curves[name].keys(), curves[name].values(), marker, label=f"small faces: {name}")
left.set(xlabel="noise in the condition", ylabel="Frechet distance, large faces", title="Some noise helps, much hurts")
left.legend()
rows = [F.interpolate(made, scale_factor=2), *(drawn[level] for level in (0.0, 0.45, 1.0)), reals[0.2], large]
picture = torch.cat([torch.cat(list(row[:10]), 2) for row in rows], 1).permute(1, 2, 0)
right.imshow(((picture + 1) / 2).clamp(0, 1))
labels = ["first stage", "level 0", "0.45", "1", "real small faces,\nlevel 0.2", "their large ones"]
right.set(title="At level 1 it draws alone", xticks=[], yticks=[LARGE * (i + 0.5) for i in range(6)], yticklabels=labels)
record.figure(figure)
record.save()
