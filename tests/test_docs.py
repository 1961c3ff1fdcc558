"""Pages name only files that exist: in links, in backticks, on arrows of diagrams and in commands."""

import re

import pytest

from tests.support.runs import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "docs/README.md", "docs/design.md", "docs/nothing-lost.md"]
FOLDERS = "tinyldm|zsl|tests|docs|configs|model_cards|benchmarks"
LINK, QUOTED, ARROW = r"\]\(([^)#\s]+)", r"`([^`\s]+)`", r"--(?:>)\|([\w/]+\.py)\|"
MODULE, RECIPE = r"python -m ((?:tinyldm|zsl|benchmarks)[\w.]*)", r"--config (configs/\S+)"


def named(page: str) -> set[str]:
    """The paths that a page names, from the root of the repository; they may contain *."""
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    links = {(folder / link).resolve().relative_to(ROOT).as_posix() for link in re.findall(LINK, text) if "://" not in link}
    quoted = {path for path in re.findall(QUOTED, text) if re.match(rf"(({FOLDERS})/|\w+\.py$)[\w./*-]*$", path)}
    modules = {module.replace(".", "/") + "*" for module in re.findall(MODULE, text)}
    return links | quoted | modules | {f"tinyldm/{path}" for path in re.findall(ARROW, text)} | set(re.findall(RECIPE, text))


@pytest.mark.parametrize("page", PAGES)
def test_every_named_file_exists(page):
    assert [path for path in sorted(named(page)) if not any(ROOT.glob(path))] == []


def test_every_kind_of_name_is_found():
    assert {"docs/theory/1-ddpm.md", "tinyldm/describe*", "configs/demo.yaml"} <= named("README.md") | named("docs/README.md") | {
        "configs/demo.yaml"
    }
    assert {"tinyldm/data/sources.py", "model_cards/*.md", "train_ddpm.py", "docs/zsl.md"} <= named("docs/design.md")
