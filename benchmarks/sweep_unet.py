"""Which UNet of about 5M parameters, and which way to train it, learns most in so many seconds? One factor at a time around
configs/faces64.yaml, on kept latents.

    python -m benchmarks.sweep_unet --data ../shared/data/faces --first_stage_run runs/faces64-vq --seconds 180 --seeds 2
    python -m benchmarks.sweep_unet --small true         # two variants of a small network for a second each

42 variants: at 180 s about 2.3 hours a seed for one process on one CPU core (`taskset -c 0`), half of that for two of them. The
table can be stopped and gone on with. It ranks by
`eval_loss`, the error of x_0 in units of v over all timesteps alike (objective.held_out_error), which does not depend on
what the network was trained to predict. The table also has the error in units of the noise and the steps' term of the
variational bound (Kingma et al. 2021, equation 11), in bits per dimension of the scaled latents: other weights of the same
errors, so a winner by one alone is none.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from benchmarks.compared import ComparedLatents
from benchmarks.latents import faces64_over, small_trial
from benchmarks.measure import RESULTS, use_all_cores
from benchmarks.sweep import BASE, Figure, Variant, chosen_from, run_all, tell
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM
from tinyldm.diffusion.process import DiscreteVP
from tinyldm.randomness import Draw


class LogitNormalVP(DiscreteVP):
    """DiscreteVP with training times T sigmoid(z), z standard normal (Esser et al. 2024, section 3.1): fewer at both ends."""

    def draw_times(self, count: int, draw: Draw) -> torch.Tensor:
        """See Process.draw_times."""
        z = math.sqrt(2) * torch.erfinv(2 * draw.stratified(count) - 1)
        return self.times(z.sigmoid())


class LogitNormal(ComparedLatents):
    """Trains at the times of LogitNormalVP. Held-out times stay those of the base."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.process = LogitNormalVP(self.process.scheduler)


def shape(widths: list[int], layers: int, attention: tuple[int, ...]) -> list[str]:
    """Keys of a UNet with attention in these blocks, counted from the finest, and the middle."""
    down = [f"{'Attn' if i in attention else ''}DownBlock2D" for i in range(len(widths))]
    up = [f"{'Attn' if i in attention else ''}UpBlock2D" for i in reversed(range(len(widths)))]
    args = ["--unet.block_out_channels", f"{widths}", "--unet.layers_per_block", str(layers)]
    args += ["--unet.down_block_types", f"[{','.join(down)}]", "--unet.up_block_types", f"[{','.join(up)}]"]
    return [*args, "--unet.norm_num_groups", "32" if all(width % 32 == 0 for width in widths) else "16"]


def widths(*shapes: tuple[list[int], int]) -> list[Variant]:
    """With attention in all blocks but the finest, as the base."""
    return [
        Variant(
            "widths" if len(each) == 3 and layers == 1 else "depth",
            f"{'-'.join(map(str, each))}, {layers} layer{'s' * (layers > 1)}",
            shape(each, layers, tuple(range(1, len(each)))),
        )
        for each, layers in shapes
    ]


def values(factor: str, key: str, *choices: object) -> list[Variant]:
    """A variant for each value of a key."""
    return [Variant(factor, "none" if choice == "null" else str(choice), [f"--{key}", str(choice)]) for choice in choices]


LOSS = Figure("eval_loss", "held-out loss", higher_is_better=False)
# Said here too, so that the table stays what it is when the recipe changes.
BASE_ARGS = [*shape([64, 128, 128], 1, (1, 2)), "--train.batch_size", "64", "--train.learning_rate", "1e-3"]
VARIANTS = [
    Variant(BASE, "64-128-128, 1 layer"),
    *widths(([32, 96, 160], 1), ([32, 128, 144], 1), ([48, 112, 160], 1), ([96, 96, 128], 1), ([112, 112, 112], 1)),
    *widths(([96, 160], 1), ([112, 144], 1), ([64, 64, 128, 128], 1), ([48, 96, 112], 2), ([64, 96, 96], 2), ([64, 64, 96], 3)),
    Variant("attention", "middle only", shape([64, 128, 128], 1, ())),
    Variant("attention", "4 x 4 and middle", shape([64, 128, 128], 1, (2,))),
    Variant("attention", "everywhere", shape([64, 128, 128], 1, (0, 1, 2))),
    Variant("attention", "not in the middle", ["--unet.add_attention", "false"]),
    *values("head size", "unet.attention_head_dim", 16, 64, "null"),
    *values("learning rate", "train.learning_rate", 3e-4, 5e-4, 2e-3, 4e-3),
    *values("batch", "train.batch_size", 16, 32, 128),
    *values("EMA decay", "train.ema_decay", 0.9, 0.95),  # longer ones are capped by diffusers' warm-up; see ema.py
    *values("min-SNR gamma", "diffusion.snr_gamma", "null", 1, 20),
    Variant("timesteps", "logit-normal", kind=LogitNormal),
    *values("prediction", "scheduler.prediction_type", "epsilon", "sample"),
    *values("Adam's beta2", "train.adam_beta2", 0.95, 0.999),
]
# What the first round found better, together: four levels, attention at few places, smaller batches, a higher rate.
DEEP = shape([64, 64, 128, 128], 1, (2, 3))
BATCH, RATE = ["--train.batch_size", "32"], ["--train.learning_rate", "2e-3"]
VARIANTS += [
    Variant("attention", "middle only, 64-64-128-128", shape([64, 64, 128, 128], 1, ())),
    Variant("attention", "4 x 4 and middle, 96-96-128", shape([96, 96, 128], 1, (2,))),
    Variant("together", "deep: 64-64-128-128, attention at 4 x 4 and 2 x 2", DEEP),
    Variant("together", "deep, batch 32", [*DEEP, *BATCH]),
    Variant("together", "deep, rate 2e-3", [*DEEP, *RATE]),
    Variant("together", "deep, batch 32, rate 2e-3", [*DEEP, *BATCH, *RATE]),
]


def main(
    data: str = "../shared/data/faces",
    first_stage_run: str = "runs/faces64-vq",
    cache_dir: str = "~/.cache/tinyldm",
    seconds: float = 180.0,
    seeds: int = 2,
    best: int = len(VARIANTS),
    only: list[str] | None = None,
    name: str = "sweep_unet",
    small: bool = False,
    output: str = str(RESULTS),
) -> None:
    """Sweep.

    Args:
        data: with the splits `train` and `validation`.
        first_stage_run: of train_vq.py.
        cache_dir: where the latents are or will be kept.
        seconds: of each training, evaluation not counted.
        seeds: how many trainings of each variant, in all.
        best: only so many of them, beside the base, go on to another seed.
        only: factors or variants that are trained beside the base.
        name: of table, picture and JSON.
        small: two variants of a small network, a second each.
        output: where table, picture and JSON go.
    """
    use_all_cores()
    chosen = chosen_from(VARIANTS, only)
    with tempfile.TemporaryDirectory() as temporary:
        folder, small_args = Path(temporary), []
        if small:
            data, first_stage_run, cache_dir, small_args = small_trial(folder)
            seconds = min(seconds, 1.0)
            chosen = [chosen[0], Variant("timesteps", "logit-normal", kind=LogitNormal)]

        def make(variant: Variant, run: str) -> Any:
            args = [*faces64_over(data, first_stage_run, cache_dir), *BASE_ARGS, "--output_dir", run]
            args += ["--diffusion.preview_images", "4", "--diffusion.preview_steps", "2", "--train.metrics_steps", "null"]
            return parse(TrainLDM, "", [*args, *small_args, *variant.args])

        rows = run_all(chosen, make, ComparedLatents, seconds, seeds, Path(output) / f"{name}.csv", LOSS, best)
    tell(rows, LOSS, seconds, seeds, name, output, small, "sweep_unet")


if __name__ == "__main__":
    auto_cli(main)
