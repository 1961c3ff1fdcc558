"""Runs scripts in new operating-system processes. They are forked from one with loaded libraries, to save seconds."""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

from tests.support.runs import quicken

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.preload"])
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


class Training:
    """`python SCRIPT.py ARGS` in a process, with its output in a file.

    Args:
        number: a signal that the process sends itself
        at: before this change (creating, renaming, deleting) of a file in its run folder, counted from 0. None: never.
        environment: additional environment variables.
        before: a function of a module, called in the process before the script.
    """

    def __init__(
        self,
        script: str,
        args: list,
        printed: Path,
        number: int = 0,
        at: int | None = None,
        environment: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ):
        self.printed, self._changes = printed, FORKS.Value("i", 0)
        output_dir = str(args[args.index("--output_dir") + 1])
        self.process = FORKS.Process(
            target=_train,
            args=(script, [*map(str, args)], str(printed), output_dir, number, at, self._changes, environment or {}, before),
        )
        self.process.start()

    @property
    def changes(self) -> int:
        """Files created, renamed or deleted in the run folder so far."""
        return self._changes.value

    def wait(self, seconds: float = 600) -> int | None:
        """The exit code (-9: killed), or None if it still runs after a timeout that is long enough for a busy machine."""
        self.process.join(seconds)
        return self.process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process if it still runs."""
        os.kill(self.process.pid, number)

    def text(self) -> str:
        """Its output."""
        return self.printed.read_text() if self.printed.exists() else ""


def together(processes: int, script: str, args: list, printed: Path) -> list[Training]:
    """One training with several ranks, started like torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return [
        Training(
            script,
            args,
            printed.with_suffix(f".{rank}.txt"),
            environment={key: str(value) for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
        )
        for rank in range(processes)
    ]


def _train(
    script: str,
    args: list[str],
    printed: str,
    folder: str,
    number: int,
    at: int | None,
    changes: Synchronized,
    environment: dict[str, str],
    before: Callable[[], None] | None,
) -> None:
    quicken(pytest.MonkeyPatch())
    os.environ.update(environment)
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)

    def watch(event: str, details: tuple) -> None:
        writes = event == "open" and isinstance(details[1], str) and set(details[1]) & set("wxa+")
        if (writes or event in CHANGES) and str(details[0]).startswith(folder):
            if at == changes.value:
                os.kill(os.getpid(), number)
            changes.value += 1

    sys.addaudithook(watch)
    sys.argv = [script, *args]
    if before:
        before()
    runpy.run_module(script, run_name="__main__")
