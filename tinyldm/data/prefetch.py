"""Run a generator ahead of its consumer, in a thread."""

import atexit
import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

from tinyldm.errors import UserError


class Stalled(UserError):
    """A stream that gives nothing any more."""


def read_ahead(batches: Generator, depth: int = 4, timeout: float = 600.0, read: Callable[[], int] = lambda: 0) -> Iterator:
    """Run a generator in a thread, `depth` items ahead.

    Args:
        read: counts what it has read: to find its place in a stream it may read for long before it gives something.

    Raises:
        Stalled: when nothing came and nothing was read for `timeout` seconds.
        Exception: what the generator raised.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def run() -> None:
        try:
            with contextlib.closing(batches):  # its decoding threads end with it
                for batch in batches:
                    put(batch)
                    if stopped.is_set():
                        return
            put(StopIteration())
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=run, daemon=True, name="read_ahead")
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join(timeout=5)

    atexit.register(stop)  # a daemon thread that is inside pyarrow when the interpreter goes aborts the process
    try:
        while True:
            read_before = read()
            try:
                item = ready.get(timeout=timeout)
            except queue.Empty:
                if read() > read_before:
                    continue
                raise Stalled(f"the data stream gave nothing for {timeout:.0f} s: check the network") from None
            if isinstance(item, StopIteration):
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        atexit.unregister(stop)
        stop()
