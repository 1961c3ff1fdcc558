"""Decoded images that stay in memory, so that a small data set is decoded once and not in each epoch."""

import hashlib
import sys
from collections.abc import Callable

import numpy as np

LIMIT = 2**30  # bytes: 87,000 colour images of 64 px


class KeptImages:
    """Decoded images by a hash of their file. The data are still read, in the same order: that costs a tenth of decoding.

    A set that takes more than `limit` bytes is not kept: what was kept of it is dropped.

    Attributes:
        left: bytes that may still be kept.
    """

    def __init__(self, limit: int = LIMIT):
        self.left = limit
        self._squares: dict[bytes, np.ndarray] = {}

    def __call__(self, content: bytes, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The kept image of a file, else a new one. Threads may call this at once."""
        if self.left < 0:
            return decode()
        key = hashlib.blake2b(content, digest_size=16).digest()
        if (square := self._squares.get(key)) is None:
            self._squares[key] = square = decode()
            self.left -= square.nbytes
            if self.left < 0:
                self._squares = {}
                print("the decoded training images do not fit: they are decoded in each epoch", file=sys.stderr)
        return square
