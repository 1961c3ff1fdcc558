import pytest
import torch

from tinyldm.randomness import Draw, Rank, derive_seed

METHODS = {
    "normal": lambda draw, count: draw.normal((count, 3, 2, 2)),
    "uniform": lambda draw, count: draw.uniform(count),
    "stratified": lambda draw, count: draw.stratified(count),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_share_the_numbers_of_a_single_one(method, processes):
    draw = METHODS[method]
    parts = [draw(Draw(7, 11, 0, Rank(rank, processes)), 4) for rank in range(processes)]
    assert torch.equal(torch.cat(parts), draw(Draw(7, 11, 0, Rank(0, 1)), 4 * processes))


def test_a_second_call_does_not_depend_on_earlier_numbers():
    one, two = Draw(0, 0, 0, Rank(0, 1)), [Draw(0, 0, 0, Rank(rank, 2)) for rank in range(2)]
    for method in METHODS.values():
        assert torch.equal(method(one, 6), torch.cat([method(draw, 3) for draw in two]))


@pytest.mark.parametrize("method", METHODS)
def test_seed_step_and_micro_batch_each_change_the_numbers(method):
    draws = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
    numbers = {tuple(METHODS[method](Draw(*which, Rank(0, 1)), 3).flatten().tolist()) for which in draws}
    assert len(numbers) == len(draws)


def test_derived_seeds_never_change():
    # If these changed, earlier runs could not be resumed or repeated. The bits are those of
    # `printf "('step', 1, 2)" | b2sum -l 64`, without the last.
    assert derive_seed("step", 1, 2) == 6168782407226106038
    assert derive_seed("a", 12) != derive_seed("a1", 2) != derive_seed("a", 1, 2)
    assert 0 <= derive_seed(0) < 2**63


def test_distributions():
    draw = Draw(0, 0, 0, Rank(0, 1))
    normal, uniform = draw.normal((100_000,)), draw.uniform(100_000)
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02  # five standard errors
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.005
