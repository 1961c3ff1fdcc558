"""Opens each page of build/site in headless Chromium, at three widths, and prints what is broken: `make docs-check`.

Looked for: errors in the console, requests to other servers, formulas and diagrams that were not drawn, pictures that did
not load, and pages that scroll sideways. Exits with 1 if it finds something; without a browser it says so and exits with 0.
"""

import functools
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Page, TimeoutError, sync_playwright
from tqdm import tqdm

SECONDS, DRAWN = 120.0, 60.0  # that a page and its diagrams may take, on a busy machine
SITE = Path(__file__).parent.parent / "build" / "site"
BROWSERS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
WIDTHS = (1440, 1024, 390)  # px: a desk, a tablet, a phone
DIAGRAMS = "count => document.querySelectorAll('div.mermaid').length >= count"  # Material puts them in place of pre.mermaid
PROBE = r"""() => {
  const all = what => [...document.querySelectorAll(what)];
  const found = all("img").filter(img => !img.naturalWidth).map(img => `picture not loaded: ${img.src}`);
  found.push(...all(".katex-error").map(part => `formula: ${part.title}`));
  found.push(...all(".arithmatex").filter(part => !part.querySelector(".katex")).map(part => `TeX left: ${part.textContent}`));
  const wider = document.documentElement.scrollWidth - window.innerWidth;
  return wider > 0 ? [...found, `wider than its window by ${wider} px`] : found;
}"""


class Handler(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_: object) -> None:
        pass


def look(page: Page, address: str, home: str) -> list[str]:
    """What is wrong with the page at an address, which begins with `home` as all its requests should."""
    found: list[str] = []
    page.on("request", lambda r: r.url.startswith((home, "data:", "blob:")) or found.append(f"request to {r.url}"))
    page.on("console", lambda message: message.type == "error" and found.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    response = page.goto(address, wait_until="load")
    diagrams = response.text().count('<pre class="mermaid">') if response else 0
    try:
        page.wait_for_function(DIAGRAMS, arg=diagrams, timeout=DRAWN * 1000)
    except TimeoutError:
        found.append("a diagram was not drawn")
    return found + page.evaluate(PROBE)


def problems(site: Path, binary: str) -> Iterator[str]:
    """What is wrong on the pages of a folder, one line each: the width, the page, the fault."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    with sync_playwright() as play, play.chromium.launch(executable_path=binary, args=["--no-sandbox"]) as browser:
        context = browser.new_context()  # one, so that it keeps the scripts
        context.set_default_timeout(SECONDS * 1000)
        for width in WIDTHS:
            for file in tqdm(sorted(site.rglob("index.html")), f"{width} px", unit="page"):
                name = file.relative_to(site).as_posix()
                with context.new_page() as page:
                    page.set_viewport_size({"width": width, "height": 1000})
                    yield from (f"{width} px, {name}: {fault}" for fault in look(page, home + name, home))
    server.shutdown()


if __name__ == "__main__":
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        sys.exit(print(f"the site was not opened: there is no {', '.join(BROWSERS)}"))
    faults = 0
    for line in problems(SITE, binary):
        faults += 1
        tqdm.write(line)
    print(f"{faults} faults")
    sys.exit(faults > 0)
