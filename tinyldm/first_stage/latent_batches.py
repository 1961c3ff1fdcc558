"""Endless training batches of latents: kept ones, or encoded as the images come."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tinyldm.data.images import ImageBatches, mirror_half, to_float
from tinyldm.data.prefetch import read_ahead
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.first_stage.latent_store import LatentStore
from tinyldm.randomness import Draw, derive_seed


@dataclass
class LatentBatches:
    """Endless training batches: each epoch visits each image once, in the permutation of (seed, epoch).

    Position p of the endless sequence is entry p mod N of permutation p div N; which view (mirrored or not) is drawn
    per epoch and image. Micro-batch k of process r of R takes the positions [(k R + r) B, (k R + r + 1) B).
    """

    store: LatentStore
    seed: int
    batch_size: int
    process: tuple[int, int] = (0, 1)

    def __call__(self, start: int = 0) -> Iterator[torch.Tensor]:
        """float32 (B, C, h, w), unscaled, from micro-batch number `start` on."""
        rank, processes = self.process
        orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for micro in range(start, 2**62):
            positions = np.arange(self.batch_size) + (micro * processes + rank) * self.batch_size
            epochs, places = np.divmod(positions, len(self.store))
            orders = {epoch: orders.get(epoch) or self._order(epoch) for epoch in np.unique(epochs).tolist()}
            indices, views = np.empty((2, self.batch_size), np.int64)
            for epoch, (order, drawn) in orders.items():
                mine = epochs == epoch
                indices[mine], views[mine] = order[places[mine]], drawn[places[mine]]
            yield self.store.get(indices, views)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(derive_seed("order", self.seed, epoch))
        count = len(self.store)
        return random.permutation(count), random.integers(self.store.views, size=count)


@dataclass
class EncodedBatches:
    """Endless training batches, encoded as they come: nothing is kept. The next batch is read and encoded, in a thread, while
    the network learns from the last one.

    Args:
        images: what gives uint8 images (B, C, H, W) and labels.
        mirrored: whether half of the images are mirrored.
        seed: of that choice.
    """

    images: ImageBatches
    first_stage: FirstStage
    device: torch.device
    mirrored: bool
    seed: int

    def __call__(self, start: int = 0) -> Iterator[torch.Tensor]:
        """float32 (B, C, h, w), unscaled, from micro-batch number `start` on."""
        yield from read_ahead(self._encoded(start), depth=1, read=lambda: self.images.images.source.read)

    def _encoded(self, start: int) -> Iterator[torch.Tensor]:
        seed = derive_seed("mirrored", self.seed)
        for micro, batch in enumerate(self.images(start), start):
            pixels = to_float(batch.images.to(self.device))
            if self.mirrored:
                pixels = mirror_half(pixels, Draw(seed, micro, 0, self.images.rank_and_world, self.device))
            yield self.first_stage.encode(pixels)
