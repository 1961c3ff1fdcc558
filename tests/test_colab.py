"""docs/colab.ipynb runs from top to bottom with a tiny model, and its other commands are ones that the scripts take."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.portable.test_pipeline import export, made
from tests.support.runs import LDM, ROOT
from tests.support.scripts import SCRIPTS
from tinyldm.config.parsing import dump, parse, to_dict
from tinyldm.config.schema import TrainLDM
from tinyldm.data import toyfaces

NOTEBOOK = ROOT / "docs" / "colab.ipynb"
CELLS = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(NOTEBOOK.read_text())["cells"]]
PARAMETERS = next(text for kind, text in CELLS if kind == "code")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    """Values for the notebook's parameters: an untrained model, and a recipe for 40 faces."""
    folder = tmp_path_factory.mktemp("colab")
    export(folder / "model", made("labels"))
    (folder / "faces").mkdir()
    rows = [f"{index}.png,{('false', 'true')[index % 2]}" for index in range(40)]
    for index in range(40):
        toyfaces.draw(0, index, 16).save(folder / "faces" / f"{index}.png")
    (folder / "faces" / "metadata.csv").write_text("\n".join(["file_name,Smiling", *rows]))
    data = f"--data.name {folder}/faces --data.resolution 16 --data.eval_fraction 0.2 --data.cache_dir {folder}/cache"
    labels = "--data.label_columns [Smiling] --output_dir unused"
    train = "--train.max_steps 4 --train.sample_steps 2 --train.log_with none"
    recipe = parse(TrainLDM, "", [*LDM, *f"{data} {labels} {train}".split()])
    (folder / "recipe.yaml").write_text(dump(to_dict(recipe)))
    small = {"MODEL": "model", "RECIPE": "recipe.yaml", "RUN": "run", "SAMPLES": "samples"}
    return {name: f"{folder}/{value}" for name, value in small.items()} | {
        "LABELS": "Smiling=true", "NUM_IMAGES": 4, "MINUTES": 10, "PRECISION": "no", "REPO": "",
    }  # fmt: skip


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(small, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel, as CONTRIBUTING.md says")
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel, as CONTRIBUTING.md says")
    pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel, as CONTRIBUTING.md says")
    assert set(re.findall(r"^(\w+) = ", PARAMETERS, re.MULTILINE)) == set(small)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, 4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in small.items())
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(ROOT)}}).execute()
    for name in ("any", "guided-1", "guided-3", "mine"):
        with Image.open(f"{small['SAMPLES']}/{name}/grid.png") as grid:
            assert grid.width >= 256
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(shown) == 3 + 2 + 1 + 1  # drawings, previews of steps 2 and 4, the loss, the new model's
    assert (Path(small["RUN"]) / "pipeline" / "model_index.json").exists()


@pytest.mark.parametrize("named", [True, False])
def test_the_commands_are_taken(named, monkeypatch):
    """Those of the cells with their own values, and those in the prose."""
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(PARAMETERS, names)
    names |= {"scale": 3, "folder": "samples"}
    text = "\n".join(text for kind, text in CELLS if (kind == "code") == named).replace("\\\n", " ")
    commands = re.findall(r"^\s*!(?:timeout .*)?python (\w+\.py) (.*)$", text, re.MULTILINE)
    assert len(commands) == (4 if named else 2)
    for script, arguments in commands:
        words = re.sub(r"\{(\w+)\}", lambda found: str(names[found[1]]), arguments).replace('"', "").split()
        parse(SCRIPTS[script], "", words)
