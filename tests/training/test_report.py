"""report.html: one page without a network, small, and safe whatever the names in a run are."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyldm.training import report

EVIL = "</script><script>alert('x')</script>\"'><img src=x onerror=alert(1)>"
CARD = {
    "template": "ldm",
    "evaluation": None,
    "values": {
        **{"parameters": 1234567, "steps": 30, "images_per_step": 4, "images": 120, "duration": "9 s"},
        **{"images_per_second": 13.3, "hardware": "CPU", "train_images": 60, "remarks": "", "first_stage": "vq"},
        **{"figures": [["held-out loss", "0.5"]], "config": "seed: 0"},
    },
}


def write_run(run: Path, pictures: int = 2, side: int = 32, noise: bool = False) -> Path:
    (run / "samples").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(pictures):
        pixels = random.integers(0, 256, (side, side, 3)) if noise else np.full((side, side, 3), i)
        Image.fromarray(pixels.astype(np.uint8)).save(run / "samples" / f"step-{10 * (i + 1):07d}.png")
    (run / "metrics.csv").write_text("step,loss,eval_loss,eval_loss_q1\n10,1.0,,\n20,nan,0.7,0.25\n30,0.5,0.6,0.125\n")
    (run / "config.yaml").write_text("first_stage: {path: null}\n")
    return run


def embedded(page: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r"data:image/\w+;base64,([\w+/=]+)", page)]


def constant(page: str, name: str) -> list:
    (text,) = re.findall(rf"\b{name} = (\[.*?\])(?:, panels =|;\n)", page)
    return json.loads(text)


def test_the_page_has_each_picture_once_as_given_and_in_order(tmp_path):
    run = write_run(tmp_path / "run", pictures=3)
    page = report.render(run, CARD)
    given = [(run / "samples" / f"step-{step:07d}.png").read_bytes() for step in (10, 20, 30)]
    assert embedded(page) == [given[2], given[0], given[1]]  # the last one is shown, the others are the script's
    assert [slide["step"] for slide in constant(page, "pictures")] == [10, 20, 30]


def test_the_curves_are_those_of_metrics_csv_without_what_is_not_finite(tmp_path):
    panels = constant(report.render(write_run(tmp_path / "run"), CARD), "panels")
    assert [panel["series"] for panel in panels] == [
        [{"name": "training", "points": [[10, 1.0], [30, 0.5]]}],
        [{"name": "eval_loss", "points": [[20, 0.7], [30, 0.6]]}],
        [{"name": "q1", "points": [[20, 0.25], [30, 0.125]]}],
    ]


def test_strange_strings_stay_text(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.csv").write_text(f'step,"eval_{EVIL.replace(chr(34), chr(34) * 2)}"\n1,2\n')
    label = {"values": [{"number": 0, "name": EVIL, "count": 3}]}
    data = {"name": EVIL, "kind": EVIL, "found": 3, "read": 3, "ignored": {EVIL: 1}, "column": EVIL, "split": EVIL}
    (run / "data.json").write_text(json.dumps({**data, "held_out": {"images": 1, "how": EVIL}, "labels": {EVIL: label}}))
    values = {**CARD["values"], "hardware": EVIL, "config": EVIL, "figures": [[EVIL, EVIL]], "remarks": EVIL}
    section = f"## Evaluation\n\n{EVIL}\n\n| {EVIL} |\n| --- |\n| {EVIL} |"
    page = report.render(run, {"template": "ldm", "values": values, "evaluation": {"section": section}})
    assert page.count("<script") == page.count("</script>") == 1 and page.count("<img") == 1
    assert "onerror=alert(1)&gt;" in page  # the text is there, escaped


def test_a_long_run_has_first_and_last_picture_and_stays_below_5_mb(tmp_path):
    run = write_run(tmp_path / "run", pictures=30, side=420, noise=True)  # 14 MB of noise, which compresses worst
    page = report.render(run, CARD)
    steps = [slide["step"] for slide in constant(page, "pictures")]
    assert len(page) < 5e6 and len(steps) == report.SLIDES and (steps[0], steps[-1]) == (10, 300)
    shown = Image.open(io.BytesIO(embedded(page)[0]))
    assert shown.format == "JPEG" and shown.size == (384, 384)


def test_a_denoisers_page_shows_the_first_stages_reconstructions(tmp_path):
    stage = write_run(tmp_path / "vq", pictures=2, side=16)
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(f"first_stage: {{path: {stage}}}\n")
    page = report.render(run, CARD)
    assert embedded(page)[1] == (stage / "samples/step-0000020.png").read_bytes()
    assert "each above its reconstruction, at step 20 of vq" in " ".join(page.split())
    assert str(tmp_path) not in page


def test_an_evaluation_becomes_tables_and_paragraphs():
    section = "## Evaluation\n\nAbout it.\n\n| | a |\n| --- | --- |\n| FD ↓ | 3 |\n\n| b |\n| --- |\n\nIn brackets."
    tables = [[["", "a"], ["FD ↓", "3"]], [["b"]]]
    assert report.blocks(section) == [
        {"text": "About it."},
        *({"table": table} for table in tables),
        {"text": "In brackets."},
    ]


@pytest.mark.slow
def test_a_finished_runs_page_asks_for_nothing_from_elsewhere(ldm_run):
    page = (ldm_run / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)|url\((?!#)|@import|fetch\(|<link""", page)
    assert "report.html" in (ldm_run / ".manifest").read_text().splitlines()
    assert page.count("data:image/png") == 2  # its sample, and its first stage's reconstructions
