"""The page in a headless browser: every control moved once, at the width of a desk and of a phone; what it must not serve.

Needs gradio, playwright and Chromium: docs/app.md. SCREENSHOTS=FOLDER keeps pictures to look at.
"""

import io
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from tests.support.app import SIDE, add_extras, many_labels, save_run
from tests.support.runs import ROOT
from tinyldm.app.actions import play, read
from tinyldm.config.parsing import parse, to_dict
from tinyldm.config.schema import Sample
from tinyldm.drawing.sampling import sample
from tinyldm.models.loading import load_for

gr = pytest.importorskip("gradio", reason="the page needs gradio: docs/app.md")
add_report = pytest.importorskip("tinyldm.app.page").add_report
pytestmark = pytest.mark.slow
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 120_000  # milliseconds


def start(run: Path, folder: Path, *more: str):
    """The page of a run, by its command: the process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "served"),
    }
    command = [sys.executable, "-m", "tinyldm.app", str(run), *more, "--device", "cpu"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=folder)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(3 * WAIT // 1000):
        assert process.poll() is None, "the page has ended"
        try:
            urlopen(url, timeout=5).close()
            return process, url
        except (URLError, TimeoutError):
            time.sleep(1)
    raise TimeoutError(url)


@pytest.fixture(scope="module", params=["faces", "stage", "chain"])
def opened(request, tmp_path_factory):
    """(name, run, address) of a page that answers: of a model with a report, of a stage, of both with many labels."""
    name, folder = request.param, tmp_path_factory.mktemp("page")
    if name == "chain":
        run = save_run(folder / "small", side=SIDE // 2, labels=many_labels())
        process, url = start(run, folder, "--then", str(save_run(folder / "stage", stage=True)))
    else:
        run = save_run(folder / name, name == "stage")
        process, url = start(add_extras(run) if name == "faces" else run, folder)
    yield name, run, url
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright: docs/app.md")
    if BROWSER is None:
        pytest.skip("there is no Chromium here: docs/app.md")
    with sync.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--enable-unsafe-swiftshader"])


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(request, browser, opened):
    """The page in a browser. It asks no other server, reports no error and is not wider than the screen."""
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(WAIT)
    foreign, errors = [], []
    page.on(
        "request", lambda asked: foreign.append(asked.url) if not asked.url.startswith((opened[2], "data:", "blob:")) else 0
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(opened[2])
    page.wait_for_selector("button[role=tab]")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert foreign == [] and errors == []
    page.close()


def tab(page, name: str):
    """Go to a tab, which on a phone may be behind the button of the others."""
    found = page.locator(f"button[role=tab]:visible:text-is('{name}')")
    if not found.count():
        page.locator(".overflow-menu > button").click()
        found = page.locator(f".overflow-dropdown button:text-is('{name}')")
    found.click()
    return page.locator("div[role=tabpanel]:visible")


def go(page, panel, name: str, run: Path, part: str = "The same by"):
    """Press the button of a tab; the picture, and the keys of the command beside it."""
    panel.get_by_role("button", name=name, exact=True).click()
    panel.get_by_text(part).last.wait_for()
    shot(page, name)
    program, script, *args = shlex.split(panel.locator("pre code").inner_text())
    assert (program, script) == ("python", "sample.py") and f"--model={run}" in args
    return pixels(panel.locator(".made img").last), args


def pixels(image) -> np.ndarray:
    """The picture that an element of the page shows."""
    return np.asarray(Image.open(io.BytesIO(urlopen(image.get_attribute("src")).read())).convert("RGB"))


def shot(page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{page.viewport_size['width']}-{name}.png", full_page=True)


def choose(page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=value, exact=True).click()


def fill(page, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=False).locator("visible=true").first
    field.fill(value)
    field.press("Tab")


def number(panel, label: str, value: str) -> None:
    """Set a number, or the number beside a slider."""
    field = panel.locator(f"input[aria-label^='number input for {label}']:visible").first
    field.fill(value)
    field.press("Tab")


def last(run: Path, args: list[str]) -> np.ndarray:
    config = parse(Sample, None, args)
    *_, image = play(load_for(str(run), config), config)
    return np.asarray(image)


def test_every_control_changes_what_sample_is_asked(page, opened):
    name, run, _ = opened
    if name != "faces":
        pytest.skip("it has other controls")
    panel = tab(page, "Draw")
    fill(page, "Seed", "7")
    choose(page, "hair", "long")
    page.locator("fieldset", has_text="Smiling").get_by_label("yes").check()
    choose(page, "Sampler", "ddim")
    choose(page, "Averaged weights", "0.05")
    number(page, "Guidance scale", "3")
    number(page, "Steps", "3")
    number(panel, "Images", "2")
    picture, args = go(page, panel, "Draw", run)
    config = parse(Sample, None, args)
    expected = {"seed": 7, "labels": "Smiling=true,hair=long", "scheduler": "ddim", "guidance_scale": 3, "ema": 0.05}
    assert to_dict(config) == to_dict(read({"model": run, "num_images": 2, "num_inference_steps": 3, **expected}))
    assert np.array_equal(picture, last(run, args))

    panel = tab(page, "Interpolate")
    fill(panel, "To the seed", "9")
    picture, args = go(page, panel, "Interpolate", run)
    assert parse(Sample, None, args).interpolate == (7, 9) and np.array_equal(picture, last(run, args))

    panel = tab(page, "Edit")
    panel.get_by_role("button", name="Take the image of the seed").click()
    taken = panel.locator(".made img").first
    taken.wait_for()
    assert np.array_equal(pixels(taken), next(sample(load_for(str(run), config), 1, 1, 7, config))[0].permute(1, 2, 0))
    number(panel, "Strength", "0.8")
    number(panel, "Images", "3")
    _, args = go(page, panel, "Edit", run)
    config = parse(Sample, None, args)
    assert (config.strength, config.num_images, config.image, config.mask) == (0.8, 3, "image.png", None)
    panel.get_by_label("Box to draw anew").fill("4,4,12,12")
    _, args = go(page, panel, "Edit", run, "--mask")
    assert parse(Sample, None, args).mask == "4,4,12,12"

    before = page.get_by_label("Seed", exact=True).input_value()
    page.get_by_role("button", name="Another seed").click()
    page.wait_for_function(f"document.querySelector('input[aria-label=Seed]').value != '{before}'")
    panel = tab(page, "Report")
    panel.frame_locator("iframe").get_by_text("null 2").wait_for()  # its script ran, in an origin of its own
    shot(page, "Report")


def test_a_stage_enlarges_an_upload(page, opened, tmp_path):
    name, run, _ = opened
    if name != "stage":
        pytest.skip("it only draws")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "small.png")
    panel = tab(page, "Enlarge")
    number(page, "Steps", "2")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "small.png")
    panel.locator("img").first.wait_for()
    picture, args = go(page, panel, "Enlarge", run)
    args = [arg.replace("image.png", str(tmp_path / "small.png")) for arg in args]
    assert np.array_equal(picture, last(run, args))
    panel = tab(page, "Report")  # of a run without report.html
    panel.get_by_text("held-out loss 0.25").wait_for()
    assert panel.locator("img").first.evaluate("image => image.naturalWidth") == 300
    assert "train_ldm" not in panel.inner_text()


def test_a_cascade_draws_with_one_of_many_labels(page, opened):
    name, run, _ = opened
    if name != "chain":
        pytest.skip("it has no stages")
    assert page.locator("button[role=tab]").all_inner_texts() == ["Draw", "Report"]
    page.get_by_role("button", name="Labels").click()
    page.locator("fieldset", has_text="Glasses_29").get_by_label("no", exact=True).check()
    choose(page, "person", "number 7")
    number(page, "Steps", "2")
    picture, args = go(page, tab(page, "Draw"), "Draw", run)
    config = parse(Sample, None, args)
    assert config.labels == "Wearing_Necktie_and_Glasses_29=false,person=number 7"
    assert config.then == str(run.parent / "stage") and np.array_equal(picture, last(run, args))


@pytest.mark.parametrize(("run", "framed"), [("{}", True), ("{}/checkpoints/step-1", True), ("user/faces", False)])
def test_only_a_run_on_this_machine_has_its_report_in_a_frame(run, framed, tmp_path, monkeypatch):
    (tmp_path / "checkpoints/step-1").mkdir(parents=True)
    for name in ("report.html", "README.md"):
        (tmp_path / name).write_text("<script>")
    if not framed:  # as if it were downloaded
        files = {file.name: file for file in tmp_path.glob("*.*")}
        monkeypatch.setattr("tinyldm.app.page.beside", lambda run, name: files.get(name))
    with gr.Blocks() as blocks, gr.Tab() as tab:
        add_report(run.format(tmp_path), tab)
    kinds = [type(part) for part in blocks.blocks.values()]
    assert (kinds.count(gr.HTML), kinds.count(gr.Markdown)) == ((1, 0) if framed else (0, 1))


def test_no_other_file_is_served(opened):
    _, run, url = opened
    for path in ("/etc/passwd", run / "README.md", run / "pipeline/model_index.json", ROOT / "README.md"):
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(f"{url}gradio_api/file={path}"))
        assert refused.value.code in (403, 404)
