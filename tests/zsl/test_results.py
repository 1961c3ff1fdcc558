"""The tables of docs/results.md are those of the runs' results.csv that lie beside it."""

from pathlib import Path

import pytest

from tests.support.runs import ROOT
from zsl import report
from zsl.protocols import PROTOCOLS

RUNS = sorted((ROOT / "docs/results").glob("zsl-*/results.csv"))


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.parent.name)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_page_says_what_was_measured(file: Path, protocol: str):
    page, results = (ROOT / "docs/results.md").read_text(), report.read_results(file)
    tables = [report.means(results, protocol)]
    tables += [report.paired(results, protocol, "top1", report.best_baseline(results, protocol, "top1"))]
    tables += [report.paired(results, protocol, metric, "gazsl") for metric in ("top1", "auc")]
    for table in tables:
        assert report.markdown(table) in page


def test_there_are_runs():
    assert RUNS
