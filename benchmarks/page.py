"""Writes the numbers of docs/performance/ and docs/results/ into the pages, or "not measured yet" where there are none.

    python -m benchmarks.page            # fill
    python -m benchmarks.page check      # check that the pages match the files

A block of a page is between `<!-- NAME -->` and `<!-- /NAME -->`. The function with that name writes it: of a benchmark's
table (page_tables.py), of the ratios (page_speed.py), of finished runs (page_results.py).
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import page_results, page_speed, page_tables
from benchmarks.gpu_results import NOT_RUN, text
from benchmarks.page_tables import Result, origin
from benchmarks.scale import scale

ROOT = Path(__file__).parent.parent
DOCS, RESULTS = ROOT / "docs", ROOT / "docs" / "performance"
SPEED = DOCS / "journal" / "speed.md"
PAGES = [
    ROOT / "README.md",
    DOCS / "performance.md",
    DOCS / "results.md",
    DOCS / "guidance.md",
    DOCS / "editing.md",
    DOCS / "processes.md",
    DOCS / "zsl-results.md",
    *DOCS.glob("journal/*.md"),
]
BLOCK = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)
NOT_YET = "*Not measured yet.*"


def read(name: str, folder: Path = RESULTS) -> Result | None:
    """The results of a benchmark; None if it has not run, or only with --small."""
    file = folder / f"{name}.json"
    found = json.loads(file.read_text()) if file.exists() else None
    return None if found is None or found["small"] else found


def gpu(r: Result | None) -> str:
    """All tables of benchmarks.gpu, or that it has not run on a GPU."""
    return f"{text(r)}\n\n{origin(r)}" if r and r["machine"]["gpus"] else NOT_RUN


# Blocks made from several results, or that say something without one: their names, and the function.
JOINED: dict[str, tuple[tuple[str, ...], Callable[..., str | None]]] = {
    "gpu": (("gpu",), gpu),
    "scale": (("costs", "data", "loop"), scale),
    "ratios": (tuple(page_speed.ROWS | {"costs": None}), page_speed.ratios),
}
TABLES: dict[str, Callable[[Result], str]] = {
    **{
        name: getattr(page_tables, name)
        for name in (
            *("latents", "same_image", "loop", "data", "memory", "sampling", "samplers", "decoding", "training", "startup"),
            *("processes", "busy", "costs", "power_ema", "groups", "editing", "fine_tuning", "likelihood", "forward_processes"),
        )
    },
    **dict.fromkeys(("sweep_unet", "sweep_unet_long", "sweep_vq", "sweep_vq_long"), page_tables.sweep),
}


def block(name: str, folder: Path = RESULTS) -> str:
    """The content of a block."""
    if name in page_results.BLOCKS:
        return page_results.BLOCKS[name]()
    if name in JOINED:
        needs, join = JOINED[name]
        return join(*(read(need, folder) for need in needs)) or NOT_YET
    result = read(name, folder)
    return f"{TABLES[name](result)}\n\n{origin(result)}" if result else NOT_YET


def fill(text: str, folder: Path = RESULTS) -> str:
    """The page with all blocks rewritten."""
    return BLOCK.sub(lambda match: f"<!-- {match[1]} -->\n{block(match[1], folder)}\n<!-- /{match[1]} -->", text)


def main(command: str) -> int:
    """Fill or check the pages."""
    old = []
    for file in PAGES:
        text = file.read_text(encoding="utf-8")
        if fill(text) != text:
            old.append(file.name)
            if command != "check":
                file.write_text(fill(text), encoding="utf-8")
    if command == "check":
        print(f"outdated: {', '.join(old)}; run python -m benchmarks.page" if old else "the pages match the files")
        return bool(old)
    for path, picture in page_results.pictures().items():
        picture.save(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "fill"))
