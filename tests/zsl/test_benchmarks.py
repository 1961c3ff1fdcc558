"""The benchmarks at tiny sizes, the count of matrix products, and the simulated features."""

import runpy
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


def test_the_speed_benchmark_runs(capsys):
    zero_shot.main(small=True, repeats=1)
    printed = capsys.readouterr().out
    assert "seen-unseen curve, 400 offsets -> exact" in printed and "outside the products: " in printed


def test_the_benchmark_counts_the_products_of_an_iteration():
    """Compared with the counter of PyTorch. It differs only in the small text part of the hidden layer's weights."""
    sizes = zero_shot.Sizes(64, 70, 60, 50, 12, 8, 9, 4, 120, 30)
    game = zero_shot.make(Game, sizes)
    with FlopCounterMode(display=False) as counter:
        game.iterate(0)
    counted = 2 * sum(times * m * k * n for _, times, m, k, n in zero_shot.products(sizes))
    assert abs(counter.get_total_flops() / counted - 1) < 0.02, (counter.get_total_flops(), counted)


def test_text_representations_are_compared_with_both_baselines(tmp_path, capsys, monkeypatch):
    (tmp_path / "terms.txt").write_text("beak wing\n")
    configs = zero_shot_texts.representations(str(tmp_path / "terms.txt"), None)
    assert configs["... x 4, centred, LSA of 20"].components == 20
    small = {name: replace(config, components=3) for name, config in list(configs.items())[:2]}
    monkeypatch.setattr(zero_shot_texts, "representations", lambda emphasised, encoder: small)
    zero_shot_texts.main(str(support.folder(tmp_path / "birds")), choices=2)
    printed = capsys.readouterr().out
    assert "top-1 of 3 held-out seen classes (chance 33.3%), 2 choices" in printed and "TF-IDF, counts" in printed


@pytest.mark.parametrize(
    "command", ["benchmarks.zero_shot", "benchmarks.zero_shot_texts", "benchmarks.zero_shot_diagnosis", "zsl.simulate"]
)
def test_commands_have_the_options_that_the_docs_use(command, monkeypatch, capsys):
    page = "".join((ROOT / "docs" / name).read_text() for name in ("zsl.md", "zsl-results.md", "journal/zsl.md"))
    lines = [line.split("#")[0].split("`")[0] for line in page.split(f"python -m {command} ")[1:]]
    options = {word for line in lines for word in line.splitlines()[0].split() if word.startswith("--")}
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    monkeypatch.delitem(sys.modules, command, raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(command, run_name="__main__")
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and all(f"{option} " in printed for option in options), options


def test_oracle_texts_are_better_than_random_ones(tmp_path, capsys):
    config = tmp_path / "birds.yaml"
    keys = dict(zip(support.TINY[::2], support.TINY[1::2], strict=True))
    lines = [f"output_dir: {tmp_path / 'run'}", f"data.path: {support.folder(tmp_path / 'birds')}"]
    config.write_text("\n".join([*lines, *(f"{key.removeprefix('--')}: {value}" for key, value in keys.items())]))
    zero_shot_diagnosis.main(str(config), choices=3)
    table = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines()}
    assert float(table["oracle texts"][0]) > float(table["random texts"][0])  # of the prototype
    assert float(table["the config"][9]) > 80 and len(table) == 9


def test_fewer_classes_keeps_held_out_and_unseen_classes():
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
    # Both splits have the same images.
    one, two = (np.sort(data.features[data.labels == 17], axis=0) for data in (easy, hard))
    assert np.array_equal(one, two)
    assert (np.bincount(easy.labels) == np.bincount(hard.labels)).all() and torch.from_numpy(easy.features).isfinite().all()
