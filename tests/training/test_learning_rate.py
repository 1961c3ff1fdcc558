"""The learning rate and the length of a training, against diffusers' schedulers and by hand."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from tinyldm.config.schema import TrainConfig
from tinyldm.training.learning_rate import Progress

KINDS = {
    "constant": {},
    "constant_with_warmup": {"lr_warmup_steps": 7},
    "linear": {"lr_warmup_steps": 7},
    "cosine": {"lr_warmup_steps": 7},
    "piecewise_constant": {"lr_step_rules": "1:9,0.3:20,0.1"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images_per_step", [1, 24])
def test_it_equals_the_factor_of_diffusers_schedulers(kind, images_per_step):
    config = TrainConfig(max_steps=50, lr_scheduler=kind, **KINDS[kind])
    progress = Progress.plan(config, images_per_step, None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(
        kind,
        optimizer,
        step_rules=config.lr_step_rules,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=50,
    )
    for step in range(51):
        assert progress.learning_rate(step * images_per_step) == optimizer.param_groups[0]["lr"], step
        optimizer.step()
        theirs.step()


def test_epochs_count_images_and_steps_count_steps():
    epochs, steps = TrainConfig(num_epochs=2), TrainConfig(max_steps=20)
    assert Progress.plan(epochs, 10, 100).steps_left(0) == 20 == Progress.plan(steps, 10, 100).steps_left(0)
    # after 12 steps of 10 images, with batches of 5 from then on
    assert Progress.plan(epochs, 5, 100, step=12, images=120).steps_left(120) == 16
    assert Progress.plan(steps, 5, 100, step=12, images=120).steps_left(120) == 8
    assert Progress.plan(epochs, 10, 100, step=30, images=300).steps_left(300) == 0  # past its end
    assert Progress.plan(epochs, 1000, 100).steps_left(0) == 1  # at least one step


def test_another_batch_size_does_not_change_the_rate():
    """The learning rate is a function of images seen: warm-up and end are at the same image counts."""
    config = TrainConfig(num_epochs=10, lr_scheduler="cosine")
    before, after = Progress.plan(config, 20, 100), Progress.plan(config, 5, 100, step=30, images=600)
    assert before.total == after.total == 1000
    for images in (600, 700, 1000):
        assert before.learning_rate(images) == after.learning_rate(images)
