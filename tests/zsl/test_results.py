"""The tables in docs/results.md match the results.csv of the runs in docs/results/."""

from pathlib import Path

import pytest

from tests.support.runs import ROOT
from zsl import report
from zsl.protocols import PROTOCOLS

RUNS = sorted((ROOT / "docs/results").glob("zsl-*/results.csv"))


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.parent.name)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_page_has_the_tables_of_the_run(file: Path, protocol: str):
    page, results = (ROOT / "docs/results.md").read_text(), report.read_results(file)
    tables = [report.means(results, protocol)]
    tables += [report.paired(results, protocol, "top1", report.best_baseline(results, protocol, "top1"))]
    tables += [report.paired(results, protocol, metric, "gazsl") for metric in ("top1", "auc")]
    for table in tables:
        assert report.markdown(table) in page


def test_there_are_runs():
    assert RUNS
