"""The variational bound of a diffusion model, in bits per dimension (Ho et al. 2020, equation 5).

    -log2 p(x_0) / D  <=  L_T + sum_{t=1}^{T-1} L_t + L_0

    L_T   prior      KL of q(x_T | x_0) to a standard normal: the information that the schedule leaves in x_T
    L_t   per step   KL of the posterior q(x_{t-1} | x_t, x_0) to the model's p(x_{t-1} | x_t)
    L_0   decoder    -log2 probability of the pixel's bin under the model's last normal (Ho et al. 2020, equation 13)

Timesteps count from 0 as in diffusers: timestep t goes from x_t to x_{t-1}, and t = 0 to the image. D is the number of
pixels times channels. `scheduler.variance_type` chooses the variance. learned_range interpolates between the two fixed
variances, with weights from the second half of the network's channels (Nichol & Dhariwal 2021, equation 15).
"""

import math
from typing import NamedTuple

import torch
from torch.special import log_ndtr

from tinyldm.process.discrete_vp import DiscreteVP
from tinyldm.process.process import exact

BIN = 1 / 255  # half the width of one of 256 values in [-1, 1]


class Normal(NamedTuple):
    """A diagonal normal distribution: mean (B, C, H, W) and the logarithm of its variance, of that shape or (B, 1, 1, 1)."""

    mean: torch.Tensor
    log_variance: torch.Tensor


def posterior(process: DiscreteVP, x0: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> Normal:
    """q(x_{t-1} | x_t, x_0) (Ho et al. 2020, equations 6 and 7).

    At t = 0 the true variance is 0. The variance at t = 1 replaces it, as in the authors' code.
    """
    abar, before, beta = _at(process, timesteps)
    mean = before.sqrt() * beta / (1 - abar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - abar) * x_t
    return Normal(mean.float(), _log_posterior_variance(process, timesteps).float())


def reverse_step(process: DiscreteVP, predicted: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> Normal:
    """The model's p(x_{t-1} | x_t).

    Args:
        predicted: the network's output (B, C, H, W), or (B, 2 C, H, W) if it learns the variance.
    """
    _, _, beta = _at(process, timesteps)
    if process.learns_variance:
        predicted, fraction = predicted.chunk(2, dim=1)
        low, high = _log_posterior_variance(process, timesteps), beta.log()
        log_variance = (low + (fraction + 1) / 2 * (high - low)).float()
    elif process.variance == "fixed_large":
        first = _log_posterior_variance(process, timesteps)
        log_variance = torch.where(_column(timesteps) == 0, first, beta.log()).float()
    else:
        log_variance = _log_posterior_variance(process, timesteps).float()
    x0 = process.to_x0(x_t, predicted, timesteps)
    return Normal(posterior(process, x0, x_t, timesteps).mean, log_variance)


def step_bits(
    process: DiscreteVP, predicted: torch.Tensor, x0: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """L_t of each image, or L_0 if its timestep is 0: (B,) in bits per dimension."""
    true = posterior(process, x0, x_t, timesteps)
    model = reverse_step(process, predicted, x_t, timesteps)
    nats = torch.where(_column(timesteps) == 0, -log_likelihood(x0, model), divergence(true, model))
    return nats.mean((1, 2, 3)) / math.log(2)


def prior_bits(process: DiscreteVP, x0: torch.Tensor) -> torch.Tensor:
    """L_T of each image: (B,) in bits per dimension."""
    last = torch.full((len(x0),), process.steps - 1, device=x0.device)
    abar, _, _ = _at(process, last)
    end = Normal((abar.sqrt() * x0).float(), (1 - abar).log().float())
    standard = Normal(torch.zeros_like(end.mean), torch.zeros_like(end.log_variance))
    return divergence(end, standard).mean((1, 2, 3)) / math.log(2)


def divergence(a: Normal, b: Normal) -> torch.Tensor:
    """KL(a || b) of each element, in nats."""
    ratio = a.log_variance - b.log_variance
    return 0.5 * (-1 - ratio + ratio.exp() + (a.mean - b.mean).square() * (-b.log_variance).exp())


def log_likelihood(x0: torch.Tensor, model: Normal) -> torch.Tensor:
    """Log-probability of each pixel's bin under the model, in nats. The outermost bins extend to infinity.

    Args:
        x0: images of 256 values, scaled to [-1, 1].
    """
    inverse = (-0.5 * model.log_variance).exp()
    above, below = inverse * (x0 - model.mean + BIN), inverse * (x0 - model.mean - BIN)
    # log(cdf(above) - cdf(below)), mirrored into the lower tail, where the two do not cancel
    mirrored = below > 0
    above, below = torch.where(mirrored, -below, above), torch.where(mirrored, -above, below)
    log_above, log_below = log_ndtr(above), log_ndtr(below)
    inside = log_above + torch.log1p(-(log_below - log_above).exp().clamp(max=1 - 1e-7))
    lowest, highest = log_ndtr(inverse * (x0 - model.mean + BIN)), log_ndtr(-inverse * (x0 - model.mean - BIN))
    return torch.where(x0 < -0.999, lowest, torch.where(x0 > 0.999, highest, inside))


def _at(process: DiscreteVP, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """abar_t, abar_{t-1} and beta_t (B, 1, 1, 1) in float64, because callers subtract numbers near 1."""
    table = process.abar.to(exact(timesteps)).to(timesteps.device)
    before = torch.cat([table.new_ones(1), table[:-1]])
    return _column(table[timesteps]), _column(before[timesteps]), _column((1 - table / before)[timesteps])


def _log_posterior_variance(process: DiscreteVP, timesteps: torch.Tensor) -> torch.Tensor:
    abar, before, beta = _at(process, timesteps.clamp(min=1))
    return ((1 - before) / (1 - abar) * beta).log()


def _column(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)
