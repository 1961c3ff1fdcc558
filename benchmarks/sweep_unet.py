"""Which UNet with about 5M parameters, and which settings, learn most in a given time? A sweep of one factor at a time around
configs/faces64.yaml, on stored latents.

    python -m benchmarks.sweep_unet --data ../shared/data/faces --first_stage_run runs/faces64-vq --seconds 180 --seeds 2
    python -m benchmarks.sweep_unet --small true         # two variants of a small network for a second each

With 180 s, the 42 variants take about 2.3 hours per seed on one CPU core (`taskset -c 0`), and half of that on two. A stopped
sweep resumes. It ranks by `eval_loss`, the error of x_0 in units of v, with equal weight for all timesteps
(objective.held_out_error). This does not depend on what the network predicts. The table also has the error in units of the
noise, and the step terms of the variational bound (Kingma et al. 2021, equation 11), in bits per dimension of the scaled
latents. These are other weights of the same errors: do not trust a winner by only one of them.
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
from tinyldm.process.discrete_vp import DiscreteVP
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
    """Arguments for a UNet with attention in these blocks, counted from the finest, and in the middle."""
    down = [f"{'Attn' if i in attention else ''}DownBlock2D" for i in range(len(widths))]
    up = [f"{'Attn' if i in attention else ''}UpBlock2D" for i in reversed(range(len(widths)))]
    args = ["--unet.block_out_channels", f"{widths}", "--unet.layers_per_block", str(layers)]
    args += ["--unet.down_block_types", f"[{','.join(down)}]", "--unet.up_block_types", f"[{','.join(up)}]"]
    return [*args, "--unet.norm_num_groups", "32" if all(width % 32 == 0 for width in widths) else "16"]


def widths(*shapes: tuple[list[int], int]) -> list[Variant]:
    """A UNet with attention in all blocks but the finest, like the base."""
    return [
        Variant(
            "widths" if len(each) == 3 and layers == 1 else "depth",
            f"{'-'.join(map(str, each))}, {layers} layer{'s' * (layers > 1)}",
            shape(each, layers, tuple(range(1, len(each)))),
        )
        for each, layers in shapes
    ]


def values(factor: str, key: str, *choices: object) -> list[Variant]:
    """One variant for each value of a key."""
    return [Variant(factor, "none" if choice == "null" else str(choice), [f"--{key}", str(choice)]) for choice in choices]


LOSS = Figure("eval_loss", "held-out loss", higher_is_better=False)
# Repeated here, so that the table stays valid if the recipe changes.
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
    *values("EMA decay", "train.ema_decay", 0.9, 0.95),  # diffusers' warm-up limits longer ones; see ema.py
    *values("min-SNR gamma", "diffusion.snr_gamma", "null", 1, 20),
    Variant("timesteps", "logit-normal", kind=LogitNormal),
    *values("prediction", "scheduler.prediction_type", "epsilon", "sample"),
    *values("Adam's beta2", "train.adam_beta2", 0.95, 0.999),
]
# The improvements of the first round, combined: four levels, little attention, smaller batches, a higher rate.
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
    """Run the sweep.

    Args:
        data: a data set with the splits `train` and `validation`.
        first_stage_run: a run of train_vq.py.
        cache_dir: folder of the stored latents.
        seconds: length of each training, without evaluations.
        seeds: number of trainings per variant.
        best: number of variants, besides the base, that are trained with another seed.
        only: factors or variants to train besides the base. None: all.
        name: name of the table, the picture and the JSON file.
        small: two variants of a small network, one second each.
        output: folder for the table, the picture and the JSON file.
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
