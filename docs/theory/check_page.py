"""Open docs/_build/theory.html in headless Chromium and look for what is broken.

    apt-get install chromium                      Debian's package; chromium-headless-shell will do
    python docs/theory/check_page.py              says what it found, or that there is no browser; 1 where something is wrong
    python docs/theory/check_page.py --picture page.png

A script that is put into a copy of the page asks the browser itself: did each picture load, does each link into the page lead
to something, has each formula a size, is there TeX that was left as text, is the page wider than its window?
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent.parent / "_build" / "theory.html"
BROWSERS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
PROBE = """<script>window.addEventListener("load", () => {
  const all = (what) => [...document.querySelectorAll(what)];
  const text = document.body.cloneNode(true);
  text.querySelectorAll("pre, code, script, style, math").forEach((part) => part.remove());
  const found = {
    chapters: all("h1").length - all("h1.title").length,
    pictures: all("img").length,
    "pictures that did not load": all("img").filter((img) => !img.naturalWidth).map((img) => img.alt),
    links: all('a[href^="#"]').length,
    "links to nowhere": all('a[href^="#"]').map((a) => a.getAttribute("href").slice(1))
      .filter((id) => id && !document.getElementById(decodeURIComponent(id))),
    formulas: all("math").length,
    "formulas without a size": all("math").filter((m) => !m.getBoundingClientRect().width).map((m) => m.textContent),
    "TeX that was left as text": text.textContent.match(/\\\\[a-z]{3,}|\\$[^$\\n]{1,40}\\$/g) || [],
    "wider than the window by": Math.max(0, document.documentElement.scrollWidth - window.innerWidth),
  };
  const note = document.createElement("pre"); note.id = "probe"; note.textContent = JSON.stringify(found);
  document.body.append(note);
});</script>"""


def browser(binary: str, *flags: str) -> str:
    """Run it; what it printed."""
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600", "--virtual-time-budget=8000"]
    return subprocess.run([binary, *common, *flags], check=True, capture_output=True, text=True, timeout=300).stdout


def main(picture: str | None) -> int:
    """Print what was found; 1 where something is wrong."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        print(f"the page was not looked at: there is no {', '.join(BROWSERS)}")
        return 0
    if not PAGE.exists():
        sys.exit(f"{PAGE} is not there: make theory-page")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(PAGE.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
        dumped = browser(binary, "--dump-dom", copy.as_uri())
    found = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', dumped, re.DOTALL)[1]))
    for name, value in found.items():
        print(f"{name}: {value}")
    if picture:
        browser(binary, f"--screenshot={Path(picture).absolute()}", PAGE.as_uri())
    wrong = [name for name, value in found.items() if isinstance(value, list) and value]
    chapters = len(list(Path(__file__).parent.glob("[0-9]-*.md")))
    return bool(wrong) or found["chapters"] != chapters or found["wider than the window by"] > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", help="a PNG of the page's beginning")
    sys.exit(main(parser.parse_args().picture))
