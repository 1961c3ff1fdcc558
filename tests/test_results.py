"""The tables in docs/results.md match the evaluations in docs/results/."""

import json
from pathlib import Path

import pytest

from tests.support.runs import ROOT
from tinyldm.evaluation.report import headline, rows

EVALUATIONS = sorted((ROOT / "docs/results").glob("*/evaluation*.json"))


@pytest.mark.parametrize("file", EVALUATIONS, ids=lambda file: file.parent.name + file.stem.removeprefix("evaluation"))
def test_the_page_matches_the_evaluations(file: Path):
    page, evaluation = (ROOT / "docs/results.md").read_text(), json.loads(file.read_text())
    for result in evaluation["results"]:
        assert headline(evaluation["images"], result) in page
        for row in rows(result)[1:]:
            assert f"| {' | '.join(row)} |" in page


def test_there_are_evaluations_and_no_weights():
    kept = {file.suffix for file in (ROOT / "docs/results").rglob("*") if file.is_file()}
    assert EVALUATIONS and kept <= {".json", ".yaml", ".csv", ".png"}
