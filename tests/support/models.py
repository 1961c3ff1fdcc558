"""Tiny models for tests, and denoisers whose samples are known in closed form."""

from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DModel, VQModel
from torch import nn

from tinyldm.config.networks import UNetConfig
from tinyldm.models.classifier import NoisyClassifier
from tinyldm.portable.label_embedding import LabelEmbedding
from tinyldm.process.continuous import ContinuousProcess
from tinyldm.process.discrete_vp import DiscreteVP
from tinyldm.process.process import Process

torch.set_num_threads(1)  # tiny networks are slower with more threads

SMALL = UNetConfig(  # a block with attention and one without
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
    attention_head_dim=8,
)


def scheduler(**changes) -> DDPMScheduler:
    """The forward process of our configs' defaults."""
    latent_diffusion = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "clip_sample": False}
    return DDPMScheduler(**{**latent_diffusion, "prediction_type": "v_prediction", "timestep_spacing": "trailing", **changes})


def process(**changes) -> DiscreteVP:
    """The process of `scheduler`."""
    return DiscreteVP(scheduler(**changes))


def any_process(kind: str) -> Process:
    """A process of this kind, with the settings of its paper."""
    return process() if kind == "vp" else ContinuousProcess(kind)


def labels(rows: int = 6) -> LabelEmbedding:
    """Two labels of two and three values, and the labels of some examples."""
    torch.manual_seed(0)
    embedding = LabelEmbedding([["Smiling", ["false", "true"]], ["hair", ["bald", "short", "long"]]], 32, rows)
    embedding.rows = torch.tensor([[i % 2, i % 3] for i in range(rows)])
    return embedding.eval()


def unet(side: int = 8, channels: int = 3, labelled: bool = False) -> UNet2DModel:
    """A UNet2DModel with one block with attention and one without. Its weights are not the zeros of the initialisation."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        class_embed_type="identity" if labelled else None,
    ).eval()


def vq_model(**changes) -> VQModel:
    """VQModel, f2, 16 codes."""
    torch.manual_seed(0)
    shape = {"block_out_channels": (8, 16), "norm_num_groups": 4, "num_vq_embeddings": 16}
    return VQModel(**{**shape, **_blocks(2), **changes}).eval()


def kl_model() -> AutoencoderKL:
    """AutoencoderKL, f4."""
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8, 8, 16), norm_num_groups=4, latent_channels=4, **_blocks(3)).eval()


def tiny_model() -> AutoencoderTiny:
    """AutoencoderTiny, f4."""
    torch.manual_seed(0)
    ones, widths = (1, 1, 1), (8, 8, 8)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=ones,
        num_decoder_blocks=ones,
    ).eval()


def _blocks(count: int) -> dict:
    return {"down_block_types": ("DownEncoderBlock2D",) * count, "up_block_types": ("UpDecoderBlock2D",) * count}


class ExactNetwork(nn.Module):
    """What a network with no error predicts, for any process.

    Args:
        estimate: (x_t (B, C, H, W), alpha, sigma) -> E[x_0 | x_t], in float64.
    """

    def __init__(self, process: Process, estimate, channels: int = 1, side: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # gives device and dtype
        self.config = SimpleNamespace(sample_size=side, in_channels=channels)
        self.process, self.estimate = process, estimate

    def forward(self, inputs: torch.Tensor, time: torch.Tensor, class_labels: None = None) -> SimpleNamespace:
        law, time = getattr(self.process, "law", None), time.double()
        if self.process.kind == "edm":
            time = law.fraction((4 * time).exp())
        elif self.process.kind == "flow":
            time = law.fraction(time / (1000 - time))
        elif law:
            time = time / 1000
        alpha, sigma = self.process.levels(time.reshape(-1), torch.float64)
        x_t = inputs.double() / (law.input_scale(sigma) if law else 1.0)
        x0 = self.estimate(x_t, alpha, sigma)
        a, b = self.process.prediction_of(alpha, sigma)
        return SimpleNamespace(sample=(a * x0 + b * (x_t - alpha * x0) / sigma).float())


class GaussianDenoiser(nn.Module):
    """What a network with no error predicts when every x_0 value is drawn from N(mean, std^2).

    x_t ~ N(a mean, a^2 std^2 + b^2) with a = sqrt(abar), b = sqrt(1 - abar), and
    E[x_0 | x_t] = mean + a std^2 / (a^2 std^2 + b^2) (x_t - a mean).
    """

    def __init__(self, forward: DDPMScheduler, mean: float, std: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # gives device and dtype
        self.config = SimpleNamespace(sample_size=1, in_channels=1)
        self.alphas_cumprod, self.kind = forward.alphas_cumprod.double(), forward.config.prediction_type
        self.mean, self.std = mean, std

    def forward(self, x: torch.Tensor, timestep: torch.Tensor | float, class_labels: None = None) -> SimpleNamespace:
        abar = self.alphas_cumprod[torch.as_tensor(timestep).long()].reshape(-1, 1, 1, 1)
        a, b = abar.sqrt(), (1 - abar).sqrt()
        x0 = self.mean + a * self.std**2 / (abar * self.std**2 + 1 - abar) * (x.double() - a * self.mean)
        eps = (x.double() - a * x0) / b
        predicted = {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0}[self.kind]
        return SimpleNamespace(sample=predicted.float())


class MixtureDenoiser(nn.Module):
    """What a network with no error predicts when x_0 (C, 1, 1) is drawn from a mixture of normals.

    Given component k, x_t ~ N(a m_k, S_k) with S_k = a^2 C_k + b^2 I, and E[x_0 | x_t, k] = m_k + a C_k S_k^-1 (x_t - a m_k);
    E[x_0 | x_t] is their mean under the components' posterior probabilities.

    Args:
        shares: (K,).
        means: (K, C).
        covariances: (K, C, C).
    """

    def __init__(self, forward: DDPMScheduler, shares: torch.Tensor, means: torch.Tensor, covariances: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # gives device and dtype
        self.config = SimpleNamespace(sample_size=1, in_channels=means.shape[1])
        self.alphas_cumprod, self.kind = forward.alphas_cumprod.double(), forward.config.prediction_type
        self.shares, self.means, self.covariances = shares.double(), means.double(), covariances.double()

    def forward(self, x: torch.Tensor, timestep: torch.Tensor | float, class_labels: None = None) -> SimpleNamespace:
        abar = self.alphas_cumprod[int(timestep)]
        a, b = abar.sqrt(), (1 - abar).sqrt()
        values = x.double().flatten(1)  # (B, C)
        noised = abar * self.covariances + (1 - abar) * torch.eye(x.shape[1])  # (K, C, C)
        pulls = (values - a * self.means[:, None]) @ noised.inverse()  # (K, B, C)
        expected = self.means[:, None] + a * pulls @ self.covariances
        if len(self.shares) > 1:
            squares = (pulls * (values - a * self.means[:, None])).sum(2)  # of the distances, in standard deviations
            chances = (self.shares.log() - 0.5 * noised.logdet())[:, None] - 0.5 * squares
            expected = chances.softmax(0)[..., None] * expected
        x0 = expected.sum(0)
        eps = (values - a * x0) / b
        predicted = {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0}[self.kind]
        return SimpleNamespace(sample=predicted.float().view_as(x))


class MixtureClassifier(nn.Module):
    """What a classifier with no error says about the component of a mixture of normals, from x_t: see MixtureDenoiser.

    Given component k, x_t ~ N(a m_k, S_k), so the logits are log share_k - 1/2 log det S_k - 1/2 |S_k^-1/2 (x_t - a m_k)|^2.
    """

    def __init__(self, forward: DDPMScheduler, shares: torch.Tensor, means: torch.Tensor, covariances: torch.Tensor):
        super().__init__()
        self.alphas_cumprod = forward.alphas_cumprod.double()
        self.shares, self.means, self.covariances = shares.double(), means.double(), covariances.double()
        self.values = {"component": [str(k) for k in range(len(shares))]}

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> dict[str, torch.Tensor]:
        abar = self.alphas_cumprod[int(timestep)]
        noised = abar * self.covariances + (1 - abar) * torch.eye(x.shape[1])  # (K, C, C)
        away = x.double().flatten(1) - abar.sqrt() * self.means[:, None]  # (K, B, C)
        squares = (away @ noised.inverse() * away).sum(2)
        return {"component": ((self.shares.log() - 0.5 * noised.logdet())[:, None] - 0.5 * squares).T}

    numbers = NoisyClassifier.numbers
