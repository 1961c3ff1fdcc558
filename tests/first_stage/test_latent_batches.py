"""The order of stored latents: a permutation for each epoch, shared by ranks, continued at any image."""

import itertools

import numpy as np
import pytest
import torch

from tinyldm.first_stage.latent_batches import LatentBatches
from tinyldm.first_stage.latent_store import LatentStore
from tinyldm.randomness import Rank


def numbered(count: int, views: int = 1) -> LatentStore:
    """Latent i has the value i + 1000 * view."""
    values = np.arange(count)[:, None] + 1000 * np.arange(views)
    whole = values.astype(np.float16)[:, :, None, None, None]
    return LatentStore([whole[:4], whole[4:]], 1.0, 0)


def take(batches: LatentBatches, count: int, start: int = 0) -> list[int]:
    position = start * batches.batch_size * batches.rank.count
    return torch.cat([batch.x for batch in itertools.islice(batches(position), count)]).flatten().int().tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 25])
def test_each_epoch_has_another_permutation(batch_size):
    sequence = take(LatentBatches(numbered(10), 0, batch_size), -(-30 // batch_size))
    epochs = [sequence[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != take(LatentBatches(numbered(10), 1, 10), 1)  # another seed


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_a_single_one(ranks):
    alone = take(LatentBatches(numbered(10, 2), 5, 3 * ranks), 7)
    shares = [take(LatentBatches(numbered(10, 2), 5, 3, Rank(index, ranks)), 7) for index in range(ranks)]
    together = [share[3 * k : 3 * k + 3] for k in range(7) for share in shares]
    assert list(itertools.chain(*together)) == alone


def test_a_store_on_a_device_gives_the_same_batches():
    store = LatentStore([np.arange(12, dtype=np.float16).reshape(6, 2, 1, 1, 1)] * 2, 1.0, 0, small=True)
    before = list(itertools.islice(LatentBatches(store, 5, 4)(), 9))
    assert store.nbytes == 2 * 24
    store.move_to(torch.device("cpu"))
    store.shards = [shard[:0] for shard in store.shards]
    for old, new in zip(before, itertools.islice(LatentBatches(store, 5, 4)(), 9), strict=True):
        assert torch.equal(old.x, new.x) and torch.equal(old.condition.low_resolution, new.condition.low_resolution)


def test_other_batches_and_ranks_continue_at_the_right_image():
    """2 ranks with batches of 8, then 1 with 16, then 1 with 8: within an epoch, each image occurs once."""
    actual, position = [], 0
    for batch_size, ranks, count in ((8, 2, 2), (16, 1, 1), (8, 1, 2)):
        streams = [LatentBatches(numbered(64), 5, batch_size, Rank(index, ranks))(position) for index in range(ranks)]
        actual += [batch.x.flatten().int().tolist() for _ in range(count) for batch in map(next, streams)]
        position += batch_size * ranks * count
    assert position == 64 and sorted(itertools.chain(*actual)) == list(range(64))
    assert list(itertools.chain(*actual)) == take(LatentBatches(numbered(64), 5, 64), 1)


@pytest.mark.parametrize("start", [1, 3, 4, 11])
def test_starting_later_skips_the_first_batches(start):
    batches = LatentBatches(numbered(10, 2), 0, 3, Rank(1, 2))
    assert take(batches, 5, start) == take(batches, 5 + start)[3 * start :]


def test_half_of_the_views_are_mirrored_and_change_per_epoch():
    sequence = np.array(take(LatentBatches(numbered(1000, 2), 0, 100), 20)).reshape(2, 1000)
    mirrored = [dict(zip((epoch % 1000).tolist(), (epoch >= 1000).tolist(), strict=True)) for epoch in sequence]
    assert all(420 < sum(views.values()) < 580 for views in mirrored)  # five standard deviations of 16
    assert 420 < sum(mirrored[0][i] != mirrored[1][i] for i in range(1000)) < 580
    assert max(take(LatentBatches(numbered(10), 0, 10), 3)) < 10  # no mirrored images, so they are never used
