"""Endless training batches of latents, either stored or encoded while the images are read."""

import itertools
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import torch

from tinyldm.data.augment import augment_images
from tinyldm.data.batch import Batch
from tinyldm.data.images import ImageBatches, mirror_half, to_float
from tinyldm.data.prefetch import read_ahead
from tinyldm.data.small import shrink
from tinyldm.data.sources import shuffled
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.first_stage.latent_store import LatentStore
from tinyldm.portable.low_resolution import enlarge
from tinyldm.randomness import ALONE, Draw, Rank, derive_seed


@dataclass
class LatentBatches:
    """Endless training batches: each epoch visits each image once, in the permutation of (seed, epoch).

    Position p of the endless sequence is entry p mod N of permutation p div N; which view (mirrored or not) is drawn per
    epoch and image. From position P on, micro-batch k of rank r of R has the positions P + [(k R + r) B, (k R + r + 1) B).
    """

    store: LatentStore
    seed: int
    batch_size: int
    rank: Rank = ALONE
    balance: np.ndarray | None = None
    pinned: bool = False

    def __call__(self, position: int = 0) -> Generator[Batch, None, None]:
        """float32 (B, C, h, w), unscaled, with their conditions.

        With `pinned`, a thread gathers the next batches into pinned memory.

        Args:
            position: how many images all ranks have seen before.
        """
        yield from read_ahead(batch.pinned() for batch in self._gathered(position)) if self.pinned else self._gathered(position)

    def _gathered(self, position: int) -> Generator[Batch, None, None]:
        orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for start in itertools.count(position + self.rank.index * self.batch_size, self.rank.count * self.batch_size):
            epochs, places = np.divmod(np.arange(start, start + self.batch_size), len(self.store))
            orders = {epoch: orders.get(epoch) or self._order(epoch) for epoch in np.unique(epochs).tolist()}
            indices, views = np.empty((2, self.batch_size), np.int64)
            for epoch, (order, drawn) in orders.items():
                mine = epochs == epoch
                indices[mine], views[mine] = order[places[mine]], drawn[places[mine]]
            yield self.store.batch(indices, views)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(derive_seed("order", self.seed, epoch))
        count = len(self.store)
        return shuffled(count, random, self.balance), random.integers(self.store.views, size=count)


@dataclass
class EncodedBatches:
    """Endless training batches of images that are encoded while they are read. Nothing is stored.

    A thread reads and encodes the next batch while the network trains on the current one.

    Args:
        images: gives uint8 images (B, C, H, W) with their conditions.
        mirrored: whether half of the images are mirrored.
        seed: determines which ones.
        small: also encode the images at this smaller side, enlarged. None: not.
        augment: chance of each random change of an image.
    """

    images: ImageBatches
    first_stage: FirstStage
    device: torch.device
    mirrored: bool
    seed: int
    small: int | None = None
    augment: float = 0.0

    def __call__(self, position: int = 0) -> Generator[Batch, None, None]:
        """float32 (B, C, h, w), unscaled, with their conditions.

        Args:
            position: how many images all ranks have seen before.
        """
        yield from read_ahead(self._encoded(position), depth=1, read=lambda: self.images.images.source.read)

    def _encoded(self, position: int) -> Generator[Batch, None, None]:
        seed, rank = derive_seed("mirrored", self.seed), self.images.rank
        first = position // (self.images.batch_size * rank.count)
        for micro, batch in enumerate(self.images(position), first):
            pixels, draw, changes = to_float(batch.x.to(self.device)), Draw(seed, micro, 0, rank, self.device), None
            if self.mirrored:
                pixels = mirror_half(pixels, draw)
            if self.augment:
                pixels, changes = augment_images(pixels, self.augment, draw)
            small = None
            if self.small:
                small = self.first_stage.encode(enlarge(shrink(pixels, self.small), pixels.shape[-1]))
            yield Batch(self.first_stage.encode(pixels), replace(batch.condition, low_resolution=small, changes=changes))
