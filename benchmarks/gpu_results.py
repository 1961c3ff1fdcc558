"""What the steps of benchmarks.gpu find: one line of JSON for each finding, and tables of them all.

A line names a table, a row of it and figures of that row. A later line about the same row adds to it or replaces it, so a step
can be run again. This file imports no torch, since benchmarks.page needs it too.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.scale import row

FILE = "results.jsonl"
LONGEST = 300  # characters of an error
NOT_RUN = "*Not run on a GPU yet: none was at hand. The lines above say how to run it.*"
Figures = dict[str, Any]
Tables = dict[str, dict[str, Figures]]  # title -> name of a row -> figures


class Results:
    """Writes findings to results.jsonl in the folder `out`, each at once: a step that dies keeps what it has found."""

    def __init__(self, out: Path, step: str):
        self.file, self.step = out / FILE, step

    def tell(self, table: str, name: str, **figures: Any) -> None:
        """Write the figures of a row. Keys that are no identifiers, such as `images/s`, are passed as **{"images/s": 1.0}."""
        self._write({"table": table, "row": name, "figures": figures})

    def failed(self, name: str, why: str) -> None:
        """Note that a part of the step gave no result, and why."""
        self._write({"failed": name, "why": why})

    def machine(self, machine: Figures) -> None:
        """Note where the figures are from."""
        self._write({"machine": machine})

    def began(self) -> None:
        """Note that the step runs, perhaps again: what failed before no longer counts."""
        self._write({"began": True})

    def took(self, seconds: float) -> None:
        """Note how long the step took."""
        self._write({"seconds": round(seconds, 1)})

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """An error within becomes a line about what failed; its traceback is printed, and the step goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            self.failed(name, " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST])

    def _write(self, found: Figures) -> None:
        line = json.dumps({"step": self.step, **found})
        with self.file.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def gathered(file: Path) -> Figures:
    """What gpu.json holds: the tables, what failed, the seconds of each step and, if it was noted, the machine."""
    tables: Tables = {}
    failed: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    machine: Figures = {}
    for line in file.read_text().splitlines():
        found = json.loads(line)
        step = found["step"]
        if "table" in found:
            tables.setdefault(found["table"], {}).setdefault(found["row"], {}).update(found["figures"])
        elif "failed" in found:
            failed.setdefault(step, {})[found["failed"]] = found["why"]
        elif "began" in found:
            failed.pop(step, None)
        elif "seconds" in found:
            seconds[step] = found["seconds"]
        else:
            machine = {"machine": found["machine"]}
    listed = [f"{step}, {name}: {why}" for step, names in failed.items() for name, why in names.items()]
    return {"tables": tables, "failed": listed, "seconds": seconds, **machine}


def text(found: Figures) -> str:
    """The tables in Markdown, one under the other, and what failed."""
    blocks = []
    for title, rows in found["tables"].items():
        columns = list(dict.fromkeys(key for figures in rows.values() for key in figures))
        lines = [row(title, *columns), row(*["---"] * (len(columns) + 1))]
        lines += [row(name, *(shown(figures.get(key)) for key in columns)) for name, figures in rows.items()]
        blocks.append("\n".join(lines))
    if found["failed"]:
        blocks.append("\n".join(["Failed:", "", *(f"- {line}" for line in found["failed"])]))
    return "\n\n".join(blocks)


def shown(value: Any) -> str:
    """A figure as text: four digits of a fraction, all digits of a count."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
