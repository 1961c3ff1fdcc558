"""The schema of `python -m tinyldm.ema`: which keys it has, what they mean and their defaults. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from tinyldm.config.evaluate import Evaluate
from tinyldm.config.evaluate import read as read_evaluate
from tinyldm.config.parsing import parse
from tinyldm.config.ranges import AtLeast20, EMAWidth, PositiveInt, Seed
from tinyldm.config.schema import Features, Sampler
from tinyldm.errors import UserError


@dataclass(kw_only=True)
class EMALengths:
    """Compare averages of the weights over different lengths."""

    run: str
    """A run of train_ldm.py or train_ddpm.py with `train.ema_snapshot_steps`. The word `--run` may be left out."""
    metric: Literal["fd", "loss"] = "fd"
    """What to measure. `fd`: Frechet distance of samples to the held-out part. `loss`: the held-out loss of the training, which
    takes seconds, but need not have its minimum where the samples are best."""
    widths: list[EMAWidth] = field(default_factory=lambda: [0.015, 0.03, 0.05, 0.1, 0.15, 0.25])
    """Relative widths to compare. Those below 0.02 need more than 30 snapshots to be exact; see `misfit` in the table."""
    features: Features = "inception"
    """The network whose features `fd` compares; see evaluate.py."""
    num_images: AtLeast20 = 512
    """Samples per average, of the same seeds."""
    num_inference_steps: PositiveInt = 50
    """Denoising steps. About 20 are enough for dpm-solver++."""
    scheduler: Sampler | None = None
    """The sampler. null: the one saved with the model."""
    batch_size: PositiveInt = 64
    """Images drawn at once. It changes the speed, not the results."""
    seed: Seed = 0
    """Seed of the first sample."""
    device: str | None = None
    """cuda, mps, cpu and so on, for `fd`. null: the GPU if there is one."""
    export: str | None = None
    """A new folder for the pipeline with the best of these averages. null: none."""

    def check(self) -> None:
        """Raise UserError for an empty list of widths."""
        if not self.widths:
            raise UserError("widths is empty; give some, such as [0.03, 0.05, 0.1]")

    def evaluation(self, width: float | None) -> Evaluate:
        """The call of evaluate.py that draws and measures an average; None: the one that the run has saved.

        Raises:
            UserError: as config.evaluate.read.
        """
        keys = ("features", "num_images", "num_inference_steps", "scheduler", "batch_size", "seed", "device")
        given = {"model": self.run, "ema": width, **{key: getattr(self, key) for key in keys}}
        return read_evaluate(None, [f"--{key}={value}" for key, value in given.items() if value is not None])


def read(description: str | None, args: list[str]) -> EMALengths:
    """The command line, whose first word may be the run.

    Raises:
        UserError: as parsing.parse.
    """
    return parse(EMALengths, description, ["--run", *args] if args and not args[0].startswith("-") else args)
