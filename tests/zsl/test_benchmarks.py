"""The benchmark at tiny sizes, its count of products, and the simulated features."""

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import zsl as benchmark
from tests.support import zsl as support
from zsl import data, simulate
from zsl.game import Game


def test_the_benchmark_runs(capsys):
    benchmark.main(small=True, repeats=1)
    printed = capsys.readouterr().out
    assert "seen-unseen curve, 400 offsets -> exact" in printed and "outside the products: " in printed


def test_the_bound_counts_the_products_that_an_iteration_does():
    """By PyTorch's own counter, but for the text parts of the hidden layer's weights, which are rounding beside the rest."""
    sizes = benchmark.Sizes(64, 70, 60, 50, 12, 8, 9, 4, 120, 30)
    game = benchmark.make(Game, sizes)
    with FlopCounterMode(display=False) as counter:
        game.iterate(0)
    counted = 2 * sum(times * m * k * n for _, times, m, k, n in benchmark.products(sizes))
    assert abs(counter.get_total_flops() / counted - 1) < 0.02, (counter.get_total_flops(), counted)


@support.needs_cub_wiki
def test_simulated_features_fill_the_original_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "DIM", 12)
    folder = tmp_path / "CUB2011"
    for split in ("easy", "hard"):
        simulate.simulate(str(support.CUB_WIKI), str(folder), split)
    easy, hard = (data.load(str(folder), split) for split in ("easy", "hard"))
    assert easy.simulated and hard.simulated
    assert easy.features.shape == hard.features.shape == (11788, 12) and easy.texts.shape == (200, 7551)
    assert (len(easy.seen), len(hard.seen)) == (150, 160) and hard.unseen.tolist() == list(range(160, 200))
    assert len(hard.validation_classes) == 30 and hard.validation_classes[-1] == 159 and easy.validation_classes is None
    # The same images, divided in two ways.
    one, two = (np.sort(found.features[found.labels == 17], axis=0) for found in (easy, hard))
    assert np.array_equal(one, two)
    assert (np.bincount(easy.labels) == np.bincount(hard.labels)).all() and torch.from_numpy(easy.features).isfinite().all()
