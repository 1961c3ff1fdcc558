"""A random part of a data set: the first files are often of one class."""

import functools
import heapq
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tinyldm.data.sources import Source, hub_id

SEED = 0  # the same for all runs, so that their figures are of the same images


def random_rows(total: int, count: int | None = None) -> np.ndarray:
    """The first `count` of the numbers 0 .. total - 1 in a random order, always the same one. None: all."""
    return np.argsort(np.random.default_rng(SEED).random(total))[:count]


def in_random_order(source: Source, count: int | None = None, start: int = 0) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield the examples of a source in an order that depends on their number alone, each as a function that fetches it.

    A local stream has the order of random access, but is read once, undecoded, for it: `count` examples are in memory. A
    stream from the Hub is only shuffled by its buffer.

    Args:
        count: how many readable images the caller wants at most. A local stream ends after some more. None: all.
        start: how many examples to skip.
    """
    if not source.streamed:
        for index in random_rows(len(source.dataset))[start:]:
            yield functools.partial(source.dataset.__getitem__, int(index))
    elif source.name == "toyfaces":  # independent of each other, so any order is random
        yield from source.epoch(None, 0, start)
    elif hub_id(source.name):
        print(
            f"the images of {source.name!r} to measure with are the first ones of its stream, shuffled by a buffer of "
            f"{source.shuffle_buffer}: data.streaming false chooses among all",
            file=sys.stderr,
        )
        yield from source.epoch(SEED, 0, start)
    else:
        wanted = sys.maxsize if count is None else start + count + count // 10 + 16  # some may be unreadable
        keys = iter(np.random.default_rng(SEED).random, None)
        about = {"desc": f"choosing images of {source.name}", "unit": "image", "total": source.known_length()}
        examples = tqdm(source.epoch(None, 0), dynamic_ncols=True, **about)
        for _, _, example in heapq.nsmallest(wanted, zip(keys, itertools.count(), examples, strict=False))[start:]:
            yield example
