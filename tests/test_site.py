"""docs/check_site.py finds what is broken on a page, and docs/hooks.py keeps pages from asking other servers."""

import importlib.util
import shutil

import pytest

from tests.support.runs import ROOT

BROKEN = """<!doctype html><title>broken</title><link rel="icon" href="data:,">
<img src="none.png"><img src="https://example.org/a.png"><span class="katex-error" title="no such command"></span>
<span class="arithmatex">\\(x\\)</span><span class="arithmatex"><i class="katex"></i></span>
<div style="width: 3000px">wide</div><pre class="mermaid">a --> b</pre><script>console.error("oh"); later()</script>"""
SOUND = '<!doctype html><title>sound</title><link rel="icon" href="data:,"><p>Nothing is wrong here.'


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_each_fault_of_a_page_is_found(tmp_path, monkeypatch):
    pytest.importorskip("playwright", reason="docs/requirements.txt is not installed")
    check = load("check_site")
    binary = next(filter(None, map(shutil.which, check.BROWSERS)), None) or pytest.skip("there is no Chromium")
    monkeypatch.setattr(check, "DRAWN", 3.0)
    monkeypatch.setattr(check, "WIDTHS", (390,))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "index.html").write_text(BROKEN)
    (tmp_path / "index.html").write_text(SOUND)
    found = list(check.problems(tmp_path, binary))
    assert [line for line in found if not line.startswith("390 px, deep/index.html: ")] == []
    for fault in (
        "request to https://example.org/a.png", "console: oh", "script: later is not defined", "a diagram was not drawn",
        "none.png", "formula: no such command", "TeX left: \\(x\\)", "wider than its window by 26",
    ):  # fmt: skip
        assert any(fault in line for line in found), fault
    assert not [line for line in found if "TeX" in line and "x" not in line]


def test_pages_ask_no_other_server_and_load_mermaid_for_diagrams_only():
    pytest.importorskip("mkdocs", reason="docs/requirements.txt is not installed")
    hooks = load("hooks")
    page = '<a data-md-component="source"></a>{}<script src="../assets/mermaid.min.js"></script><script src="site.js"></script>'
    assert hooks.on_post_page(page.format(""), None, None) == '<a ></a><script src="site.js"></script>'
    diagram = '<pre class="mermaid">a</pre>'
    assert "mermaid.min.js" in hooks.on_post_page(page.format(diagram), None, None)
