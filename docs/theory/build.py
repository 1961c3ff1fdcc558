"""The chapters' numbers: what `make theory` runs.

    python docs/theory/build.py labs     run all labs: numbers/*.json, figures/*.png
    python docs/theory/build.py fill     write these numbers into the chapters
    python docs/theory/build.py check    does a number in the text differ from what its lab printed?

A chapter names a number of its lab and a format, `<!--n gap .2f-->0.12<!--/n-->`: GitHub shows 0.12. The format p is for
p-values: 0.012, and "<0.001" below that. In the prose there are no other numbers with a decimal point, but for those of
sections, equations and the like, and of other people's experiments, `<!--cited-->2.35<!--/cited-->`.

Chapters 3 and 8 report long runs. While the file that such a run writes is not there, their labs say so in numbers/*.json, and
the chapter shows question marks.
"""

import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = re.compile(r"<!--n (\w+) ([^-]+)-->(.*?)<!--/n-->")
NOT_PROSE = re.compile(r"```.*?```|\$\$.*?\$\$|`[^`\n]*`|\$[^$\n]*\$|<!--.*?-->|\]\([^)]*\)", re.DOTALL)
LOOSE = re.compile(r"(?<![\w.])\d+\.\d+")
TICKED = re.compile(r"`([-+]?\d*\.\d+)`")  # a number is no code
CITED_NUMBER = re.compile(r"<!--cited-->(.*?)<!--/cited-->")  # of another paper's experiment
CITED = re.compile(r"(section|equation|appendix|algorithm|figure|table|theorem|arXiv)s?[ :]([\w.]+,? (and )?)*$", re.IGNORECASE)
WAITS = "waits"  # a lab's word for a run whose results it did not find


def chapters() -> list[Path]:
    """In their order."""
    return sorted(HERE.glob("[0-9]-*.md"))


def labs() -> list[Path]:
    """In the order of their chapters, which may have several."""
    return sorted(HERE.glob("lab[0-9]_*.py"))


def records(chapter: Path, folder: Path = HERE) -> list[dict[str, Any]]:
    """What each of the chapter's labs printed."""
    files = sorted((folder / "numbers").glob(f"{chapter.stem}*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def numbers(chapter: Path, folder: Path = HERE) -> dict[str, dict[str, float]]:
    """What the chapter's labs printed, by name."""
    return {name: number for record in records(chapter, folder) for name, number in record.items() if name != WAITS}


def waits(chapter: Path, folder: Path = HERE) -> str | None:
    """What some of the chapter's numbers still wait for, in words."""
    return next((record[WAITS] for record in records(chapter, folder) if WAITS in record), None)


def shown(value: float, form: str) -> str:
    """The number as it stands in the text."""
    if form == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    return f"{value:{form}}"


def fill(chapter: Path) -> str:
    """The chapter's text with its lab's numbers."""
    known = numbers(chapter)
    return MARK.sub(
        lambda m: f"<!--n {m[1]} {m[2]}-->{shown(known[m[1]]['value'], m[2])}<!--/n-->" if m[1] in known else m[0],
        chapter.read_text(encoding="utf-8"),
    )


def problems(chapter: Path, folder: Path = HERE) -> list[str]:
    """Numbers of the text that its lab did not print, one line each.

    A number may differ by one in its last printed digit, and by what the lab says that another machine's may differ.

    Args:
        folder: where the lab wrote its numbers.
    """
    text, known, found = chapter.read_text(encoding="utf-8"), numbers(chapter, folder), []
    waiting = waits(chapter, folder)
    for name, _, printed in MARK.findall(text):
        if name not in known:
            if not waiting or printed != "?":
                found.append(f"{chapter.name}: its lab prints no number {name}" + (f" ({waiting})" if waiting else ""))
            continue
        if printed == "?":
            found.append(f"{chapter.name}: {name} is not filled in: make theory")
            continue
        value, machine = (known[name][key] * (100 if printed.endswith("%") else 1) for key in ("value", "machine"))
        digits = printed.rstrip("%").removeprefix("<").replace(",", "")
        if printed.startswith("<"):  # nothing below it is wrong
            value = max(value, float(digits))
        allowed = float(Decimal(1).scaleb(Decimal(digits).as_tuple().exponent)) + machine
        if abs(float(digits) - value) > allowed * (1 + 1e-9):
            found.append(f"{chapter.name}: {name} is {printed} in the text, its lab printed {value} (allowed: {allowed:g})")
    prose = NOT_PROSE.sub(" ", TICKED.sub(r"\1", CITED_NUMBER.sub(" ", MARK.sub(" ", text))))
    for loose in LOOSE.finditer(prose):
        if not CITED.search(prose[: loose.start()]):
            found.append(f"{chapter.name}: {loose[0]} is typed, not filled in: ...{prose[loose.start() - 40 : loose.end()]!r}")
    return found


def main(command: str) -> int:
    if command == "labs":
        for lab in labs():
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, str(lab)], check=True, env=environment)
    elif command == "fill":
        for chapter in chapters():
            chapter.write_text(fill(chapter), encoding="utf-8")
            if waiting := waits(chapter):
                print(f"{chapter.name} has question marks: {waiting}")
    elif command == "check":
        found = [line for chapter in chapters() for line in problems(chapter)]
        print("\n".join(found) or f"{len(chapters())} chapters: each number in the text is the one that its lab printed")
        return bool(found)
    else:
        sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
