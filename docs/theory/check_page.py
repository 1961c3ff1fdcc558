"""Do the links of docs/_build/theory.html lead to files? Then open it in headless Chromium and look for what is broken.

    apt-get install chromium                      Debian's package; chromium-headless-shell will do
    python docs/theory/check_page.py              says what it found, or that there is no browser; 1 where something is wrong
    python docs/theory/check_page.py --picture page.png

A script that is put into a copy of the page asks the browser itself: did each picture load, does each link into the page lead
to something, has each formula a size, is there TeX that was left as text, was each diagram drawn, is the page wider than its
window? Where Mermaid's script could not be loaded, since there is neither npm nor a network, that is said and is no failure.
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
from urllib.parse import unquote

PAGE = Path(__file__).parent.parent / "_build" / "theory.html"
BROWSERS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
UNDRAWN, SCRIPT_LOADED = "diagrams that were not drawn", "Mermaid's script was loaded"
PROBE = """<script>window.addEventListener("load", () => setTimeout(() => {  // Mermaid begins at this event, too
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
    diagrams: all("pre.mermaid").length,
    "diagrams that were not drawn": all("pre.mermaid").map((d, i) =>
      !d.querySelector("svg") || d.querySelector("svg[aria-roledescription=error]") ? i + 1 : 0).filter((i) => i),
    "Mermaid's script was loaded": Boolean(window.mermaid),
    "wider than the window by": Math.max(0, document.documentElement.scrollWidth - window.innerWidth),
  };
  const note = document.createElement("pre"); note.id = "probe"; note.textContent = JSON.stringify(found);
  document.body.append(note);
}, 4000));</script>"""


def dead_links(page: str, folder: Path) -> list[str]:
    """The relative links of a page that lies in the folder, and those into the page itself, that lead to nothing."""
    links = {html.unescape(link) for link in re.findall(r'<a [^>]*href="([^"]*)"', page)}
    places = set(re.findall(r' id="([^"]*)"', page))
    into = {link for link in links if link.startswith("#")}
    files = {link for link in links - into if not re.match("[a-z]+:", link)}
    dead = [link for link in into if unquote(link[1:]) not in places]
    return sorted(dead + [link for link in files if not (folder / unquote(link.split("#")[0])).exists()])


def browser(binary: str, *flags: str) -> str:
    """Run it; what it printed."""
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600", "--virtual-time-budget=8000"]
    return subprocess.run([binary, *common, *flags], check=True, capture_output=True, text=True, timeout=300).stdout


def main(page: Path, picture: str | None = None) -> int:
    """Print what was found; 1 where something is wrong."""
    if not page.exists():
        sys.exit(f"{page} is not there: make theory-page")
    text = page.read_text(encoding="utf-8")
    dead = dead_links(text, page.parent)
    print(f"links that lead to nothing: {dead}")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        print(f"the page was not opened: there is no {', '.join(BROWSERS)}")
        return bool(dead)
    with tempfile.NamedTemporaryFile("w", dir=page.parent, suffix=".html", encoding="utf-8") as copy:  # beside its script
        copy.write(text.replace("</body>", PROBE + "</body>"))
        copy.flush()
        dumped = browser(binary, "--dump-dom", Path(copy.name).as_uri())
    found = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', dumped, re.DOTALL)[1]))
    if not found[SCRIPT_LOADED]:
        found[UNDRAWN] = f"all {found['diagrams']}: their sources are shown"
    for name, value in found.items():
        print(f"{name}: {value}")
    if picture:
        browser(binary, f"--screenshot={Path(picture).absolute()}", page.as_uri())
    wrong = [name for name, value in found.items() if isinstance(value, list) and value]
    chapters = len(list(Path(__file__).parent.glob("[0-9]-*.md")))
    return bool(dead or wrong) or found["chapters"] != chapters or found["wider than the window by"] > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", help="a PNG of the page's beginning")
    sys.exit(main(PAGE, parser.parse_args().picture))
