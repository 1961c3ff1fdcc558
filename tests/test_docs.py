"""Pages name only files that exist: in links, in backticks, on the arrows of diagrams and in commands."""

import re
from pathlib import Path

import pytest
import yaml

from tests.support.runs import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/journal").glob("*.md")),
]
QUOTED = r"`((?:(?:tinyldm|zsl|tests|docs|configs|model_cards|benchmarks)/[\w./*-]*|\w+\.py))`"
MODULE, RECIPE, ARROW = r"python -m ((?:tinyldm|zsl|benchmarks)[\w.]*)", r"--config (configs/\S+\w)", r"-->\|([\w/]+\.py)\|"


def missing(text: str, folder: Path) -> list[str]:
    """The paths in the text of a page in this folder that do not exist; they may contain *."""
    links = {(folder / link).as_posix() for link in re.findall(r"\]\(([^)#:\s]+)[)#]", text)}
    names = {*re.findall(QUOTED, text), *re.findall(RECIPE, text), *(f"tinyldm/{path}" for path in re.findall(ARROW, text))}
    modules = {module.replace(".", "/") for module in re.findall(MODULE, text)}
    gone = [path for path in links if not Path(path).exists()] + [path for path in names if not any(ROOT.glob(path))]
    return sorted(gone + [path for path in modules if not any(ROOT.glob(f"{path}.py")) and not (ROOT / path).is_dir()])


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def lost_anchors(page: Path) -> list[str]:
    """Links of a page to headings that no longer exist, in it or in another page."""
    links = re.findall(r"\]\(([^)#:\s]*\.md)?#([^)\s]+)\)", page.read_text())
    headings = {
        path: re.findall(r"^#+ (.+)$", (page.parent / path if path else page).read_text(), re.MULTILINE) for path, _ in links
    }
    return [f"{path}#{anchor}" for path, anchor in links if anchor not in map(slug, headings[path])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_named_file_and_heading_exists(page):
    assert missing(page.read_text(), page.parent) == [] and lost_anchors(page) == []


def test_a_lost_heading_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# Two: `words`, here\n")
    (tmp_path / "a.md").write_text("# One\n[a](#one) [b](b.md#two-words-here) [c](b.md#two) [d](b.md)")
    assert lost_anchors(tmp_path / "a.md") == ["b.md#two"]


def test_the_site_shows_every_page():
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml without the Python names in it."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    nav = str(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    pages = {
        str(page.relative_to(ROOT / "docs"))
        for folder in ("docs", "docs/theory", "docs/journal")
        for page in (ROOT / folder).glob("*.md")
    }
    assert {*re.findall(r"'([\w/-]+\.md)'", nav)} == (pages - {"README.md"}) | {"index.md", "contributing.md", "changelog.md"}


def test_the_docs_are_short():
    """Words of pages and chapters, without numbers, code, formulas and lists of papers."""
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/theory").glob("*.md")]
    text = "\n".join(page.read_text().split("### References")[0] for page in pages)
    words = re.sub(r"```.*?```|<!--.*?-->|\$[^$\n]*\$|\]\([^)]*\)|\|", " ", text, flags=re.DOTALL).split()
    assert sum(any(map(str.isalpha, word)) for word in words) < 20_000


def test_a_missing_file_is_found():
    text = "[a](none.md#b) `zsl/none.py` `none.py` `docs/none*` -->|data/none.py| python -m zsl.none --config configs/none.yaml"
    expected = ["configs/none.yaml", "docs/none*", "none.py", "tinyldm/data/none.py", "zsl/none", "zsl/none.py"]
    assert missing(text, ROOT) == sorted([*expected, f"{ROOT}/none.md"])
    assert missing("[a](README.md) `zsl/*.py` `runs/none` -->|data/images.py| python -m zsl train https://none.md", ROOT) == []
