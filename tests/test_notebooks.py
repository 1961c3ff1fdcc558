"""docs/theory/notebooks: the cells and the folded solutions run in order, and find what the text says."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "docs" / "theory" / "notebooks"
SOLUTION = re.compile(r"<details><summary>Solution</summary>(.*?)</details>", re.DOTALL)
NOTEBOOKS = pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)


def read(path: Path) -> tuple[str, list[dict]]:
    """All prose, and the cells of code."""
    cells = json.loads(path.read_text())["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return prose, [cell for cell in cells if cell["cell_type"] == "code"]


def run(path: Path) -> dict:
    """All names that the notebook defines, its solutions run last."""
    (prose, cells), names = read(path), {}
    solved = [part for text in SOLUTION.findall(prose) for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    for part in ["".join(cell["source"]) for cell in cells] + solved:
        exec(part, names)
        plt.close("all")
    return names


@NOTEBOOKS
def test_three_exercises_and_every_figure_is_in_the_file(path):
    prose, cells = read(path)
    assert len(SOLUTION.findall(prose)) == 3
    for cell in cells:
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        shown = sum("image/png" in output.get("data", {}) for output in cell["outputs"])
        assert shown == len(re.findall(r"^(?:plt\.)?show\(", "".join(cell["source"]), re.MULTILINE))
    assert path.stat().st_size < 400_000


@pytest.mark.slow
def test_notebook_1_draws_the_data():
    with torch.random.fork_rng():
        names = run(FOLDER / "1-ddpm.ipynb")
    means, stds, shares = names["means"], names["stds"], names["shares"]

    def blobs(x):
        """The share and the standard deviations of the samples that are nearest to each blob."""
        nearest = torch.cdist(x, means).argmin(1)
        return torch.bincount(nearest, minlength=3) / len(x), torch.stack([x[nearest == k].std(0) for k in range(3)])

    found, width = blobs(names["drawn"])
    assert (found - shares).abs().max() < 0.05 and (width / stds - 1).abs().max() < 0.15
    # A step of the chain is Ho et al.'s: at t = 1 it ends in the guess.
    assert torch.allclose(names["step_back"](names["x_0"], means[:1].expand(2000, 2), 1, 0), means[:1].expand(2000, 2))
    assert (blobs(names["learned"])[0] - shares).abs().max() < 0.1 and names["losses"][-1] < 0.5 * names["losses"][0]
    # The text says that 20 steps leave noise out, and that DDIM's only chance is in the start.
    assert (blobs(names["few"])[1][0] < 0.9 * stds[0]).all()
    assert torch.equal(names["once"], names["twice"]) and max(names["errors"]) < 1e-5
