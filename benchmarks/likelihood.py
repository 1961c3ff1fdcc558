"""The likelihood of evaluate.py against one that is computed another way, for a model of small images.

    python -m benchmarks.likelihood --model runs/digits-ddpm      # minutes on two CPU cores

Both follow the probability-flow ODE of the same images, with the same noise in their last bit. The reference has other

- variables: y = x_t / alpha by log(sigma / alpha), where dy / d log s = s eps, and d log p(y) = -div(s eps) d log s;
- a solver: Runge-Kutta of order 4 with fixed steps. Twice the steps show its error;
- a divergence: by central differences in float64, without automatic differentiation.

A model with timesteps (`vp`) also has the variational bound. For a fair comparison the ODE gets the last step of the bound,
from x_1 to the pixels: -log2 P(x_0) <= E_q[log2 q(x_1 | x_0) - log2 p_ODE(x_1) - log2 P(x_0 | x_1)].
"""

import copy
import math
from typing import Any

import torch
from jsonargparse import auto_cli
from tqdm.auto import tqdm

from benchmarks.measure import RESULTS, data_of, held_out, record_model, use_all_cores
from tinyldm.data.images import to_float
from tinyldm.drawing import likelihood
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model
from tinyldm.process.bound import BIN, prior_bits, step_bits
from tinyldm.process.discrete_vp import DiscreteVP

SHIFT = 1e-5  # of the central differences


def main(
    model: str = "runs/digits-ddpm", images: int = 16, steps: int = 48, bound_images: int = 128, output: str = str(RESULTS)
) -> None:
    """Run the benchmark.

    Args:
        model: a run of train_ddpm.py. Its labels are left out: the likelihood is that without labels.
        images: held-out images.
        steps: steps of the reference.
        bound_images: held-out images for the comparison with the bound.
        output: folder for the JSON file, with a row for each model.
    """
    use_all_cores()
    run, part, seed = data_of(model)
    loaded = load_model(model)
    pixels = to_float(held_out(part, seed, max(images, bound_images))[:, : loaded.channels])
    x0 = pixels[:images].double()
    x0 += BIN * (2 * torch.rand(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
    row = {"images": len(x0), "dimensions": x0[0].numel(), "steps": steps, **compare(loaded, x0, steps)}
    if isinstance(loaded.process, DiscreteVP):
        row |= beside_the_bound(loaded, pixels[:bound_images])
    record_model("likelihood", run.name, row, output, small=steps < 20)


def compare(model: Model, x0: torch.Tensor, steps: int) -> dict[str, float]:
    """Mean bits per dimension of the images x0 (B, C, H, W): the product's two divergences, and the reference."""
    random = torch.Generator().manual_seed(1)
    probes = 2.0 * torch.randint(0, 2, (1, *x0.shape), generator=random) - 1
    ways = {"hutchinson": likelihood.estimated_divergence(probes), "exact": likelihood.exact_divergence}
    bits, evaluations = {}, 0
    for name, divergence in ways.items():
        log_p, evaluations = likelihood.log_density(model, x0, 1e-5, divergence, model.named_labels(len(x0)))
        bits[name] = likelihood.bits_per_dimension(log_p, x0[0].numel())
    half, whole = (likelihood.bits_per_dimension(reference(model, x0, count), x0[0].numel()) for count in (steps // 2, steps))
    return {
        **{name: float(found.mean()) for name, found in bits.items()},
        "reference": float(whole.mean()),
        "reference_half_the_steps": float(half.mean()),
        "largest_difference": float((bits["exact"] - whole).abs().max()),
        "hutchinson_deviation": float((bits["hutchinson"] - bits["exact"]).std()),
        "evaluations": evaluations,
    }


def beside_the_bound(model: Model, x0: torch.Tensor) -> dict[str, Any]:
    """Mean bits per dimension of the images x0 (B, C, H, W), of 256 values: the bound for each variance of the reverse steps,
    and the ODE with the same last step. The differences have standard errors, since all share the images and x_1."""
    assert isinstance(model.process, DiscreteVP)
    random, condition, channels = torch.Generator().manual_seed(2), model.named_labels(len(x0)), x0.shape[1]
    ways = {kind: copy.copy(model.process) for kind in ("fixed_small", "fixed_large")}
    for kind, process in ways.items():
        process.variance, process.learns_variance = kind, False
    if model.process.learns_variance:
        ways["learned_range"] = model.process
    first, decoder = x0, torch.zeros(len(x0))
    chains = {kind: prior_bits(process, x0) for kind, process in ways.items()}
    for t in tqdm(range(model.process.steps), "bound", leave=False):
        time = torch.full((len(x0),), t)
        x_t = model.process.noisy(x0, torch.randn(x0.shape, generator=random), time)
        with torch.no_grad():
            predicted = model.denoiser(x_t, time, condition)
        for kind, process in ways.items():
            bits = step_bits(process, predicted if process.learns_variance else predicted[:, :channels], x0, x_t, time)
            if t == 0:
                first, decoder = x_t, bits  # the last way's, for all of them: only the chain is compared
            else:
                chains[kind] = chains[kind] + bits
    angle, dimensions = likelihood.ends(model)[0], x0[0].numel()
    probes = 2.0 * torch.randint(0, 2, (1, *x0.shape), generator=random) - 1
    divergence = likelihood.estimated_divergence(probes)
    log_p, _ = likelihood.log_density(model, first / math.cos(angle), 1e-5, divergence, condition)
    log_q = -math.log(math.sin(angle)) - 0.5 * math.log(2 * math.pi * math.e)  # a dimension of q(x_1 | x_0), on average
    ode = (log_q - (log_p / dimensions - math.log(math.cos(angle)))) / math.log(2)
    gaps = {kind: chain - ode for kind, chain in chains.items()}
    return {
        "bound_images": len(x0),
        "ode": float((ode + decoder).mean()),
        "bounds": {kind: float((chain + decoder).mean()) for kind, chain in chains.items()},
        "bounds_minus_ode": {kind: [float(gap.mean()), float(gap.std() / math.sqrt(len(gap)))] for kind, gap in gaps.items()},
    }


@torch.no_grad()
def reference(model: Model, x0: torch.Tensor, steps: int) -> torch.Tensor:
    """log p(x_0) of each image in nats, (B,)."""
    double = copy.deepcopy(model.denoiser).double()
    first, last = (math.log(end) for end in model.process.ratio_ends())

    def estimate(y: torch.Tensor, log_s: float) -> torch.Tensor:
        place = model.process.time_of(torch.tensor([math.exp(log_s)], dtype=torch.float64))
        x_t = model.process.levels(place, torch.float64)[0] * y
        inputs = model.process.inputs(x_t, place.expand(len(y)))
        predicted = double(*inputs, model.named_labels(len(y))).double()[:, : y.shape[1]]
        return math.exp(log_s) * model.process.to_x0_and_noise(x_t, predicted, float(place), clip=False)[1]

    def derivative(y: torch.Tensor, log_s: float) -> tuple[torch.Tensor, torch.Tensor]:
        shifts = SHIFT * torch.eye(y[0].numel(), dtype=torch.float64).view(-1, *y.shape[1:])
        traces = []
        for one in y:
            ahead, behind = (estimate(one + sign * shifts, log_s).flatten(1).diagonal() for sign in (1, -1))
            traces.append(((ahead - behind) / (2 * SHIFT)).sum())
        return estimate(y, log_s), -torch.stack(traces)

    y, log_ratio, size = x0, x0.new_zeros(len(x0)), (last - first) / steps
    for number in tqdm(range(steps), f"reference, {steps} steps", leave=False):
        at = first + number * size
        one = derivative(y, at)
        two = derivative(y + size / 2 * one[0], at + size / 2)
        three = derivative(y + size / 2 * two[0], at + size / 2)
        four = derivative(y + size * three[0], at + size)
        y, log_ratio = (
            before + size / 6 * (a + 2 * b + 2 * c + d)
            for before, a, b, c, d in zip((y, log_ratio), one, two, three, four, strict=True)
        )
    deviation = math.sqrt(1 + math.exp(2 * last))  # of y at the end
    normal = -0.5 * ((y / deviation).square() + math.log(2 * math.pi)).flatten(1).sum(1) - x0[0].numel() * math.log(deviation)
    return normal - log_ratio


if __name__ == "__main__":
    auto_cli(main)
