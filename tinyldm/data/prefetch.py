"""Runs a generator in a thread, ahead of its consumer."""

import atexit
import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from tinyldm.errors import UserError

Item = TypeVar("Item")


class Stalled(UserError):
    """A stream that no longer yields anything."""


def read_ahead(
    batches: Generator[Item, None, None], depth: int = 4, timeout: float = 600.0, read: Callable[[], int] = lambda: 0
) -> Generator[Item, None, None]:
    """Run a generator in a thread, `depth` items ahead.

    Args:
        read: number of examples read so far; while it grows, the stream is not considered stalled.

    Raises:
        Stalled: after `timeout` seconds in which nothing was yielded or read.
        Exception: any exception of the generator.
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
            with contextlib.closing(batches):  # also ends its decoding threads
                for batch in batches:
                    put(batch)
                    if stopped.is_set():
                        return
            put(StopIteration())
        except BaseException as error:  # raised again in the consumer
            put(error)

    thread = threading.Thread(target=run, daemon=True, name="read_ahead")
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join(timeout=5)

    atexit.register(stop)  # a thread still inside pyarrow at exit would abort the interpreter
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
