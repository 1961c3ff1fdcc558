"""docs/theory: each lab runs, its assertions hold, and it prints the numbers of its chapter."""

import importlib.util
import os
import re
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch

THEORY = Path(__file__).parent.parent / "docs" / "theory"
INDEX = THEORY.parent / "README.md"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"theory_{name}", THEORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, check_page = load("build"), load("check_page")
CHAPTERS = {path.stem[0]: path for path in build.chapters()}


def figures(chapter: Path) -> list[str]:
    found = re.findall(r"!\[.*\]\((figures/.*)\)", chapter.read_text())
    assert f"figures/{chapter.stem}.png" in found
    return found


def test_the_index_names_each_chapter_and_its_lab_and_nothing_else():
    assert set(re.findall(r"theory/(\d-[\w-]+\.md)", INDEX.read_text())) == {path.name for path in CHAPTERS.values()}
    assert set(re.findall(r"theory/(lab\d_\w+\.py)\)", INDEX.read_text())) == {path.name for path in build.labs()}
    assert sorted({path.name[3] for path in build.labs()}) == list(CHAPTERS)


@pytest.mark.parametrize("path", [INDEX, *CHAPTERS.values()], ids=lambda path: path.stem)
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link


@pytest.mark.parametrize("lab", build.labs(), ids=lambda lab: lab.stem)
def test_labs_are_short_and_open_as_notebooks(lab):
    lines = lab.read_text().splitlines()
    assert len(lines) < 200 and lines[0] == "# %% [markdown]" and sum(line.startswith("# %%") for line in lines) > 4
    jupytext = pytest.importorskip("jupytext", reason="docs/requirements.txt is not installed")
    notebook = jupytext.read(lab)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[1].cell_type == "code"


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda path: path.stem)
def test_labs_print_the_numbers_of_their_chapter(chapter, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(THEORY))
    monkeypatch.setenv("THEORY_OUT", str(tmp_path))
    sys.modules.pop("labkit", None)  # it reads the environment when it is imported
    for lab in build.labs():
        if lab.name[3] == chapter.stem[0]:
            start = time.process_time()
            with torch.random.fork_rng():
                runpy.run_path(str(lab), run_name="__main__")
            # If another worker's test shares the core, the CPU time is up to twice as long.
            assert time.process_time() - start < (120 if "PYTEST_XDIST_WORKER" in os.environ else 60)
    assert build.problems(chapter, tmp_path) == []
    for figure in figures(chapter):
        assert (tmp_path / figure).stat().st_size < 150_000
    if waiting := build.waits(chapter, tmp_path):
        pytest.skip(waiting)  # all other numbers were checked


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda path: path.stem)
def test_the_text_has_the_numbers_that_its_lab_prints_here(chapter):
    assert build.problems(chapter) == []
    assert build.fill(chapter) == chapter.read_text(), "make theory fills the numbers in"
    names = [name for record in build.records(chapter) for name in record]
    assert len(names) == len(set(names)), "two labs of a chapter print a number of the same name"
    for figure in figures(chapter):
        assert (THEORY / figure).stat().st_size < 150_000
    if waiting := build.waits(chapter):
        pytest.skip(waiting)


def test_a_wrong_a_missing_and_a_typed_number_are_found(tmp_path):
    chapter = tmp_path / "1-ddpm.md"
    mark = "<!--n entropy .2f-->{}<!--/n-->"
    entropy = build.numbers(CHAPTERS["1"])["entropy"]["value"]
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "1-ddpm.json").write_text((THEORY / "numbers" / "1-ddpm.json").read_text())
    chapter.write_text(
        mark.format(f"{entropy + 0.5:.2f}")
        + " <!--n nothing .2f-->1.00<!--/n--> and 3.14 and `2.7`; section 3.1, $0.5$, `x = 0.5`, <!--cited-->2.35<!--/cited-->"
    )
    actual = build.problems(chapter, tmp_path)
    assert len(actual) == 4 and "entropy" in actual[0] and "nothing" in actual[1] and "3.14" in actual[2] and "2.7" in actual[3]
    chapter.write_text(mark.format(f"{entropy + 0.01:.2f}"))  # the last digit differs between machines
    assert build.problems(chapter, tmp_path) == []


@pytest.mark.parametrize(
    ("form", "value", "text", "other"),
    [("p", 0.0002, "<0.001", 0.02), ("p", 0.0123, "0.012", 0.02), (",.0f", 1234.4, "1,234", 1236)],
)
def test_small_p_values_and_thousands(tmp_path, form, value, text, other):
    chapter, record = tmp_path / "7-p.md", '{{"it": {{"value": {}, "machine": 0.0}}}}'
    assert build.shown(value, form) == text
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "7-p.json").write_text(record.format(value))
    chapter.write_text(f"<!--n it {form}-->{text}<!--/n-->")
    assert build.problems(chapter, tmp_path) == []
    (tmp_path / "numbers" / "7-p.json").write_text(record.format(other))
    assert len(build.problems(chapter, tmp_path)) == 1


def test_the_page_has_all_chapters_and_no_dead_link(tmp_path):
    pytest.importorskip("pypandoc", reason="docs/requirements.txt is not installed")
    folder = tmp_path / "docs" / "_build"
    folder.mkdir(parents=True)
    page = build.page(folder)
    contents, body = page.split("</nav>", 1)
    assert '<nav id="TOC"' in contents and re.findall(r">(\d)\.\s", contents) == list(CHAPTERS)
    assert re.findall(r"<h1 id=[^>]*>(\d)\.\s", body) == list(CHAPTERS)
    assert check_page.dead_links(page, folder) == []
    assert page.count('src="data:image') == sum(path.read_text().count("![") for path in CHAPTERS.values())
    assert "<!--n " not in page and "<!--cited" not in page
    dead = page.replace("</body>", '<a href="run_latent.py">a</a><a href="#no-such-place">b</a></body>')
    assert check_page.dead_links(dead, folder) == ["#no-such-place", "run_latent.py"]
    (folder / "theory.html").write_text(page)
    assert check_page.main(folder / "theory.html") == 0  # by Chromium, if it is installed


def test_numbers_of_a_missing_run_are_question_marks(tmp_path):
    chapter, mark = tmp_path / "8-zsl.md", "<!--n gain .1f-->{}<!--/n-->"
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "8-zsl.json").write_text('{"waits": "no run yet"}')
    chapter.write_text(mark.format("?"))
    assert build.problems(chapter, tmp_path) == [] and build.waits(chapter, tmp_path) == "no run yet"
    chapter.write_text(mark.format("2.0"))
    assert len(build.problems(chapter, tmp_path)) == 1
    (tmp_path / "numbers" / "8-zsl.json").write_text("{}")
    chapter.write_text(mark.format("?"))
    assert len(build.problems(chapter, tmp_path)) == 1
