"""The page: controls of sample.py's settings, a tab for each action that the model can do, and the run's report.

It answers on this machine only (127.0.0.1) unless GRADIO_SERVER_NAME says otherwise, sends nothing to other servers, and
serves no files but the pictures that it has made.
"""

import contextlib
import html
import random
import re
import shlex
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import gradio as gr
from huggingface_hub import hf_hub_download
from PIL import Image

from tinyldm.app.actions import ACTIONS, Action, arguments, from_noise, play, read
from tinyldm.config.schema import Sample, Sampler, SamplerSettings
from tinyldm.drawing.actions import act, load_chain
from tinyldm.errors import UserError, boundary
from tinyldm.limits import open_image, read_text
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model
from tinyldm.pictures import to_pil
from tinyldm.remote import from_hub
from tinyldm.training.accelerator import default_device
from tinyldm.training.power_ema import run_with_snapshots

IMAGES, STEPS, SCALE = 16, 200, 8.0  # the most that visitors of the page may ask for
SEEDS = 2**31 - 1
WIDTHS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2)  # of the average of the weights
FAST, FEW_STEPS = "dpm-solver++", 20  # the page starts with these, where the model has this sampler
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no requests for fonts
CSS = """
.made img {image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain}
pre code {white-space: pre-wrap !important; overflow-wrap: anywhere}
iframe {width: 100%; height: 80vh; border: 0}
"""
# Scripts of the report run in an origin of their own: without allow-same-origin they reach nothing of the page.
FRAME = '<iframe title="report" sandbox="allow-scripts" srcdoc="{}"></iframe>'
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
DRAWING: dict[str, Any] = {**PRIVATE, "concurrency_id": "model"}  # one at a time
UPLOAD: dict[str, Any] = {"type": "pil", "sources": ["upload", "clipboard"], "format": "png", "height": 280}
Controls = dict[str, Any]  # key -> component; the values that a handler gets have the components as keys
Given = dict[Any, Any]


def serve(run: str, then: str | None = None, device: str | None = None) -> None:
    """Load the model and open the page, until Ctrl-C.

    Args:
        run, then, device: as in config.app.App.

    Raises:
        UserError: as models.loading.load_model and drawing.actions.load_chain.
    """
    blocks = Page(run, then, default_device(device)).build()
    blocks.launch(share=False, theme=THEME, css=CSS, footer_links=[], ssr_mode=False, max_file_size="20mb")


@contextlib.contextmanager
def errors_shown() -> Iterator[None]:
    """A UserError inside `with` appears on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error


class Page:
    """The page of a model.

    Attributes:
        run, then: the model and the stages after it, as sample.py calls them.
        load: the width of an average of the weights, or None -> the model.
        settings: the controls that all actions share, by the keys of sample.py.
        labels: those of labels, by their names.
    """

    def __init__(self, run: str, then: str | None, device: str):
        self.run, self.then = run, then
        self.load: Callable[..., Model] = lru_cache(maxsize=2)(partial(load_model, run, device))
        self.model = self.load(ema=None)
        chain = read({"model": run, "then": then})
        self.side = load_chain(self.model, chain)[-1].side if then else self.model.side
        self.settings: Controls = {}
        self.labels: Controls = {}

    def build(self) -> gr.Blocks:
        """The components and what they do."""
        name, model = Path(self.run).name, self.model
        offered = [title for title, action in ACTIONS.items() if action.fits(model)]
        with gr.Blocks(title=f"{name}: tinyldm", analytics_enabled=False) as blocks:
            gr.Markdown(f"# {name}\n{self.side} x {self.side} pixels, {model.device.type.upper()}")
            with gr.Row():
                column = gr.Column(scale=2, min_width=300)  # the first one on a phone
                with gr.Column(scale=1, min_width=300):
                    self.add_settings()
            with column, gr.Tabs():
                for title in ["Draw"] if self.then else offered:
                    with gr.Tab(title):
                        self.add_action(title, ACTIONS[title])
                with gr.Tab("Report") as tab:
                    add_report(self.run, tab)
        return blocks

    def add_settings(self) -> None:
        """Seed, labels, guidance, sampler, steps and average: those that the model has."""
        model, controls = self.model, self.settings
        controls["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS)
        another = gr.Button("Another seed", size="sm")
        another.click(lambda: random.randrange(10**6), outputs=controls["seed"], **PRIVATE)
        if model.labels is not None:
            with gr.Accordion("Labels", open=len(model.labels.values) <= 8), gr.Row():
                self.labels = {name: label_control(name, values) for name, values in model.labels.values.items()}
        if model.labels is not None or model.guide is not None:
            least, most, about = min(1.0, model.scale), max(SCALE, model.scale), "1: none. Larger: less variety."
            controls["guidance_scale"] = gr.Slider(least, most, model.scale, step=0.1, label="Guidance scale", info=about)
        samplers = [name for name in get_args(Sampler) if can(model, name)]
        fast, own = FAST in samplers, model.sampler_facts(SamplerSettings())["sampler"].removesuffix("Scheduler")
        choices = [(f"the model's own ({own})", ""), *((name, name) for name in samplers)]
        controls["scheduler"] = gr.Dropdown(choices, value=FAST if fast else "", label="Sampler")
        steps = FEW_STEPS if fast or not from_noise(model) else SamplerSettings.num_inference_steps
        controls["num_inference_steps"] = gr.Slider(1, STEPS, steps, step=1, label="Steps")
        with contextlib.suppress(UserError):
            run_with_snapshots(self.run)
            about = "Relative width of the average, as a part of the training."
            choices = [("the model's own", ""), *((str(width), str(width)) for width in WIDTHS)]
            controls["ema"] = gr.Dropdown(choices, value="", label="Averaged weights", info=about)

    def keys(self, given: Given) -> dict[str, Any]:
        """Keys of sample.py from the values of the shared controls."""
        labels = ",".join(f"{name}={given[control]}" for name, control in self.labels.items() if given[control])
        settings = {key: given[control] for key, control in self.settings.items()}
        return {"model": self.run, "then": self.then, **settings, "labels": labels}

    @property
    def shared(self) -> set[Any]:
        """All shared controls."""
        return {*self.settings.values(), *self.labels.values()}

    def add_action(self, title: str, action: Action) -> None:
        """The controls of an action, its button and its result."""
        gr.Markdown(action.about)
        own = OWN[title](self)
        with gr.Row():
            begin, stop = gr.Button(title, variant="primary", min_width=100), gr.Button("Stop", min_width=100)
        look: dict[str, Any] = {"interactive": False, "buttons": ["download", "fullscreen"], "height": 420}
        picture, said = gr.Image(label="Picture", format="png", elem_classes="made", **look), gr.Markdown()

        def handle(given: Given) -> Iterator[tuple[Image.Image, str]]:
            with errors_shown(), TemporaryDirectory() as folder:
                keys = {**self.keys(given), **action.keys(Path(folder), **{key: given[own[key]] for key in own})}
                config, notes = read(keys), list[str]()
                for made in play(self.load(ema=config.ema), config, notes):
                    yield made, ""
                command = shlex.join(["python", "sample.py", *arguments(keys)]).replace(f"{folder}/", "")
                yield made, "\n\n".join([*notes, f"The same by\n```bash\n{command}\n```"])

        running = begin.click(handle, self.shared | {*own.values()}, [picture, said], **DRAWING)
        stop.click(None, cancels=running, **PRIVATE)

    def drawn(self, given: Given) -> Image.Image:
        """The image of the seed."""
        with errors_shown():
            config = read({**self.keys(given), "num_images": 1})
            return to_pil(next(act(self.load(ema=config.ema), config).batches)[0])


def label_control(name: str, values: list[str]) -> Any:
    """A choice among the values of a label, or any: then it varies from seed to seed as in the data."""
    if {*values} == {"true", "false"}:
        return gr.Radio([("yes", "true"), ("no", "false"), ("any", "")], value="", label=name, min_width=260)
    return gr.Dropdown([("any", ""), *((value, value) for value in values)], value="", label=name, min_width=140)


def can(model: Model, sampler: Sampler) -> bool:
    """Whether a sampler can reverse the model's process."""
    try:
        model.sampler(SamplerSettings(scheduler=sampler, num_inference_steps=FEW_STEPS))
    except UserError:
        return False
    return True


def draw_controls(page: Page) -> Controls:
    """The arguments of actions.draw."""
    return {"count": gr.Slider(1, IMAGES, 4, step=1, label="Images")}


def between_controls(page: Page) -> Controls:
    """The arguments of actions.between."""
    return {"start": page.settings["seed"], "end": gr.Number(1, label="To the seed", precision=0, minimum=0, maximum=SEEDS)}


def change_controls(page: Page) -> Controls:
    """The arguments of actions.change."""
    image = gr.Image(label="Image", elem_classes="made", **UPLOAD)
    gr.Button("Take the image of the seed", size="sm").click(page.drawn, page.shared, image, **DRAWING)
    about = f"left,top,right,bottom, from 0 to {page.side}. Empty: variations."
    return {
        "image": image,
        "box": gr.Textbox(label="Box to draw anew", info=about, max_lines=1, max_length=40),
        "strength": gr.Slider(0.05, 1, Sample.strength, step=0.05, label="Strength", info="Of variations: how far to go."),
        "count": gr.Slider(1, 8, 2, step=1, label="Images"),
    }


def enlarge_controls(page: Page) -> Controls:
    """The arguments of actions.enlarge."""
    return {"image": gr.Image(label="Small image", **UPLOAD)}


OWN = {"Draw": draw_controls, "Interpolate": between_controls, "Edit": change_controls, "Enlarge": enlarge_controls}


def add_report(run: str, tab: gr.Tab) -> None:
    """report.html of a run on this machine, read when its tab is opened; else README.md and the curves."""
    page = beside(run, "report.html") if Path(run).expanduser().exists() else None
    if page is not None:
        frame = gr.HTML()
        tab.select(lambda: FRAME.format(html.escape(read_text(page))), outputs=frame, **PRIVATE)
        return
    if (curves := beside(run, "loss.png")) is not None:
        with boundary(f"{curves} cannot be read as an image"), open_image(curves) as image:
            gr.Image(image.convert("RGB"), label="Curves", format="png", interactive=False)
    text = beside(run, "README.md")
    gr.Markdown(report_text(read_text(text)) if text else f"{run} has no report.")


def report_text(card: str) -> str:
    """A model card without its metadata, pictures, empty lines in a row, and the recipe at its end."""
    text = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).split("\n## The recipe")[0]
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"!\[[^\]]*\](\([^)]*\))?|<img[^>]*>", "", text))


def beside(run: str, name: str) -> Path | None:
    """A file of the run that a run, checkpoint or pipeline folder belongs to, or of a Hub id; None if there is none."""
    local = Path(run).expanduser()
    if local.exists():
        folder = local.parent.parent if local.parent.name == "checkpoints" else local
        file = folder / name
        return file if file.is_file() and not file.is_symlink() else None
    try:
        with from_hub(run) as on_disk:
            return Path(hf_hub_download(run, name, local_files_only=on_disk))
    except Exception:  # the model has been loaded, so only this file is missing
        return None
