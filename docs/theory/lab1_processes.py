# %% [markdown]
# # Lab 1, second part: DDPM's chain as one of the product's processes
# lab1_ddpm.py writes the chain by hand. Here its step is that of any process x_t = alpha_t x_0 + sigma_t eps, and the product
# draws with all of its processes, with a network that makes no error (exact_model.py). The chapter is 1-ddpm.md.

# %%
import torch
from exact_model import KINDS, exact_model, exact_process
from labkit import Record, sliced_distance, three_blobs

from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing.sampling import denoise
from tinyldm.process.solvers import SOLVERS, Level, Path

STEPS, COUNT, RUNS = 20, 20_000, 5
record, data = Record("1-ddpm-processes"), three_blobs()
torch.manual_seed(0)

# %% The product's vp is the chain of lab 1
process, beta = exact_process("vp"), torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
abar = torch.cumprod(1 - beta, 0)
record.number(
    "abar_difference", (process.levels(torch.arange(1000), torch.float64)[0].flatten() - abar.sqrt()).abs().max(), 0, 1e-6
)

# %% Its ancestral step, written for any alpha and sigma, is q(x_s | x_t, x_0) of the chain (Ho et al. 2020, equation 7)
x_0, x_t, z = torch.randn(3, 1000, 2, dtype=torch.float64)
now, before, b = abar[500], abar[499], beta[500]
path = Path(process, process, 1)
path.levels = [Level(before.sqrt().item(), (1 - before).sqrt().item())]
path.levels.insert(0, Level(now.sqrt().item(), (1 - now).sqrt().item()))
step = SOLVERS["ddpm"](lambda x, level: (x_0, (x - level.alpha * x_0) / level.sigma), path, x_t, lambda: z, SamplerSettings())
mean = before.sqrt() * b / (1 - now) * x_0 + (1 - b).sqrt() * (1 - before) / (1 - now) * x_t
difference = (step - mean - ((1 - before) / (1 - now) * b).sqrt() * z).abs().max()
record.number("step_difference", difference, 0, 1e-12, machine=1e-14)

# %% Twenty evaluations of the network in each process, with new noise in each step and without
for kind in KINDS:
    model = exact_model(kind, data)
    for name in ("ddpm", model.process.deterministic):
        settings = SamplerSettings(scheduler=name, num_inference_steps=STEPS)
        noises = torch.randn(RUNS, COUNT, 2, 1, 1, dtype=torch.float64)
        distances = [sliced_distance(denoise(model, noise, settings).flatten(1), data) for noise in noises]
        way = "ancestral" if name == "ddpm" else "deterministic"
        record.number(f"{kind}_{way}".replace("-", "_"), sum(distances) / RUNS, machine=0.002)

# %%
record.save()
