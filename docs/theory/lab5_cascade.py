# %% [markdown]
# # Lab 5: a cascade, and how much noise its condition should have
# toyfaces at 8 and at 16 pixels. The first stage is the diffusion model whose denoiser is exact for a mixture of normals that was
# fitted to the small faces: a generator with errors, and no training. The second stage, a small network, draws the large face from a
# noisy small one, and knows how noisy it is. The chapter is 5-cascades.md.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DDIMScheduler
from labkit import Mixture, Record
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.nn import functional as F
from torchmetrics.image.fid import _compute_fid

from tinyldm import toyfaces

SMALL, LARGE, TRAIN, COUNT, STEPS, BATCH = 8, 16, 3000, 400, 1200, 32
record = Record("5-cascades")
torch.manual_seed(0)


def faces(first: int, count: int) -> torch.Tensor:
    """(count, 3, 16, 16) in [-1, 1]."""
    pictures = [np.asarray(toyfaces.draw(0, first + i, LARGE)) for i in range(count)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


large, held_out = faces(0, TRAIN), faces(toyfaces.SPLITS["validation"][0], 1000)
small = F.avg_pool2d(large, 2)
print("drawn", record.start)
import time; print(time.process_time()-record.start)

# %% The first stage: an exact denoiser for a mixture in the directions of the largest variance
centre = small.flatten(1).mean(0)
_, _, directions = torch.linalg.svd(small.flatten(1) - centre, full_matrices=False)
directions = directions[:40]
code = (small.flatten(1) - centre) @ directions.T
fitted = GaussianMixture(25, covariance_type="diag", max_iter=30, reg_covar=1e-3, random_state=0).fit(code.numpy())
mixture = Mixture(*(torch.tensor(part, dtype=torch.float32) for part in (fitted.weights_, fitted.means_, fitted.covariances_)))
made = (mixture.sample(COUNT) @ directions + centre).view(-1, 3, SMALL, SMALL).clamp(-1, 1)
print("gmm", time.process_time()-record.start)


# %% The second stage
class Second(nn.Module):
    """x_0 (B, 3, 16, 16) from x_t, the noisy small face, log SNR of x_t, and the level of noise in the condition."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(12 + 3, width, 3, padding=1), nn.Conv2d(width, 12, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.time = nn.Sequential(nn.Linear(12, width), nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, condition, t, level):
        angles = torch.stack([t, level], 1)[..., None] * torch.tensor([1.0, 2.0, 4.0]) * math.pi / 2
        shifts = self.time(torch.cat([angles.sin(), angles.cos()], 2).flatten(1)).view(len(x), 3, 2, -1, 1, 1).unbind(1)
        h = self.enter(torch.cat([F.pixel_unshuffle(x, 2), condition], 1))
        for block, shift in zip(self.blocks, shifts, strict=True):
            h = h + block(F.silu(h * (1 + shift[:, 0]) + shift[:, 1]))
        return F.pixel_shuffle(self.leave(F.silu(h)), 2)


def noise(x: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """cos x + sin eps: abar = cos^2 (t pi / 2)."""
    angle = (t * math.pi / 2).view(-1, 1, 1, 1)
    return angle.cos() * x + angle.sin() * eps


network, losses = Second(), []
optimizer = torch.optim.Adam(network.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, STEPS)
for step in range(STEPS):
    index = torch.randint(TRAIN, (BATCH,))
    t, level = torch.rand(BATCH), torch.rand(BATCH)
    condition = noise(small[index], level, torch.randn(BATCH, 3, SMALL, SMALL))
    eps = torch.randn(BATCH, 3, LARGE, LARGE)
    angle = (t * math.pi / 2).view(-1, 1, 1, 1)
    v = network(noise(large[index], t, eps), condition, t, level)
    loss = (v - (angle.cos() * eps - angle.sin() * large[index])).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    losses.append(loss.item())
    if step % 200 == 199: print(step, sum(losses[-200:])/200, time.process_time()-record.start)


@torch.no_grad()
def upsample(condition: torch.Tensor, level: float, steps: int = 12) -> torch.Tensor:
    """DDIM of the second stage, given clean small faces (B, 3, 8, 8), which are noised to `level` first."""
    x = torch.randn(len(condition), 3, LARGE, LARGE)
    levels = torch.full((len(x),), level)
    seen = noise(condition, levels, torch.randn_like(condition))
    for i in range(steps, 0, -1):
        t = torch.full((len(x),), i / steps)
        angle, after = i / steps * math.pi / 2, (i - 1) / steps * math.pi / 2
        v = network(x, seen, t, levels)
        x0, eps = (math.cos(angle) * x - math.sin(angle) * v).clamp(-1, 1), math.sin(angle) * x + math.cos(angle) * v
        x = math.cos(after) * x0 + math.sin(after) * eps
    return x


_, _, axes = torch.linalg.svd(large.flatten(1) - large.flatten(1).mean(0), full_matrices=False)
def frechet(x, y):
    a, b = ((z.flatten(1) @ axes[:100].T).double() for z in (x, y))
    return _compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T)).item()
print("floor", frechet(large[:COUNT], held_out), "floor 2", frechet(large[COUNT:2*COUNT], held_out))
print("first stage blown up", frechet(F.interpolate(made, scale_factor=2), held_out), "true small blown up", frechet(F.interpolate(F.avg_pool2d(large[:COUNT],2), scale_factor=2), held_out))
for level in (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8):
    x, y = upsample(made, level), upsample(small[:COUNT], level)
    print(level, "generated", frechet(x, held_out), "true", frechet(y, held_out), time.process_time()-record.start, flush=True)
