"""docs/theory/notebooks: the cells and the folded solutions run in order, and find what the text says."""

import json
import math
import re
from itertools import pairwise
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
    kept = torch.get_default_dtype()
    try:
        with torch.random.fork_rng():
            for part in ["".join(cell["source"]) for cell in cells] + solved:
                exec(part, names)
                plt.close("all")
    finally:
        torch.set_default_dtype(kept)
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
def test_notebook_2_an_upper_level_collapses_and_many_levels_reach_the_entropy():
    names = run(FOLDER / "2-hierarchical-vae.ipynb")
    entropy = names["entropy"].item()
    bottom_up, ladder, diffusion, warm = (names[f"{name}_terms"] for name in ("bottom_up", "ladder", "diffusion", "warm"))
    assert names["gap"].item() == pytest.approx(names["divergence"].item(), rel=1e-5)
    assert bottom_up[2] < 0.05 and ladder[2] > 0.5 and warm[2] < 0.7
    assert entropy < diffusion.sum() < min(bottom_up.sum(), ladder.sum()) and warm.sum() < bottom_up.sum() + 0.1
    # What a level knows falls from more than the blob to nothing.
    information = names["information"]
    assert information[0] > 4 and abs(information[-1]) < 0.01
    assert all(later < sooner + 0.02 for sooner, later in pairwise(information))
    # The gap falls with the number of levels, and crosses that of two learned levels at about 64.
    gaps = dict(zip(names["counts"], (bound - entropy for bound in names["bounds"]), strict=True))
    assert gaps[4] > 10 and gaps[32] > bottom_up.sum() - entropy > gaps[128] and 0 < gaps[256] < 0.4
    # The whole chain is the same bound, and a prior that does not fit costs the KL and the shares.
    whole = names["whole"]
    assert abs(whole.mean() - names["one_level"]) < 0.1 + 4 * whole.std() / len(whole) ** 0.5
    abar = 1 / (1 + math.exp(-2))
    size = names["points"].square().sum(1).mean().item()
    assert names["wrong_end"] == pytest.approx((abar * size - 2 * abar - 2 * math.log(1 - abar)) / 2, rel=1e-3)
    assert names["outer"] < 0.28


@pytest.mark.slow
def test_notebook_3_denoiser_and_first_stage_share_the_loss():
    with torch.random.fork_rng():
        names = run(FOLDER / "3-latent-diffusion.ipynb")
    assert names["numbers"] == {1: 768, 2: 256, 4: 64, 8: 16}
    assert torch.allclose(names["decoded"][1], names["held_out"], atol=1e-5)
    assert names["unseen"] > 0.5 and names["psnr"][2] > names["psnr"][4] + 2 > names["psnr"][8] + 4
    first, denoiser = names["distances"]["decoded"], names["denoiser"]
    assert abs(first[0]) < 1e-3 and all(later > earlier + 30 for earlier, later in pairwise(first))
    assert denoiser[0] > denoiser[1] + 100 > denoiser[2] + 200 and abs(denoiser[3]) < 50
    assert names["best"] == 4
    assert abs(names["measured"] / names["formula"] - 1) < 1e-3
    kept = names["kept"]
    assert kept["glasses", 2] > kept["glasses", 4] > kept["glasses", 8]
    assert kept["darker", 8] > kept["glasses", 8] + 0.2 and kept["colour", 2] < kept["glasses", 2] - 0.2
    assert abs(names["prices"][0] - 0.25) < 0.005 and abs(names["prices"][1] - (2 - 3**0.5)) < 0.005


@pytest.mark.slow
def test_notebook_4_guidance_draws_no_power_of_the_class_density():
    names = run(FOLDER / "4-guidance.ipynb")
    near_share, drawn, pictures = names["near_share"], names["drawn"], list(names["pictures"].values())
    assert names["difference"] < 1e-9
    assert near_share(drawn[1]) == pytest.approx(0.5, abs=0.05)
    assert near_share(drawn[2]) == pytest.approx(0.2, abs=0.05) and near_share(drawn[4]) < 0.05
    # With the weight 1 the density by the ODE is that of the class; with 4 the near blob is gone, as in the samples.
    guided, sharpened, cell, grid = (names[name] for name in ("guided", "sharpened", "cell", "grid"))
    assert (guided[1] - sharpened[1]).abs().max() < 0.01 * sharpened[1].max()
    near = torch.cdist(grid, names["means"][:2]).argmin(1) == 1
    assert guided[4].sum() * cell == pytest.approx(1, abs=0.02)
    assert sharpened[4][near].sum() * cell > 0.3
    assert guided[4][near].sum() * cell == pytest.approx(near_share(drawn[4]), abs=0.01)
    at = (names["line"][:, 0] - names["near"][0]).abs().argmin()
    assert names["guided_score"][at] < 2.5 * names["true_score"][at] < 0
    # Autoguidance finds the true width and keeps both blobs.
    widths = [x[(x - names["near"]).norm(dim=1) > (x - names["far"]).norm(dim=1)].std(0).mean().item() for x in pictures]
    assert widths[0] == pytest.approx(0.3, abs=0.02) and widths[1] == pytest.approx(0.2, abs=0.02)
    assert near_share(pictures[1]) == pytest.approx(0.5, abs=0.05) and near_share(pictures[2]) < 0.3
    assert names["late_right"] > 0.97 and near_share(names["late"]) > 0.3
    assert names["narrow"].std().item() == pytest.approx(0.5**3, rel=0.05)
    assert names["by_sde"] == pytest.approx(names["by_hand"], rel=0.06)
    assert names["narrow"].std() < names["by_sde"] < names["sharp"]


@pytest.mark.slow
def test_notebook_5_noise_drowns_errors():
    with torch.random.fork_rng():
        names = run(FOLDER / "5-cascades.ipynb")
    # Without noise a distance of z passes to x whole; the lowest point lies between no noise and all.
    assert abs(names["of_x"] - names["of_z"]) < 0.05 and names["of_z"] > 0.3
    for values in names["mismatch"].values():
        assert all(later <= earlier + 1e-6 for earlier, later in pairwise(values)) and values[-1] < 1e-4
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
def test_notebook_6_the_processes_share_ends_and_likelihoods():
    names = run(FOLDER / "6-sde.ipynb")
    shares, spread = names["shares"], names["x_0"].var()
    for t in (0.2, 0.5, 1.0):  # the simulated SDE has the a and sigma of the product's levels
        a, sigma = names["levels"](names["vp"], t)
        found = names["forward"][round(t * 500)].std().item()
        assert found == pytest.approx(math.sqrt(a**2 * spread + sigma**2), rel=0.05)
    assert (names["averages"] - names["exact"]).abs().max() < 0.15
    for ended in names["ended"].values():
        assert (ended - shares).abs().max() < 0.04
    assert max(names["apart"].values()) < 0.005 and names["flow_difference"] < 1e-9
    assert max(names["likelihood_errors"].values()) < 0.15
    # Orders 1 and 2; a trace by random signs; which bumps Langevin dynamics finds.
    assert all(1.6 < many / few < 2.6 for many, few in pairwise(names["euler"]))
    assert all(many / few > 3 for many, few in pairwise(names["heun"][1:]))
    assert names["trace_error"] < 5 * names["standard_error"]
    assert names["one_level"][2] > 0.8 and (names["many_levels"] - shares).abs().max() < 0.08


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
