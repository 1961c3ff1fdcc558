"""benchmarks/page*.py: the pages have the numbers of the files, and each claim says what speaks against it."""

import re
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from benchmarks import page, page_results, page_speed, page_tables


@pytest.mark.parametrize("file", page.PAGES, ids=lambda file: file.name)
def test_the_page_matches_the_files(file: Path):
    text = file.read_text(encoding="utf-8")
    assert page.fill(text) == text, "python -m benchmarks.page"


def test_every_block_is_on_a_page():
    text = "".join(file.read_text(encoding="utf-8") for file in page.PAGES)
    assert set(page.BLOCK.findall(text)) == {*page.TABLES, *page.JOINED, *page_results.BLOCKS}


def test_the_time_when_a_curve_reaches_a_loss():
    curve = [[10.0, 0.8], [20.0, 0.6], [30.0, 0.5]]
    assert page_tables.reaches(curve, 0.7) == pytest.approx(15)
    assert page_tables.reaches(curve, 0.9) == 10.0
    assert page_tables.reaches(curve, 0.4) is None


def test_steps_beside_busy_programs_are_shares_of_those_alone():
    figure = lambda speed: {"steps": 9, "steps_a_second": speed, "median": 1 / speed, "longest": 2 / speed}  # noqa: E731
    neighbours = {"set": {"0": figure(2.0), "1": figure(1.0)}}
    text = page_tables.busy({"spin_counts": {"set": "10000"}, "neighbours": neighbours})
    assert "| 10,000 (set) | 1 | 1.00 | 50% | 1.00 | 2.00 |" in text


def trainings(fd: float) -> dict:
    """Results in which we reach the example's last loss, of 600 s, after 300 s."""
    ours, other = {"curve": [[300.0, 0.5]], "fd": fd}, {"curve": [[600.0, 0.5]], "fd": 2.0}
    return {
        "minutes": 10,
        "trainings": {
            f"{space}, {who}": run for space in ("pixels", "latents") for who, run in (("ours", ours), ("example", other))
        },
    }


@pytest.mark.parametrize(("fd", "verdict"), [(1.0, "for us"), (3.0, "against us")])
def test_a_lead_in_loss_names_the_distances_and_the_encoding(fd, verdict):
    encoding = {"recipes": {"faces64": {"parts": {"first stage, encoding": {"images_a_second": 80.0}}}}}  # 24,000 in 300 s
    latents, pixels = page_speed.training(trainings(fd), encoding)
    assert latents[2] == pixels[2] == "2.0"
    assert "encoding 5.0 min before it: 1.0 with that" in latents[-1]
    assert all(f"{verdict}: {fd:.1f}, the example's 2.0" in row[-1] for row in (latents, pixels))


def test_a_missed_aim_says_by_how_much():
    assert page_speed.aim(1.0, 1.0) == "1: met" and page_speed.aim(1.02, 1.25) == "1.25: missed by 0.23"
    [row] = page_speed.loop({"shares": {"defaults": 0.98, "faces64": 0.95}})
    assert row[2:4] == ["0.980", "0.97: met"] and "0.950 with `faces64.yaml`, below the aim" in row[-1]


def test_a_run_is_slower_over_one_epoch_than_encoding_at_each_step():
    kept = {"ours": 10.0, "other": 1.0, "median": 10.0, "min": 9.0, "max": 11.0}  # 0.1 s a step, 0.9 s to encode, two views
    [row] = page_speed.latents({"side": 256, "kept": kept})
    assert f"{1 / (1.8 + 0.1):.2g} over 1, {10 / (1.8 + 1):.2g} over 10" in row[-1]


def test_the_pictures_of_the_recipes_are_the_first_of_their_grids():
    pictures = page_results.pictures()
    assert len(pictures) >= 4
    for path, picture in pictures.items():
        assert ImageChops.difference(picture, Image.open(path)).getbbox() is None, "python -m benchmarks.page"


def test_a_grid_is_cut_between_its_pictures(tmp_path):
    """Pictures of 4 pixels, twice as large, lines of 2 x 2: the first 4 x 2 are 44 x 24 pixels, halved."""
    grid = Image.new("RGB", (2 * (8 * 4 + 9 * 2),) * 2, "white")
    grid.paste("red", (4, 4, 12, 12))
    grid.paste("blue", (4 + 4 * 12, 4, 12 + 4 * 12, 12))  # the fifth of the first row
    grid.save(tmp_path / "grid.png")
    made = page_results.few(tmp_path / "grid.png", 4)
    assert made.size == (4 * 4 + 5 * 2, 2 * 4 + 3 * 2)
    assert sorted(made.getcolors()) == [(16, (255, 0, 0)), (26 * 14 - 16, (255, 255, 255))]


def test_results_have_no_weights():
    kept = {file.suffix for file in page_results.RUNS.rglob("*") if file.is_file()}
    assert kept <= {".json", ".yaml", ".csv", ".png", ".webp"}


def test_every_evaluation_is_in_the_journal():
    journal = (page.DOCS / "journal" / "recipes.md").read_text()
    for file in page_results.RUNS.glob("*/evaluation.json"):
        assert re.search(rf"^\| {file.parent.name}\b", journal, re.MULTILINE), file
