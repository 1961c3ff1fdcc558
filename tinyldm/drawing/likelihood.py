"""The exact likelihood of images under a model, and the noise that belongs to an image, by the probability-flow ODE.

With z = x_t / sqrt(alpha^2 + sigma^2) and the angle phi = arctan(sigma / alpha), every process has the same ODE (Salimans & Ho
2022, appendix D):

    dz / dphi = v(z, phi) = cos(phi) eps - sin(phi) x_0

Along it the density changes by the divergence of v (Song et al. 2021, equation 39):

    log p(z at phi_0) = log p(z at phi_1) + integral of div v from phi_0 to phi_1

At phi_1, the most noise that the network knows, z is standard normal. At phi_0, the least noise, it stands for the image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp

from tinyldm.data.batch import UNCONDITIONAL, Condition
from tinyldm.errors import UserError
from tinyldm.models.model import Model
from tinyldm.process.bound import BIN
from tinyldm.process.process import exact

MOST_EVALUATIONS = 5000  # of the network, for one batch


@dataclass(frozen=True)
class Solution:
    """Where a batch arrives.

    Attributes:
        z: (B, C, H, W).
        divergence: (B,) the integral of the divergence; 0 where it was not asked for.
        evaluations: how often the network was called.
    """

    z: torch.Tensor
    divergence: torch.Tensor
    evaluations: int


Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (v, z) -> (B,), with a graph from z to v


def exact_divergence(v: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The trace of dv / dz, (B,): one backward pass for each of its C H W terms."""
    total, outputs = v.new_zeros(len(v)), v.flatten(1)
    for index in range(outputs.shape[1]):
        (row,) = torch.autograd.grad(outputs[:, index].sum(), z, retain_graph=True)
        total = total + row.flatten(1)[:, index]
    return total


def estimated_divergence(probes: torch.Tensor) -> Divergence:
    """Hutchinson's estimator: the mean of e^T (dv / dz) e, whose expectation is the trace.

    Args:
        probes: (K, B, C, H, W) of -1 and 1. They stay the same along the way, so that the ODE is one function.
    """

    def divergence(v: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        products = [(torch.autograd.grad((v * e).sum(), z, retain_graph=True)[0] * e).flatten(1).sum(1) for e in probes]
        return torch.stack(products).mean(0)

    return divergence


def ends(model: Model) -> tuple[float, float]:
    """phi_0 and phi_1 of a model."""
    low, high = model.process.ratio_ends()
    return math.atan(low), math.atan(high)


def velocity(model: Model, z: torch.Tensor, phi: float, condition: Condition) -> torch.Tensor:
    """v (B, C, H, W) of the ODE, without guidance and without clipping."""
    process = model.process
    place = process.time_of(torch.tensor([math.tan(phi)], dtype=torch.float64))
    time = place.to(z.device, exact(z))
    alpha, sigma = process.levels(time)
    x_t = (alpha.square() + sigma.square()).sqrt() * z
    predicted = model.denoiser(*process.inputs(x_t, time.expand(len(z))), condition)[:, : z.shape[1]]
    x0, noise = process.to_x0_and_noise(x_t, predicted, float(place), clip=False)
    return math.cos(phi) * noise - math.sin(phi) * x0


def follow(
    model: Model,
    z: torch.Tensor,
    way: tuple[float, float],
    tolerance: float,
    condition: Condition = UNCONDITIONAL,
    divergence: Divergence | None = None,
) -> Solution:
    """Follow the ODE of a batch with an adaptive Runge-Kutta method of order 5 (Dormand & Prince 1980; scipy's RK45).

    Args:
        z: (B, C, H, W) at the first angle of `way`.
        way: the two angles.
        tolerance: the relative and the absolute error of a step.
        divergence: integrates the divergence as well.

    Raises:
        UserError: if the steps become too small.
    """
    shape, device, calls = z.shape, model.device, 0

    def derivative(phi: float, state: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > MOST_EVALUATIONS:
            raise UserError(
                f"the solver needs over {MOST_EVALUATIONS:,} evaluations at tolerance {tolerance:g}: use a larger one"
            )
        here = torch.from_numpy(state[: z.numel()]).to(device, model.dtype).view(shape)
        with torch.set_grad_enabled(divergence is not None):
            here = here.requires_grad_(divergence is not None)
            v = velocity(model, here, phi, condition)
            traces = z.new_zeros(len(z)) if divergence is None else divergence(v, here)
        parts = [part.detach().cpu().double().flatten().numpy() for part in (v, traces)]
        return np.concatenate(parts)

    start = np.concatenate([z.cpu().double().flatten().numpy(), np.zeros(len(z))])
    found = solve_ivp(derivative, way, start, rtol=tolerance, atol=tolerance)
    if not found.success or not np.isfinite(found.y[:, -1]).all():
        raise UserError(f"the solver does not converge at tolerance {tolerance:g} ({found.message}): try a larger one")
    end = torch.from_numpy(found.y[:, -1])
    return Solution(end[: z.numel()].view(shape), end[z.numel() :], calls)


def to_noise(
    model: Model,
    x0: torch.Tensor,
    tolerance: float,
    condition: Condition = UNCONDITIONAL,
    divergence: Divergence | None = None,
) -> Solution:
    """Where the ODE leads from x_0 (B, C, H, W): standard normal noise. For the other arguments see `follow`."""
    first, last = ends(model)
    return follow(model, x0.cpu().double() * math.cos(first), (first, last), tolerance, condition, divergence)


def encode(model: Model, x0: torch.Tensor, tolerance: float, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
    """The standard normal noise (B, C, H, W) that the ODE leads to from x_0. `decode` leads back."""
    return to_noise(model, x0, tolerance, condition).z


def decode(model: Model, noise: torch.Tensor, tolerance: float, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
    """The x_0 (B, C, H, W) that the ODE leads to from standard normal noise."""
    first, last = ends(model)
    return follow(model, noise.cpu().double(), (last, first), tolerance, condition).z / math.cos(first)


def log_density(
    model: Model, x0: torch.Tensor, tolerance: float, divergence: Divergence, condition: Condition = UNCONDITIONAL
) -> tuple[torch.Tensor, int]:
    """log p(x_0) of each image in nats, (B,), and the number of evaluations."""
    found, dimensions = to_noise(model, x0, tolerance, condition, divergence), x0[0].numel()
    end = -0.5 * (found.z.square().flatten(1).sum(1) + dimensions * math.log(2 * math.pi))
    return end + found.divergence + dimensions * math.log(math.cos(ends(model)[0])), found.evaluations


def bits_per_dimension(log_p: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Bits (B,) of 8-bit images whose values, scaled to [-1, 1], have this density at a random place in their bins."""
    return -(log_p / dimensions + math.log(2 * BIN)) / math.log(2)
