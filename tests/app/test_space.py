"""A Space for a model on the Hub: its files, and what is refused. The command without gradio says how to get it."""

import os
import subprocess
import sys

import pytest
import yaml
from huggingface_hub.repocard_data import SpaceCardData

from tests.support.runs import ROOT
from tests.test_packaging import PROJECT
from tinyldm import __version__
from tinyldm.app.space import write
from tinyldm.config.app import read
from tinyldm.errors import UserError


def test_a_space_names_its_model_and_its_programs(tmp_path):
    assert "--repo-type space" in write(str(tmp_path / "space"), "me/faces")
    files = {file.name: file.read_text() for file in (tmp_path / "space").iterdir()}
    assert files.keys() == {"README.md", "app.py", "requirements.txt"}
    card = SpaceCardData(**yaml.safe_load(files["README.md"].split("---")[1]))
    assert card.sdk == "gradio" and card.app_file == "app.py" and card.models == ["me/faces"]
    assert compile(files["app.py"], "app.py", "exec") and 'serve("me/faces")' in files["app.py"]
    assert f"@v{__version__}\n" in files["requirements.txt"]


@pytest.mark.parametrize("model", ["runs/demo", "/tmp", "faces", 'me/"+evil()+"', "a/b/c"])
def test_a_space_needs_a_hub_id(model, tmp_path):
    with pytest.raises(UserError, match="a Space needs a model on the Hub"):
        write(str(tmp_path / "space"), model)
    assert not (tmp_path / "space").exists()


def test_a_space_replaces_nothing(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write(str(tmp_path), "me/faces")


def test_a_space_has_one_model():
    assert read(None, ["me/faces", "--space", "here"]).run == "me/faces"
    with pytest.raises(UserError, match="a Space has one model"):
        read(None, ["me/faces", "--space", "here", "--then", "me/large"])


@pytest.mark.slow
def test_without_gradio_one_line_says_how_to_get_it(tmp_path):
    hide = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n, *a: None if n == 'gradio' else find(n, *a)"
    script = f"{hide}; import runpy, sys; sys.argv[1:] = ['x']; runpy.run_module('tinyldm.app', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    needed = PROJECT["project"]["optional-dependencies"]["app"][0]
    assert done.returncode == 2
    assert done.stderr == f"error: the page needs gradio, which is not installed: pip install '{needed}'\n"
