"""docs/theory/notebooks: the cells and the folded solutions run in order, and find what the text says."""

import itertools
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

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


@pytest.mark.slow
def test_notebook_5_noise_drowns_errors():
    with torch.random.fork_rng():
        names = run(FOLDER / "5-cascades.ipynb")
    # Without noise a distance of z passes to x whole; the lowest point lies between no noise and all.
    assert abs(names["of_x"] - names["of_z"]) < 0.05 and names["of_z"] > 0.3
    for values in names["mismatch"].values():
        assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(values)) and values[-1] < 1e-4
    assert names["mismatch"][0.1][8] < names["mismatch"][0.4][8]
    given_real, generated = names["found"][0], names["found"][0.3]
    assert given_real[0] < names["floor"] + 0.03 and min(given_real[5:]) > given_real[0] + 0.05
    assert 0.03 <= names["best"] <= 0.2 and min(generated) < generated[0] / 2 and generated[-1] > generated[0]
    assert names["best_levels"][0] < names["best_levels"][-1]
    assert (names["table"].min(1).values < names["table"][:, 0] / 2).all()
    without, noised = names["chains"][0], names["chains"][0.1]
    assert without[-1] > without[0] + 0.1 and noised[-1] < noised[0] + 0.03
    assert all(abs(sampled - formula) < 1e-3 for sampled, formula in names["checks"])
    assert names["told"] < names["without"] - 0.1 and names["untold"] > names["without"] - 0.03
    assert names["large"][-1] < names["floor"] + 0.03


@pytest.mark.slow
def test_notebook_7_some_creativity_helps_and_too_much_hurts():
    with torch.random.fork_rng():
        names = run(FOLDER / "7-hallucinated-features.ipynb")
    centres, divergence = names["centres"], names["divergence"]
    assert torch.cdist(names["middle"][None], centres[:3]).std() < 1e-6
    assert divergence(torch.zeros(1, 3)).abs() < 1e-6 < divergence(torch.tensor([[1.0, 0, 0]]))
    best = [names["pleasure"](names["walk"], w).argmax() for w in (0, 3, 12)]
    assert (names["way"][torch.stack(best)] - torch.tensor([0, 1, 1])).abs().max() < 0.05
    # What the text says of D: taken for others by GAZSL, better at w = 20, and in the middle with no width left at w = 100.
    h = {w: of_seeds[:, 2].mean() for w, of_seeds in names["found"].items()}
    assert h[None] + 0.1 < h[0] + 0.1 < h[20] and h[100] + 0.02 < h[20]
    made = names["features"](names["made"][100][0], names["texts"])[3]
    assert (made - names["middle"]).norm(dim=1).mean() < 0.15 and made.std(0).max() < names["WIDTH"] / 3
    assert [round(value, 2) for value in names["far"][1e-12][:2]] == [0.89, 1.10] and names["far"][1e-12][2] > 15
    assert all(unseen < 0.05 for unseen, _ in names["outside"].values())
    assert names["outside"][100][1] < names["outside"][None][1] - 0.1
    assert names["near"][10] < names["near"]["GAZSL"] - 0.05


@pytest.mark.slow
def test_notebook_8_reads_is_biased_and_can_be_flattered():
    names = run(FOLDER / "8-zsl-on-text.ipynb")
    assert list(names["vocabulary"]) == names["its_terms"] and np.allclose(names["project"], names["texts"], atol=1e-6)
    zebra = names["texts"][names["zebra"]]
    assert set(names["vocabulary"][zebra == zebra.max()]) == {"mane", "run"}
    assert zebra[zebra > 0].min() == zebra[names["vocabulary"] == "white"]
    weights = names["attention"](names["texts"][10:], names["texts"][:10], 0.1)
    assert np.allclose(weights.sum(1), 1) and weights[0].argmax() == 0 and weights[2].argmax() == 6  # horse, eagle
    top1, seen, unseen, h = names["figures"]
    assert 0.5 < top1 < 0.75 and unseen < 0.6 * top1 and h < seen
    curve = names["drawn"]
    assert curve.unseen[0] == 0 and curve.unseen[-1] == names["top1"] and names["h_along"][names["best"]] > names["h"] + 0.1
    top1_by_tau, h_by_tau = names["test_top1"].mean(0), names["test_h"].mean(0)
    assert top1_by_tau[-1] > top1_by_tau[0] + 0.03 and h_by_tau[-1] < h_by_tau[1] / 2
    assert names["flattered"].mean() > h_by_tau.max() > names["honest"].mean() + 0.01
    assert names["p"][20] < 0.01 < 0.05 < names["p"][5] and np.isclose(names["p"][20], ttest_1samp(names["d"], 0).pvalue)
    clean, noisy = names["clean_h"], names["noisy_h"]
    assert all(names["bounded"]) and noisy[0.1] < clean[0.1] - 0.1 and noisy[0.1] < noisy[0.02] < clean[0.02]
    assert abs(names["plain"] - (1 - 0.95**7)) < 0.03 and 0.03 < names["corrected"] < 0.07
