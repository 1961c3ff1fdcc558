"""Commands of the README and of the pages of docs/ are ones that the programs take: make's targets, scripts, recipes, keys."""

import re
import shlex

import pytest

from tests.support.runs import ROOT
from tests.support.scripts import SCRIPTS
from tinyldm.config.parsing import parse
from tinyldm.errors import UserError

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md"))]
PROGRAMS = ("make ", "python ", "accelerate ")
SHELL = re.compile(r"[$&\[]|\.\.\.")  # variables, jobs, optional parts: not a command by itself


def commands(text: str) -> list[list[str]]:
    """The words of each command in the bash blocks of a page, without comments."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    plain = [line for line in lines if not SHELL.search(re.sub(r"'[^']*'", "", line.split(" #")[0]))]
    return [shlex.split(line, comments=True) for line in plain if line.startswith(PROGRAMS)]


def check(words: list[str], targets: set[str]) -> None:
    """Raise UserError or KeyError for a command that its program would not take."""
    script = next((number for number, word in enumerate(words) if word in SCRIPTS), None)
    if script is not None:
        parse(SCRIPTS[words[script]], "", words[script + 1 :])
    if words[0] == "make" and not targets >= {word for word in words[1:] if "=" not in word}:
        raise KeyError(f"no such target: {' '.join(words)}")


@pytest.fixture
def targets(monkeypatch) -> set[str]:
    monkeypatch.chdir(ROOT)  # recipes are named from there
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_taken(page, targets):
    for words in commands((ROOT / page).read_text()):
        check(words, targets)


def test_wrong_commands_are_found(targets):
    text = (
        "```bash\nmake demo # yes\npython sample.py --model a \\\n  --seed 3\nmake $Y\n```\n`make x`\n```bash\nmake none\n```"
    )
    assert commands(text) == [["make", "demo"], ["python", "sample.py", "--model", "a", "--seed", "3"], ["make", "none"]]
    check(["make", "demo"], targets)
    with pytest.raises(KeyError, match="no such target: make none"):
        check(["make", "none"], targets)
    for wrong in ("--model runs/a --labelz 3", "--num_images many"):
        with pytest.raises(UserError):
            check(["python", "sample.py", *wrong.split()], targets)
    with pytest.raises(UserError, match=r"recipe configs/none\.yaml cannot be read"):
        check(["accelerate", "launch", "train_ldm.py", "--config", "configs/none.yaml"], targets)
