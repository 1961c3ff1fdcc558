"""Generator and critic (Zhu et al. 2018; Elhoseiny & Elfeki 2019).

    generator   x~ = out(LeakyReLU(hidden([z, r]))),  r = text(t)      a class text t (T,) and noise z -> a visual feature (D,)
    critic      h = ReLU(body(x)),  critic(h): real or not,  classes(h): which seen class

There is no nonlinearity between `text` and `hidden`. The contribution of the text is therefore computed once per class instead
of once per sample: first `Generator.project`, then `Generator.from_projected`. `Generator.forward` is the equivalent form in
the papers.
"""

import torch
import torch.nn.functional as F
from torch import nn


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Set Xavier-normal weights and zero biases in each linear layer, as published."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """Maps text and noise to a visual feature.

    Args:
        text_dim: T, the size of a class text.
        text_size: the size to which a text is reduced. None: no reduction (the published form for attributes).
        noise_size, hidden_size: sizes of the noise and of the hidden layer.
        feature_dim: D.
        bounded: end with Tanh, as published. Then all values are in [-1, 1].
    """

    def __init__(
        self, text_dim: int, text_size: int | None, noise_size: int, hidden_size: int, feature_dim: int, bounded: bool = False
    ):
        super().__init__()
        self.noise_size, self.bounded = noise_size, bounded
        self.text = nn.Linear(text_dim, text_size) if text_size else nn.Identity()
        self.hidden = nn.Linear(noise_size + (text_size or text_dim), hidden_size)
        self.out = nn.Linear(hidden_size, feature_dim)

    def forward(self, noise: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """noise (B, Z), texts (B, T) -> features (B, D)."""
        hidden = self.hidden(torch.cat([noise, self.text(texts)], 1))
        return self._bound(self.out(F.leaky_relu(hidden, 0.01)))

    def project(self, texts: torch.Tensor) -> torch.Tensor:
        """Class texts (K, T) -> their part of the hidden layer (K, H), including the bias."""
        return F.linear(self.text(texts), self.hidden.weight[:, self.noise_size :], self.hidden.bias)

    def from_projected(self, noise: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
        """noise (B, Z) and rows (B, H) of `project` -> features (B, D)."""
        hidden = torch.addmm(projected, noise, self.hidden.weight[:, : self.noise_size].T)
        return self._bound(self.out(F.leaky_relu(hidden, 0.01)))

    def _bound(self, features: torch.Tensor) -> torch.Tensor:
        return torch.tanh(features) if self.bounded else features


class Critic(nn.Module):
    """Maps a visual feature to a realness score and class logits.

    Args:
        feature_dim: D.
        hidden_size: size of the one hidden layer.
        outputs: size of the class head: K seen classes, or K + 1 for the divergence `k+1`. For CIZSLv2 it is the size of
            reduced texts, since its head makes an embedding that is compared with the reduced text of each class.
    """

    def __init__(self, feature_dim: int, hidden_size: int, outputs: int):
        super().__init__()
        self.body = nn.Linear(feature_dim, hidden_size)
        self.critic = nn.Linear(hidden_size, 1)
        self.classes = nn.Linear(hidden_size, outputs)

    def heads(self, before: torch.Tensor, guide: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B,) and class logits (B, K) from `body(x)` (B, H).

        Args:
            guide: the reduced texts of the K classes in CIZSLv2 (K, R). A logit is the product of embedding and text.
        """
        hidden = F.relu(before)
        logits = self.classes(hidden)
        return self.critic(hidden).squeeze(1), logits if guide is None else logits @ guide.T

    def forward(self, features: torch.Tensor, guide: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """features (B, D) -> scores (B,), class logits (B, K)."""
        return self.heads(self.body(features), guide)


class SharmaMittal(nn.Module):
    """The learned orders of a divergence: alpha, beta = 0.2 + 0.6 sigmoid(w), both in (0.2, 0.8)."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.orders = nn.Parameter(torch.rand(2, generator=generator) * 2 - 1)

    def forward(self) -> torch.Tensor:
        """(alpha, beta)."""
        return 0.2 + 0.6 * torch.sigmoid(self.orders)
