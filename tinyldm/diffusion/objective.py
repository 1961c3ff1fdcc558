"""What a diffusion model learns, on one page: noise an image, predict what was done to it, weigh the error.

    x_t = alpha_t x_0 + sigma_t eps,    y = a x_0 + b eps,    loss = w(t) |network(x_t, t) - y|^2

process.py has the levels alpha_t and sigma_t and the predictions y. A loss of any prediction is a weighted loss of x_0: for
the process of DDPM, an error e of x_0 is an error of eps of sqrt(SNR) e, and of v of sqrt(SNR + 1) e.
"""

import math

import torch

from tinyldm.data.batch import UNCONDITIONAL, Condition
from tinyldm.models.denoiser import Predictor
from tinyldm.process.bound import step_bits
from tinyldm.process.discrete_vp import discrete
from tinyldm.process.process import Process


def weight(process: Process, times: torch.Tensor, snr_gamma: float | None) -> torch.Tensor:
    """Weights w(t), (B,), of the squared errors of y.

    Args:
        snr_gamma: min-SNR (Hang et al. 2023, equation 8): the squared error of x_0 has the weight min(SNR, gamma), whatever the
            network predicts. None: 1, the simple loss of the chosen prediction.
    """
    if snr_gamma is None:
        return torch.ones_like(times, dtype=torch.float32)
    return (process.signal_to_noise(times).clamp(max=snr_gamma) * process.x0_error(times)).float()


def likelihood_weight(process: Process, times: torch.Tensor) -> torch.Tensor:
    """Weights (B,) that make the loss a bound on the negative log-likelihood, at times drawn uniformly in log SNR.

    The bound is half the integral over log SNR of the squared error of eps (Kingma et al. 2021, equation 16; for VP it is the
    weight g^2 of Song et al. 2021b, "Maximum Likelihood Training of Score-Based Diffusion Models", with importance sampling).
    Its unit is nats per dimension, without the terms that do not depend on the network.
    """
    low, high = process.ratio_ends()
    return (math.log(high / low) * process.signal_to_noise(times) * process.x0_error(times)).float()


def diffusion_loss(
    denoiser: Predictor,
    process: Process,
    x0: torch.Tensor,
    noise: torch.Tensor,
    times: torch.Tensor,
    snr_gamma: float | None,
    kind: str = "simple",
    condition: Condition = UNCONDITIONAL,
) -> torch.Tensor:
    """Losses (B,), each the mean over the elements of its image.

    Args:
        denoiser: predicts (B, C, H, W), or (B, 2 C, H, W) if it learns the variance too.
        x0: images or latents (B, C, H, W) of about unit variance, in float32 like `noise`.
        times: (B,) times of the process.
        snr_gamma: see `weight`.
        kind: simple, weighted squared errors; hybrid, plus 0.001 of the bound, which trains only the variance
            (Nichol & Dhariwal 2021, equation 16); bound, T L_t in bits per dimension. These two need a DiscreteVP.
            likelihood: see likelihood_weight.
        condition: what the denoiser is given besides x_t and the time.
    """
    x_t = process.noisy(x0, noise, times)
    predicted = denoiser(*process.inputs(x_t, times), condition).float()
    return loss_of(process, predicted, x0, x_t, noise, times, snr_gamma, kind)


def loss_of(
    process: Process,
    predicted: torch.Tensor,
    x0: torch.Tensor,
    x_t: torch.Tensor,
    noise: torch.Tensor,
    times: torch.Tensor,
    snr_gamma: float | None,
    kind: str,
) -> torch.Tensor:
    """diffusion_loss of what the denoiser has predicted from x_t."""
    if kind == "bound":
        return _bound(process, predicted, x0, x_t, times)
    mean, variance = predicted[:, : x0.shape[1]], predicted[:, x0.shape[1] :]
    error = (mean - process.target(x0, noise, times)).square().mean((1, 2, 3))
    if kind == "likelihood":
        return likelihood_weight(process, times) * error
    loss = weight(process, times, snr_gamma) * error
    if kind == "hybrid":
        loss = loss + 0.001 * _bound(process, torch.cat([mean.detach(), variance], 1), x0, x_t, times)
    return loss


def _bound(process: Process, predicted: torch.Tensor, x0: torch.Tensor, x_t: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """T L_t (B,): at uniform times its mean is the sum of the bound's steps."""
    vp = discrete(process)
    return vp.steps * step_bits(vp, predicted, x0, x_t, times)


def held_out_error(
    denoiser: Predictor,
    process: Process,
    x0: torch.Tensor,
    noise: torch.Tensor,
    times: torch.Tensor,
    condition: Condition = UNCONDITIONAL,
) -> torch.Tensor:
    """Mean squared errors (B,) of the x_0 that a sampler uses (clipped if it clips), times SNR + 1.

    For the process of DDPM, that is the error of v. So held-out losses can be compared between runs with different
    predictions. For the arguments see diffusion_loss.
    """
    x_t = process.noisy(x0, noise, times)
    return error_of(process, denoiser(*process.inputs(x_t, times), condition).float(), x0, x_t, times)


def error_of(
    process: Process, predicted: torch.Tensor, x0: torch.Tensor, x_t: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """held_out_error of what the denoiser has predicted from x_t."""
    expected = process.to_x0(x_t, predicted[:, : x0.shape[1]], times).float()
    return (process.signal_to_noise(times).float() + 1) * (expected - x0).square().mean((1, 2, 3))
