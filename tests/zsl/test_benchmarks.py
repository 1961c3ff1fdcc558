"""The benchmark at tiny sizes, its count of products, and the simulated features."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import zero_shot, zero_shot_diagnosis, zero_shot_texts
from tests.support import zsl as support
from tests.support.runs import ROOT
from zsl import simulate
from zsl.game import Game
from zsl.load import load


def test_the_benchmark_runs(capsys):
    zero_shot.main(small=True, repeats=1)
    printed = capsys.readouterr().out
    assert "seen-unseen curve, 400 offsets -> exact" in printed and "outside the products: " in printed


def test_the_bound_counts_the_products_that_an_iteration_does():
    """By PyTorch's own counter, but for the text parts of the hidden layer's weights, which are rounding beside the rest."""
    sizes = zero_shot.Sizes(64, 70, 60, 50, 12, 8, 9, 4, 120, 30)
    game = zero_shot.make(Game, sizes)
    with FlopCounterMode(display=False) as counter:
        game.iterate(0)
    counted = 2 * sum(times * m * k * n for _, times, m, k, n in zero_shot.products(sizes))
    assert abs(counter.get_total_flops() / counted - 1) < 0.02, (counter.get_total_flops(), counted)


def test_texts_are_compared_by_the_plain_baselines(tmp_path, capsys, monkeypatch):
    (tmp_path / "terms.txt").write_text("beak wing\n")
    tried = zero_shot_texts.representations(str(tmp_path / "terms.txt"), None)
    assert tried["... x 4, centred, LSA of 20"].components == 20
    small = {name: replace(config, components=3) for name, config in list(tried.items())[:2]}
    monkeypatch.setattr(zero_shot_texts, "representations", lambda emphasised, encoder: small)
    zero_shot_texts.main(str(support.folder(tmp_path / "birds")), choices=2)
    printed = capsys.readouterr().out
    assert "top-1 of 3 held-out seen classes (chance 33.3%), 2 choices" in printed and "TF-IDF, counts" in printed


@pytest.mark.parametrize(
    "command", ["benchmarks.zero_shot", "benchmarks.zero_shot_texts", "benchmarks.zero_shot_diagnosis", "zsl.simulate"]
)
def test_commands_take_their_options_by_name(command):
    """As the docs give them."""
    page = (ROOT / "docs/zsl.md").read_text()
    told = [line.split("#")[0].split("`")[0] for line in page.split(f"python -m {command} ")[1:]]
    done = subprocess.run([sys.executable, "-m", command, "--help"], capture_output=True, text=True, cwd=ROOT)
    options = {word for line in told for word in line.splitlines()[0].split() if word.startswith("--")}
    assert done.returncode == 0 and all(f"{option} " in done.stdout for option in options), options


def test_oracle_texts_are_better_than_random_ones(tmp_path, capsys):
    config = tmp_path / "birds.yaml"
    keys = dict(zip(support.TINY[::2], support.TINY[1::2], strict=True))
    lines = [f"output_dir: {tmp_path / 'run'}", f"data.path: {support.folder(tmp_path / 'birds')}"]
    config.write_text("\n".join([*lines, *(f"{key.removeprefix('--')}: {value}" for key, value in keys.items())]))
    zero_shot_diagnosis.main(str(config), choices=3)
    table = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines()}
    assert float(table["oracle texts"][0]) > float(table["random texts"][0])  # the prototype's
    assert float(table["the config"][9]) > 80 and len(table) == 9


def test_fewer_classes_leave_held_out_and_unseen_ones_alone():
    data, held_out = support.dataset(), np.array([1, 4])
    part = zero_shot_diagnosis.fewer(data, 0.4, 0, held_out).check()
    assert [data.class_names[i] for i in held_out] == [part.class_names[i] for i in part.validation_classes]
    assert {data.class_names[i] for i in data.unseen} == {part.class_names[i] for i in part.unseen}
    assert len(part.seen) == 2 + 2 and np.bincount(part.labels).tolist() == [12] * 7


@support.needs_cub_wiki
def test_simulated_features_fill_the_original_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "DIM", 12)
    folder = tmp_path / "CUB2011"
    for split in ("easy", "hard"):
        simulate.simulate(str(support.CUB_WIKI), str(folder), split)
    easy, hard = (load(str(folder), split) for split in ("easy", "hard"))
    assert easy.simulated and hard.simulated
    assert easy.features.shape == hard.features.shape == (11788, 12) and easy.texts.shape == (200, 7551)
    assert (len(easy.seen), len(hard.seen)) == (150, 160) and hard.unseen.tolist() == list(range(160, 200))
    assert len(hard.validation_classes) == 30 and hard.validation_classes[-1] == 159 and easy.validation_classes is None
    # The same images, divided in two ways.
    one, two = (np.sort(found.features[found.labels == 17], axis=0) for found in (easy, hard))
    assert np.array_equal(one, two)
    assert (np.bincount(easy.labels) == np.bincount(hard.labels)).all() and torch.from_numpy(easy.features).isfinite().all()
