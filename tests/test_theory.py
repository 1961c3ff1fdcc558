"""docs/theory: each lab runs, its assertions hold, and it prints the numbers of its chapter."""

import importlib.util
import os
import re
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

THEORY = Path(__file__).parent.parent / "docs" / "theory"
INDEX = THEORY.parent / "README.md"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"theory_{name}", THEORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, labstyle = load("build"), load("labstyle")
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


# What a strict reader of the first page alone asks for: words and formulas that a right answer cannot do without.
RUBRIC = {
    "1": r"mermaid; q(x_{1:T}; p(x_T); p_\theta(x_{0:T}); \mu_\theta(x_t, t) =; \tilde\beta_t; algorithm 1; algorithm 2; "
    r"width $\sqrt{\beta_t}$; L_{t-1} &=; a x_t - \sigma v; bits in 1,000 steps",
    "2": "mermaid; three restrictions; objective |; sampling cost |; semantic latents |; more than 70; Posterior collapse; "
    "**by design**",
    "3": "mermaid; cross-attention; One first stage serves many models; U-Net; mild compression; | KL | VQ |; A ceiling",
    "4": r"a ready model; criterion |; adversarial; labels are fixed; is dropped in; two passes; oversaturation; "
    r"\tilde\epsilon =; \ne; depends on the sampler",
    "5": "mermaid; train-test mismatch; compounding error; concatenated as channels; conditioning augmentation; "
    "data-processing inequality; is *not* a second stage",
    "6": r"\text{DDPM:}; \text{NCSN:}; (VP); (VE); reverse SDE; probability flow; forward SDE; flow matching; Any solver; "
    r"Predictor-corrector; Unique encoding; Controllable generation; Exact likelihood; \log p_1(x_1)",
    "7": "mermaid; Wundt curve; Martindale (1990); unreal; ZSL and GZSL; a bias shows; & (1); & (5); the papers claim",
    "8": "honest; Pairs; Holm; baselines; bias to seen classes; the papers claim; What it does not say",
}


def first_page(chapter: Path) -> str:
    return chapter.read_text().split("\n## Going further\n")[0]


@pytest.mark.parametrize("number", CHAPTERS)
def test_the_first_page_answers_the_question(number):
    page = first_page(CHAPTERS[number])
    assert page.count("\n**Question.** ") == page.count("\n**Answer.** ") == 1 and "\n## " not in page
    assert [point for point in RUBRIC[number].split("; ") if point not in page] == []
    prose = re.sub(r"```.*?```|<!--.*?-->|^\|.*$", " ", page, flags=re.DOTALL | re.MULTILINE)
    assert len(re.sub(r"\$[^$\n]*\$", "x", prose).split()) < 450


def luminance(colour: str) -> float:
    """The relative luminance of #rrggbb, as the Web Content Accessibility Guidelines define it."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted(luminance(colour) + 0.05 for colour in (one, other))
    return high / low


def test_figures_are_readable_in_small_and_on_light_and_dark_pages():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert all(contrast(labstyle.INK, page) > 4.2 for page in ("#ffffff", "#0d1117"))  # GitHub's two pages
    assert all(contrast(colour, "#ffffff") > 1.9 for colour in labstyle.PALETTE)
    assert labstyle.STYLE["legend.fontsize"] >= 9 and labstyle.STYLE["font.size"] >= 9
    for path in (THEORY / "figures").glob("*.png"):
        with Image.open(path) as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
        assert alpha[0, 0] == 0 and alpha.max() == 255, f"{path.name}: the page does not show through"
    assert not [lab.name for lab in build.labs() if re.search(r"fontsize=\d", lab.read_text())]
