"""The learning rate and the length of a training, as functions of images seen.

Nothing here has a state: a resumed run computes both anew, whatever its batch size and number of ranks are now.
"""

import math
from dataclasses import dataclass

from tinyldm.config.schema import TrainConfig


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        images_per_step: of all ranks and accumulated passes together.
        total: images seen at the end.
    """

    config: TrainConfig
    images_per_step: int
    total: int

    @classmethod
    def plan(
        cls, config: TrainConfig, images_per_step: int, examples_per_epoch: int | None, step: int = 0, images: int = 0
    ) -> "Progress":
        """The length of a training that is at this step and has seen these images.

        `max_steps` counts optimizer steps, `num_epochs` images: a resumed run whose batches are twice as large takes half as
        many steps to the same number of epochs.
        """
        if config.max_steps is not None:
            return cls(config, images_per_step, images + (config.max_steps - step) * images_per_step)
        assert config.num_epochs is not None and examples_per_epoch is not None  # the config and the task see to it
        steps = max(1 if step == 0 else 0, round((config.num_epochs * examples_per_epoch - images) / images_per_step))
        return cls(config, images_per_step, images + steps * images_per_step)

    def steps_left(self, images: int) -> int:
        """Optimizer steps from here to the end."""
        return (self.total - images) // self.images_per_step

    def learning_rate(self, images: int) -> float:
        """Factor of the peak learning rate for the step after so many images."""
        config, warmup = self.config, self.config.lr_warmup_steps * self.images_per_step
        match config.lr_scheduler:
            case "constant":
                return 1.0
            case "piecewise_constant":
                return self._piecewise(images)
        if images < warmup:
            return images / warmup
        if config.lr_scheduler == "constant_with_warmup":
            return 1.0
        done = (images - warmup) / max(1, self.total - warmup)
        if config.lr_scheduler == "linear":
            return max(0.0, (self.total - images) / max(1, self.total - warmup))
        return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))

    def _piecewise(self, images: int) -> float:
        """`1:1800,0.3:2400,0.1`: 1 up to step 1,800, then 0.3 up to step 2,400, then 0.1."""
        *rules, last = (self.config.lr_step_rules or "1").split(",")
        for step, factor in sorted((int(step), float(factor)) for factor, step in (rule.split(":") for rule in rules)):
            if images < step * self.images_per_step:
                return factor
        return float(last)
