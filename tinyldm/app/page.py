"""The page: controls of sample.py's settings, a tab for each action that the model can do, and the run's report.

It answers on this machine only (127.0.0.1) unless GRADIO_SERVER_NAME says otherwise, sends nothing to other servers, and
serves no files but the pictures that it has made.
"""

import random
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import gradio as gr
from huggingface_hub import hf_hub_download
from PIL import Image

from tinyldm.app.actions import ACTIONS, Action, arguments, from_noise, play, read
from tinyldm.config.schema import Sample, Sampler, SamplerSettings
from tinyldm.errors import UserError, boundary
from tinyldm.limits import open_image, read_text
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model
from tinyldm.remote import from_hub
from tinyldm.training.accelerator import default_device

IMAGES, STEPS, SCALE = 16, 200, 8.0  # the most that visitors of the page may ask for
SEEDS = 2**31 - 1
FAST, FEW_STEPS = "dpm-solver++", 20  # the page starts with these, where the model has this sampler
AS_IN_DATA = "(as in the data)"
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no requests for fonts
CSS = ".made img {image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain}"
Controls = dict[str, Any]  # key -> component


def serve(run: str, device: str | None = None) -> None:
    """Load the model and open the page, until Ctrl-C.

    Raises:
        UserError: as models.loading.load_model.
    """
    if run == Sample.model and not Path(run).exists():
        raise UserError(
            f"{run} is not here: give a run, a pipeline folder or a Hub id, such as python -m tinyldm.app runs/demo"
        )
    blocks = page(run, load_model(run, default_device(device)))
    blocks.launch(share=False, theme=THEME, css=CSS, footer_links=[], ssr_mode=False, max_file_size="20mb")


def page(run: str, model: Model) -> gr.Blocks:
    """The page of a model; `run` is what sample.py calls it."""
    name = Path(run).name
    with gr.Blocks(title=f"{name}: tinyldm", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {name}\n{model.side} x {model.side} pixels, {str(model.device).split(':')[0].upper()}")
        with gr.Row():
            column = gr.Column(scale=2, min_width=300)  # the first one on a phone
            with gr.Column(scale=1, min_width=300):
                common = settings_controls(model)
        with column, gr.Tabs():
            for title, action in ACTIONS.items():
                if action.fits(model):
                    with gr.Tab(title):
                        _tab(title, action, run, model, common)
            with gr.Tab("Report"):
                _report(run)
    return blocks


def settings_controls(model: Model) -> Controls:
    """The controls that all actions share, by the keys of sample.py. Those of labels are `label NAME`."""
    controls: Controls = {"seed": gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS)}
    gr.Button("Another seed", size="sm").click(_another_seed, outputs=controls["seed"], api_visibility="private")
    if model.labels is not None:
        with gr.Accordion("Labels", open=len(model.labels.values) <= 8):
            for name, values in model.labels.values.items():
                controls[f"label {name}"] = gr.Dropdown([AS_IN_DATA, *values, "unknown"], value=AS_IN_DATA, label=name)
    if model.labels is not None or model.guide is not None:
        most = max(SCALE, model.scale)
        controls["guidance_scale"] = gr.Slider(
            min(1.0, model.scale), most, model.scale, step=0.1, label="Guidance scale", info="1: none. Larger: less variety."
        )
    samplers = [name for name in get_args(Sampler) if _can(model, name)]
    value = FAST if FAST in samplers else None
    choices = [("the model's own", None), *((name, name) for name in samplers)]
    controls["scheduler"] = gr.Dropdown(choices, value=value, label="Sampler")
    steps = FEW_STEPS if value or not from_noise(model) else SamplerSettings.num_inference_steps
    controls["num_inference_steps"] = gr.Slider(1, STEPS, steps, step=1, label="Steps")
    return controls


def _another_seed() -> int:
    return random.randrange(10**6)


def _can(model: Model, sampler: Sampler) -> bool:
    """Whether a sampler can reverse the model's process."""
    try:
        model.sampler(SamplerSettings(scheduler=sampler, num_inference_steps=FEW_STEPS))
    except UserError:
        return False
    return True


def _tab(title: str, action: Action, run: str, model: Model, common: Controls) -> None:
    """The controls, the button and the result of an action."""
    gr.Markdown(action.about)
    own = OWN[title](run, model, common)
    with gr.Row():
        start, stop = gr.Button(title, variant="primary", min_width=100), gr.Button("Stop", min_width=100)
    look: dict[str, Any] = {"interactive": False, "buttons": ["download", "fullscreen"], "height": 420, "elem_classes": "made"}
    picture = gr.Image(label="Picture", format="png", **look)
    said = gr.Markdown()
    values = [*own, *common.values()]
    run_it = start.click(
        _handler(action, run, model, len(own), list(common)),
        values,
        [picture, said],
        concurrency_id="model",
        api_visibility="private",
    )
    stop.click(None, cancels=run_it, api_visibility="private")


def _handler(action: Action, run: str, model: Model, own: int, names: list[str]) -> Callable[..., Iterator[tuple[Any, str]]]:
    """What a button does with the values of the controls: the action's own ones first, then those with `names`."""

    def handle(*values: Any) -> Iterator[tuple[Any, str]]:
        try:
            with TemporaryDirectory() as folder:
                keys = {"model": run, **sampler_keys(dict(zip(names, values[own:], strict=True)))}
                keys |= action.keys(Path(folder), *values[:own])
                notes: list[str] = []
                for made in play(model, read(keys), notes):
                    yield made, ""
                command = shlex.join(["python", "sample.py", *arguments(keys)])
                text = "\n\n".join([*notes, f"The same by\n```bash\n{command}\n```"])
                yield made, text.replace(f"{folder}/", "")
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return handle


def sampler_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Keys of sample.py from the values of `settings_controls`."""
    labels = {name: value for name, value in values.items() if name.startswith("label ") and value != AS_IN_DATA}
    text = ",".join(f"{name.removeprefix('label ')}={value}" for name, value in labels.items())
    return {name: value for name, value in values.items() if not name.startswith("label ")} | {"labels": text or None}


def _drawing(run: str, model: Model, common: Controls) -> list[Any]:
    return [gr.Slider(1, IMAGES, 4, step=1, label="Images")]


def _interpolation(run: str, model: Model, common: Controls) -> list[Any]:
    end = gr.Number(1, label="To the seed", precision=0, minimum=0, maximum=SEEDS)
    return [common["seed"], end]


def _changing(run: str, model: Model, common: Controls) -> list[Any]:
    image = gr.Image(label="Image", type="pil", sources=["upload", "clipboard"], format="png", height=280, elem_classes="made")

    def take(*values: Any) -> Image.Image:
        try:
            config = read({"model": run, "num_images": 1, **sampler_keys(dict(zip(common, values, strict=True)))})
            *_, drawn = play(model, config)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        inner = drawn.crop((2, 2, drawn.width - 2, drawn.height - 2))  # without the grid's
        return inner.resize((model.side, model.side), Image.Resampling.NEAREST)

    button = gr.Button("Take the image of the seed", size="sm")
    button.click(take, list(common.values()), image, concurrency_id="model", api_visibility="private")
    what = f"left,top,right,bottom, from 0 to {model.side}. Empty: variations."
    box = gr.Textbox(label="Box to draw anew", info=what, max_lines=1, max_length=40)
    strength = gr.Slider(0.05, 1, Sample.strength, step=0.05, label="Strength", info="Of variations: how far to go.")
    return [image, box, strength, gr.Slider(1, 8, 2, step=1, label="Images")]


def _enlarging(run: str, model: Model, common: Controls) -> list[Any]:
    return [gr.Image(label="Small image", type="pil", sources=["upload", "clipboard"])]


OWN = {"Draw": _drawing, "Interpolate": _interpolation, "Edit": _changing, "Enlarge": _enlarging}


def _report(run: str) -> None:
    """The run's README.md without its pictures and its recipe, and its curves."""
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
    """A file of a run, or of the repository of a Hub id; None if there is none."""
    local = Path(run).expanduser()
    if local.exists():
        file = local / name
        return file if file.is_file() and not file.is_symlink() else None
    try:
        with from_hub(run) as on_disk:
            return Path(hf_hub_download(run, name, local_files_only=on_disk))
    except Exception:  # the model has been loaded, so only this file is missing
        return None
