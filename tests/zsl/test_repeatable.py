"""At real sizes PyTorch uses several threads, which must not change a result."""

import pytest
import torch

from zsl.config import DataConfig, ModelConfig, Train, TrainConfig, parse_method
from zsl.game import Game, TrainingSet


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gazsl", "cizsl", "cizslv2"])
def test_iterations_are_repeatable_bit_for_bit_with_several_threads(two_threads, method):
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 30, (400,), generator=random)
    data = TrainingSet(torch.randn(400, 256, generator=random), labels, torch.rand(30, 20, generator=random))
    config = Train("x", DataConfig("x"), model=ModelConfig(512, 50), train=TrainConfig(batch_size=256, critic_steps=1))

    def weights() -> torch.Tensor:
        game = Game(parse_method(method), 0.3, config, 0, data)
        game.iterate(0)
        return torch.cat([weight.flatten() for weight in game.generator.parameters()])

    first = weights()
    assert all(torch.equal(first, weights()) for _ in range(4))
