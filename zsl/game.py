"""The adversarial game: generator, critic, their optimizers, and one iteration.

Every random number is a function of (seed, iteration, purpose). So GAZSL and CIZSL with the same seed start from the same
weights and see the same images and noise, and a resumed run needs no state of a random generator.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tinyldm.randomness import derive_seed
from zsl import losses
from zsl.config import Method, Train
from zsl.models import Critic, Generator, SharmaMittal, initialise


@dataclass
class TrainingSet:
    """Training data on one device.

    Attributes:
        features: scaled features (N, D).
        labels: (N,) in 0..K-1.
        texts: texts of the K seen classes (K, T).
    """

    features: torch.Tensor
    labels: torch.Tensor
    texts: torch.Tensor

    @functools.cached_property
    def centroids(self) -> torch.Tensor:
        """Mean feature of each class (K, D)."""
        counts = torch.bincount(self.labels, minlength=len(self.texts))
        sums = self.features.new_zeros(len(self.texts), self.features.shape[1])
        return sums.index_add(0, self.labels, self.features) / counts[:, None]


class Batches:
    """Batch n of an endless stream of shuffled passes over the images, as a function of (seed, n).

    Args:
        images: N, at least `size`.
        skip_end: as published, skip the last batch of each pass, even if it is full: the last 1 to `size` images. Otherwise
            batches continue into the next pass, and each image occurs equally often.
    """

    def __init__(self, images: int, size: int, seed: int, skip_end: bool):
        self.images, self.size, self.seed = images, size, seed
        self.per_pass = max(1, (images - 1) // size) if skip_end else None
        self._order = functools.lru_cache(2)(self._shuffled)

    def __getitem__(self, number: int) -> np.ndarray:
        """Rows (B,) of the training set."""
        if self.per_pass:
            number, part = divmod(number, self.per_pass)
            return self._order(number)[part * self.size : (part + 1) * self.size]
        passes, start = divmod(number * self.size, self.images)
        rows = self._order(passes)[start : start + self.size]
        return rows if len(rows) == self.size else np.concatenate([rows, self._order(passes + 1)[: self.size - len(rows)]])

    def _shuffled(self, number: int) -> np.ndarray:
        return np.random.default_rng(derive_seed("pass", self.seed, number)).permutation(self.images)


class Game:
    """Networks, optimizers and one iteration.

    Args:
        method: determines the losses.
        weight: weight of the creativity loss.
        config, seed: config of the run, and the seed of this training.
        data: the training set.
    """

    def __init__(self, method: Method, weight: float, config: Train, seed: int, data: TrainingSet):
        self.method, self.weight, self.config, self.seed, self.data = method, weight, config, seed, data
        self.device, self.classes, model, train = data.texts.device, len(data.texts), config.model, config.train
        self.creative = method.divergence is not None
        text_dim, feature_dim = data.texts.shape[1], data.features.shape[1]
        reduced = model.text_size or text_dim
        outputs = reduced if method.family == "cizslv2" else self.classes + (method.divergence == "k+1")
        self.generator = Generator(
            text_dim, model.text_size, model.noise_size, model.hidden_size, feature_dim, bounded=config.faithful
        )
        self.critic = Critic(feature_dim, model.hidden_size, outputs)
        for name, network in (("generator", self.generator), ("critic", self.critic)):
            initialise(network, self._random("weights", name))
            network.to(self.device)
        self.orders = SharmaMittal(self._random("weights", "orders")).to(self.device)

        adam = functools.partial(torch.optim.Adam, lr=train.learning_rate, betas=(0.5, 0.9), fused=True)
        # The gradient of r |W|^2 is 2 r W, which is Adam's own weight decay. It applies to weights and not to biases.
        named = list(self.generator.named_parameters())
        decayed = {"params": [p for name, p in named if name.endswith("weight")], "weight_decay": 2 * train.weight_decay}
        biases = {"params": [p for name, p in named if name.endswith("bias")], "weight_decay": 0.0}
        self.optimizers = {
            "generator": adam([decayed, biases]),
            "critic": adam(self.critic.parameters()),
            "orders": torch.optim.Adam(self.orders.parameters(), lr=1e-4, betas=(0.5, 0.999)),  # fixed, as published
        }
        self.batches = Batches(len(data.labels), train.batch_size, seed, skip_end=config.faithful)
        self.gram = data.texts @ data.texts.T
        self.with_zero = torch.cat([data.texts, data.texts.new_zeros(1, text_dim)])

    # ------------------------------------------------------------------------------------------------------ an iteration

    def iterate(self, iteration: int) -> None:
        """Do `critic_steps` critic steps and one generator step. `iteration` counts from 0."""
        steps = self.config.train.critic_steps
        number = iteration * (steps + 1)
        with torch.no_grad():  # once, since the generator does not change while the critic learns
            projected, guide = self.generator.project(self.with_zero), self._guide()
        for step in range(steps):
            self._critic_step(projected, guide, number + step)
        self._generator_step(number + steps)

    def _critic_step(self, projected: torch.Tensor, guide: torch.Tensor | None, number: int) -> None:
        rows, labels = self._batch(number)
        random = self._random("critic", number)
        mix = torch.rand(len(labels), generator=random).to(self.device)
        with torch.no_grad():
            fake = self.generator.from_projected(self._noise(random), projected[labels])
        real, penalty = self.data.features[rows], self.config.train.gradient_penalty
        loss = losses.critic_loss(self.critic, real, fake, labels, mix, penalty, guide)
        if self.method.divergence == "k+1" and not self.config.faithful:
            # The published critic never sees a sample of class K + 1, so it cannot learn that class.
            with torch.no_grad():
                hallucinated = self.generator.from_projected(*self._hallucinated(projected, number))
            _, logits = self.critic(hallucinated)
            loss = loss + losses.creativity(self.method, logits, self.orders(), self.weight, False)
        self._step(loss, "critic")

    def _generator_step(self, number: int) -> None:
        train, faithful = self.config.train, self.config.faithful
        rows, labels = self._batch(number)
        count = len(labels)
        self.critic.requires_grad_(False)
        projected, guide = self.generator.project(self.with_zero), self._guide()
        noise, hidden = self._noise(self._random("generator", number)), projected.index_select(0, labels)
        if self.creative:
            more_noise, more_hidden = self._hallucinated(projected, number)
            noise, hidden = torch.cat([noise, more_noise]), torch.cat([hidden, more_hidden])
        generated = self.generator.from_projected(noise, hidden)
        scores, logits = self.critic(generated, guide)
        loss = F.cross_entropy(logits[:count], labels) / 2 - scores[:count].mean()
        if train.pivot_weight:
            loss = loss + train.pivot_weight * losses.visual_pivots(generated[:count], labels, self.data.centroids, faithful)
        if train.text_sparsity and self.config.model.text_size:
            loss = loss + train.text_sparsity * losses.text_sparsity(self.generator)
        if guide is not None:  # through the guide, real images also train the text reduction
            loss = loss + F.cross_entropy(self.critic(self.data.features[rows], guide)[1], labels) / 2
        if self.creative:
            loss = loss - scores[count:].mean()
            loss = loss + losses.creativity(self.method, logits[count:], self.orders(), self.weight, faithful)
        self._step(loss, "generator", "orders")
        self.critic.requires_grad_(True)

    def _step(self, loss: torch.Tensor, *names: str) -> None:
        for name in names:
            self.optimizers[name].zero_grad()
        loss.backward()
        for name in names:
            self.optimizers[name].step()

    def _guide(self) -> torch.Tensor | None:
        """The reduced texts of the seen classes (K, R) in CIZSLv2, otherwise None."""
        return self.generator.text(self.data.texts) if self.method.family == "cizslv2" else None

    def _hallucinated(self, projected: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise (B, Z) and projections (B, H) of hallucinated texts, which are mixtures of two seen classes.

        The first class is drawn in proportion to its number of images. The second is a different class. In the published code
        it is drawn like the first and may be the same class.
        """
        random, count = self._random("hallucinate", number), self.config.train.batch_size
        images = torch.randint(len(self.data.labels), (2, count), generator=random)
        first, second = self.data.labels[images.to(self.device)]
        if not self.config.faithful:
            offset = torch.randint(1, self.classes, (count,), generator=random).to(self.device)
            second = (first + offset) % self.classes
        share = (0.2 + 0.6 * torch.rand(count, generator=random)).to(self.device)
        length = self.config.model.text_length
        return self._noise(random), losses.hallucinate(projected, self.gram, first, second, share, length)

    def _batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B,) of the training set and their labels."""
        rows = torch.from_numpy(self.batches[number]).to(self.device)
        return rows, self.data.labels[rows]

    # Random numbers are drawn on the CPU, so that a GPU uses the same ones.

    def _random(self, *purpose: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed("zsl", self.seed, *purpose))

    def _noise(self, random: torch.Generator) -> torch.Tensor:
        shape = (self.config.train.batch_size, self.config.model.noise_size)
        return torch.randn(shape, generator=random).to(self.device)

    # ------------------------------------------------------------------------------------------------------------- state

    def networks(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights that a checkpoint saves."""
        return {name: getattr(self, name).state_dict() for name in ("generator", "critic", "orders")}

    def restore(self, networks: dict[str, dict[str, torch.Tensor]], optimizers: dict[str, Any]) -> None:
        """Load the weights and optimizer states of a checkpoint."""
        for name in ("generator", "critic", "orders"):
            getattr(self, name).load_state_dict(networks[name])
            self.optimizers[name].load_state_dict(optimizers[name])
