"""The page of a model on the Hub as a Hugging Face Space: three files, which a push to the Hub makes public."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tinyldm import __version__
from tinyldm.errors import UserError
from tinyldm.remote import may_be_hub_id

GRADIO = "6.31.0"  # where none is installed
REPOSITORY = "https://github.com/tinyldm/tinyldm"
README = """\
---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
models: [{model}]
---

Draw with [{model}](https://huggingface.co/{model}), a diffusion model trained with [tinyldm]({repository}).
"""
REQUIREMENTS = """\
# Wheels of torch without CUDA, for a Space on CPUs. On a GPU remove this line.
--extra-index-url https://download.pytorch.org/whl/cpu
tinyldm @ git+{repository}@v{version}
"""
APP = """\
from tinyldm.app.page import serve

serve("{model}")
"""


def write(folder: str, model: str) -> str:
    """Write README.md, requirements.txt and app.py to a new folder, and say how to publish them.

    Args:
        model: a Hub id, user/name.

    Raises:
        UserError: if the model is no Hub id, or the folder has files already.
    """
    try:
        validate_repo_id(model)
        known = "/" in model and may_be_hub_id(model) and not Path(model).exists()
    except HFValidationError:
        known = False
    if not known:
        raise UserError(f"a Space needs a model on the Hub, and {model} is not one: push it (hub.push), then give user/name")
    place = Path(folder).expanduser()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{folder} exists already: choose a new folder for the Space")
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = GRADIO
    values = {"model": model, "title": model.split("/")[1], "gradio": gradio, "repository": REPOSITORY, "version": __version__}
    place.mkdir(parents=True, exist_ok=True)
    for name, text in {"README.md": README, "requirements.txt": REQUIREMENTS, "app.py": APP}.items():
        (place / name).write_text(text.format(**values))
    return f"the Space is in {folder}: hf upload {model}-space {folder} --repo-type space"
