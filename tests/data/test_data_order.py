"""The order of images, and reading ahead in threads."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from tests.support.sources import corrupt, in_order, joined, parquet, picture, take, whole
from tinyldm.data.images import ImageBatches, Images
from tinyldm.data.prefetch import read_ahead
from tinyldm.data.sources import Source, shuffled
from tinyldm.errors import UserError
from tinyldm.randomness import ALONE, Rank

# ------------------------------------------------------------------------------------------------------------- order


def test_each_value_of_a_balanced_label_has_the_same_share():
    labels = np.array([0] * 900 + [1] * 90 + [-1] * 10)
    order = shuffled(1000, np.random.default_rng(0), labels)
    counts = [int((labels[order] == value).sum()) for value in (0, 1, -1)]
    assert len(order) == 1000 and counts == [495, 495, 10]  # what has no label keeps its share
    repeats = np.bincount(order, minlength=1000)
    assert repeats[:900].max() == 1 and set(repeats[900:990]) <= {5, 6} and set(repeats[990:]) == {1}
    assert not np.array_equal(order, shuffled(1000, np.random.default_rng(1), labels))
    assert sorted(shuffled(1000, np.random.default_rng(0))) == list(range(1000))


SIZES = (3, 11, 1, 8)  # of the shards; 23 pictures in total


def uneven(path, streaming: bool, bad: set[int] = frozenset()) -> Source:
    contents = iter([corrupt(i) if i in bad else picture(i) for i in range(sum(SIZES))])
    return whole(parquet(path, [list(itertools.islice(contents, size)) for size in SIZES]), streaming=streaming)


def batches_of(
    source: Source, batch_size: int, count: int, start: int = 0, rank: Rank = ALONE, seed: int = 5
) -> list[list[int]]:
    position = start * batch_size * rank.count
    return take(ImageBatches(Images(source, 8, 2), seed, batch_size, rank)(position), count)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_order_of_a_single_one(ranks, streaming, tmp_path):
    source = uneven(tmp_path, streaming)
    alone = batches_of(source, 4 * ranks, 7)  # more than two epochs
    shares = [batches_of(source, 4, 7, rank=Rank(index, ranks)) for index in range(ranks)]
    assert [joined(parts) for parts in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize("streaming", [True, False])
def test_each_epoch_has_another_permutation(streaming, tmp_path):
    source = uneven(tmp_path, streaming)
    order = joined(batches_of(source, 4, 23))  # 92 = 4 * 23
    epochs = [order[i : i + 23] for i in range(0, 92, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4 and list(range(23)) not in epochs
    assert order == joined(batches_of(source, 23, 4))  # independent of the batch size
    assert order[:23] == batches_of(uneven(tmp_path, streaming), 23, 1)[0]  # and of what was read before
    assert order[:23] != batches_of(source, 23, 1, seed=6)[0]
    assert sorted(in_order(source)) == list(range(23))


@pytest.mark.slow
@pytest.mark.parametrize("bad", [set(), {0}, {9}, {22}])
@pytest.mark.parametrize("streaming", [True, False])
def test_starting_later_skips_the_first_batches(streaming, bad, tmp_path):
    # 1 of 23 is less than 5%. The corrupt picture has another position in each epoch: before, after and at the start.
    source = uneven(tmp_path, streaming, bad)
    unbroken = batches_of(source, 3, 20)
    assert not bad & set(joined(unbroken))
    for start in range(20):
        assert batches_of(source, 3, 20 - start, start) == unbroken[start:]
    for rank in range(2):
        assert batches_of(source, 3, 5, 4, Rank(rank, 2)) == batches_of(source, 3, 9, 0, Rank(rank, 2))[4:]


@pytest.mark.parametrize("streaming", [True, False])
def test_other_batches_and_ranks_continue_at_the_right_image(streaming, tmp_path):
    """Two ranks with batches of 4, then one with 8, then one with 3: two epochs, each with every image once."""
    source = uneven(tmp_path, streaming)
    order = joined(batches_of(source, 23, 2))
    actual, position = [], 0
    for batch_size, ranks, count in ((4, 2, 2), (8, 1, 1), (3, 1, 8)):
        images = Images(source, 8, 2)
        parts = [take(ImageBatches(images, 5, batch_size, Rank(index, ranks))(position), count) for index in range(ranks)]
        actual += [number for batches in zip(*parts, strict=True) for batch in batches for number in batch]
        position += batch_size * ranks * count
    assert position == 48 and actual == joined(batches_of(source, 48, 1)) and actual[:46] == order


@pytest.mark.parametrize("streaming", [True, False])
def test_a_batch_may_be_larger_than_the_data_set(streaming, tmp_path):
    source = whole(parquet(tmp_path, [[picture(0), picture(1)], [picture(2)]]), streaming=streaming)
    first, second = batches_of(source, 8, 2)
    order = first + second
    assert len(order) == 16 and all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(0, 15, 3))
    assert batches_of(source, 8, 1, 1) == [second]


# -------------------------------------------------------------------------------------------------------- read ahead


def helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "read_ahead"))]


@pytest.mark.parametrize("streaming", [True, False])
def test_no_thread_outlives_its_stream(streaming, tmp_path, capfd):
    batches = ImageBatches(Images(uneven(tmp_path, streaming), 8, 3), 0, 2)()
    next(batches)
    assert "read_ahead" in helpers() and any(name.startswith("decode") for name in helpers())
    batches.close()
    assert helpers() == []
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_script_may_end_in_the_middle_of_a_stream(tmp_path):
    """Without the exit handler, the interpreter stops the thread inside pyarrow and aborts or hangs (6 of 7 times here)."""
    parquet(tmp_path, [[picture(i) for i in range(23)]])
    script = f"""
import itertools
from tinyldm.config.schema import DataConfig
from tinyldm.data.prefetch import read_ahead
from tinyldm.data.sources import open_sources
source, _ = open_sources(DataConfig(name={str(tmp_path)!r}, resolution=8), 0)
busy = read_ahead((example for epoch in itertools.count() for example in source.epoch(0, epoch)), depth=1000000)
print(len(list(itertools.islice(busy, 40))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "40\n", "")


def test_read_ahead_raises_errors_unchanged():
    error = ZeroDivisionError("unchanged")

    def batches():
        yield torch.zeros(1)
        raise error

    ahead = read_ahead(batches())
    assert torch.equal(next(ahead), torch.zeros(1))
    with pytest.raises(ZeroDivisionError) as caught:
        next(ahead)
    assert caught.value is error and helpers() == []


def test_read_ahead_yields_everything_in_order_and_ends():
    assert [int(item) for item in read_ahead((torch.tensor(i) for i in range(50)), depth=2)] == list(range(50))


@pytest.fixture
def impatient(monkeypatch) -> None:
    """The exit does not wait for a sleeping reader: it takes a tenth of a second, not five seconds."""
    join = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", lambda self, timeout=None: join(self, timeout and min(timeout, 0.1)))


@pytest.mark.usefixtures("impatient")
def test_a_stalled_source_raises():
    awake = threading.Event()

    def batches():
        yield torch.zeros(1)
        awake.wait(60)
        yield torch.zeros(1)

    ahead = read_ahead(batches(), timeout=0.1)
    next(ahead)
    try:
        with pytest.raises(UserError, match=r"gave nothing for .* s: check the network"):
            next(ahead)
    finally:
        awake.set()


def test_a_source_that_reads_long_before_its_first_item_is_not_stalled():
    """A resumed run must read a large stream up to its position."""
    read = 0

    def batches():
        nonlocal read
        for _ in range(14):
            time.sleep(0.05)
            read += 1
        yield torch.ones(1)

    assert torch.equal(next(read_ahead(batches(), timeout=0.5, read=lambda: read)), torch.ones(1))


def test_a_stream_counts_what_it_skips(tmp_path):
    source = uneven(tmp_path, streaming=True)
    length = source.length()
    assert source.read == length
    next(source.epoch(0, 0, length - 1))
    assert source.read == 2 * length


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_stalled_stream_is_reopened_where_it_stopped(tmp_path, monkeypatch, capsys):
    source, asleep = uneven(tmp_path, streaming=True), threading.Event()
    expected = batches_of(source, 4, 8)
    whole_epoch, stalls = Source.epoch, iter([5, 2, None])

    def epoch(self, seed, number, start=0):
        stop = next(stalls, None)
        for i, example in enumerate(whole_epoch(self, seed, number, start)):
            if i == stop:
                asleep.wait(60)
            yield example

    monkeypatch.setattr(Source, "epoch", epoch)
    batches = ImageBatches(Images(source, 8, 2), 5, 4, timeout=0.3)
    try:
        assert take(batches(), 8) == expected
        assert capsys.readouterr().err.count("gave nothing for 0 s: check the network; opening it again") == 2
        stalls = iter([0, 0, 0, 0])
        with pytest.raises(UserError, match="gave nothing"):
            next(batches())
    finally:
        asleep.set()


def test_a_decoder_that_dies_ends_the_stream(tmp_path, monkeypatch):
    """An exception that is not about the image, such as the end of the thread, does not count as a corrupt image."""

    def die(self, fetch):
        raise SystemExit("killed")

    monkeypatch.setattr(Images, "decode", die)
    with pytest.raises(SystemExit):
        take(ImageBatches(Images(uneven(tmp_path, True), 8, 2), 5, 4)(), 1)
