"""Zips what a teacher needs to judge a run: a cover page, the report, numbers, logs, pictures, and the state of the code.

make submission RUN=runs/demo NAME="Jane Doe"
make submission RUN=runs/demo NAME="Jane Doe" LIMITS=hours=8,parameters=5000000

The cover page, COVER.md, says what was trained, on what, for how long, and which limits were met. Weights stay at home.
"""

import json
import os
import re
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tinyldm import __version__
from tinyldm.config.parsing import dump, read_yaml
from tinyldm.config.paths import shareable
from tinyldm.errors import UserError, one_line_errors, without_secrets
from tinyldm.training.report import KINDS

ROOT = Path(__file__).parents[1]
FILES = ("*.md", "*.html", "*.csv", "*.png", "*.json", "config.yaml", "samples/*.png", "logs/**/*")
LIMITS = {"hours": "hours of training", "parameters": "parameters", "steps": "steps", "images": "images seen"}


def submit(run: str, name: str, limits: str = "", folder: str = ".") -> Path:
    """Write submission-NAME-TIME.zip and return its path.

    Args:
        run: the run folder.
        name: whose work it is.
        limits: what was allowed, such as hours=8,parameters=5000000; also steps and images.
        folder: where to write the zip.

    Raises:
        UserError: for a folder that is no finished run, an empty name, or limits that are not of this form.
    """
    place, words = Path(run), re.findall(r"\w+", name.lower())
    if not words:
        raise UserError('whose work is it? Give a name: make submission RUN=runs/demo NAME="Jane Doe"')
    allowed = read_limits(limits)
    try:
        card = json.loads((place / "card.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run!r} is no run with an export: RUN is the folder of a training that has ended") from error
    commit, changes, added = code_state(ROOT)
    target = Path(folder) / f"submission-{'-'.join(words)}-{time.strftime('%Y%m%d-%H%M%S')}.zip"
    found = {file for pattern in FILES for file in place.glob(pattern) if file.is_file() and not file.is_symlink()}
    with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("COVER.md", cover(name, place, card, commit, bool(changes or added), allowed))
        archive.writestr("code/commit.txt", f"{commit}\n")
        archive.writestr("code/changes.diff", without_secrets(changes))
        for file in added:
            archive.writestr(f"code/added/{file}", without_secrets((ROOT / file).read_text(errors="replace")))
        for file in tqdm(sorted(found), "zipping", unit="file"):
            archive.writestr(f"run/{file.relative_to(place).as_posix()}", content(file))
    return target


def read_limits(text: str) -> dict[str, float]:
    """`hours=8,parameters=5000000` as numbers.

    Raises:
        UserError: for anything else.
    """
    parts = [part.partition("=")[::2] for part in text.split(",") if part]
    if bad := [key for key, value in parts if key not in LIMITS or not re.fullmatch(r"\d+(\.\d+)?", value)]:
        raise UserError(f"limits: {bad[0]!r} is not {' or '.join(LIMITS)} with a number, as in hours=8,parameters=5000000")
    return {key: float(value) for key, value in parts}


def content(file: Path) -> bytes:
    """A file of a run; JSON and YAML without the paths of this machine."""
    if file.suffix == ".json":
        return json.dumps(shareable(json.loads(file.read_text())), indent=1).encode()
    return dump(shareable(read_yaml(file))).encode() if file.suffix == ".yaml" else file.read_bytes()


def code_state(root: Path) -> tuple[str, str, list[str]]:
    """The commit, what differs from it, and the new text files that git does not ignore."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True, errors="replace").stdout

    try:
        commit, changes = git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
        listed = git("ls-files", "-z", "--others", "--exclude-standard").split("\0")
    except (OSError, subprocess.CalledProcessError):
        return f"not a git checkout: tinyldm {__version__}", "", []
    return commit, changes, [name for name in listed if name.endswith((".py", ".yaml", ".md"))]


def cover(name: str, run: Path, card: dict[str, Any], commit: str, changed: bool, allowed: dict[str, float]) -> str:
    """COVER.md."""
    values = card["values"]
    data, train = values["data"], values["train"]
    on = f"`{data['name']}`, split `{data['split']}`, {data['resolution']} px"
    on += f", {values['train_images']:,} images" if values["train_images"] else ""
    facts = [
        ("trained", f"{KINDS[card['template']]}, {values['parameters']:,} parameters"),
        ("on", on),
        ("for", f"{values['duration']}: {values['steps']:,} steps of {values['images_per_step']:,} images"),
        ("hardware", values["hardware"]),
        *values["figures"],
        ("code", f"commit `{commit}`" + (", with changes: code/changes.diff and code/added" if changed else ", unchanged")),
    ]
    steps, planned, evaluated = values["steps"], train["max_steps"], bool(card["evaluation"])
    used = {"hours": round(values["seconds"] / 3600, 2), **{key: values[key] for key in ("parameters", "steps", "images")}}
    checks = [(f"at most {most:,.10g} {LIMITS[key]}", f"{used[key]:,}", used[key] <= most) for key, most in allowed.items()]
    if planned:
        checks.append((f"all {planned:,} steps of the recipe", f"{steps:,}", steps >= planned))
    checks.append(("measured with evaluate.py", "see run/report.html" if evaluated else "", evaluated))
    lines = [f"# {name}: {run.resolve().name}", "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in facts]
    lines += ["", "| limit or check | found | met |", "| --- | --- | --- |"]
    lines += [f"| {check} | {found} | {'yes' if met else '**no**'} |" for check, found, met in checks]
    return "\n".join(
        [*lines, "", "Open run/report.html in a browser. The numbers above are those that the run has recorded.\n"]
    )


if __name__ == "__main__":
    with one_line_errors():
        run, name, limits = (os.environ.get(key, "") for key in ("RUN", "NAME", "LIMITS"))  # from make
        print(f"wrote {submit(run, name, limits)}")
