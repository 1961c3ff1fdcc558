"""Which first stage for 64 px has the highest PSNR after a given time? A sweep of one factor at a time around
configs/faces64-vq.yaml.

    python -m benchmarks.sweep_vq --data ../shared/data/faces --seconds 240 --seeds 2
    python -m benchmarks.sweep_vq --small true           # two variants of a small network for a second each

With 240 s, the 17 variants take about 75 minutes per seed on 2 CPU cores. There is no discriminator, because it lowers PSNR to
get sharper images; docs/journal/recipes.md compares Frechet distances. All variants have latents of 16 x 16 x 3 unless they say
otherwise. A higher PSNR with larger latents does not make a better first stage, since the denoiser has more to learn.
"""

import tempfile
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from benchmarks.latents import drawn_faces
from benchmarks.measure import RESULTS, ROOT, TimedVQ, use_all_cores
from benchmarks.sweep import BASE, Figure, Variant, chosen_from, run_all, tell
from benchmarks.sweep_unet import values
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainVQ

SMALL_VQ = ["--vq.block_out_channels", "[8,8,16]", "--vq.norm_num_groups", "4", "--vq.num_vq_embeddings", "64"]
WIDTHS = ([16, 48, 128], [24, 48, 96], [24, 64, 128], [32, 64, 128], [48, 48, 96])
PSNR = Figure("eval_psnr", "PSNR in dB", higher_is_better=True)


def batches_of(size: int) -> list[str]:
    """Arguments for a batch size. Quantisation and the revival of codes start after the same number of images."""
    steps = f"{800 // size}"
    return ["--train.batch_size", f"{size}", "--loss.quantize_start", steps, "--loss.revive_steps", steps]


# Repeated here, so that the table stays valid if the recipe changes.
BASE_ARGS = ["--vq.block_out_channels", "[24,48,128]", *batches_of(16)]
VARIANTS = [
    Variant(BASE, "24-48-128, 1 layer"),
    *(Variant("widths", "-".join(map(str, each)), ["--vq.block_out_channels", f"{each}"]) for each in WIDTHS),
    *values("layers", "vq.layers_per_block", 2),
    *values("attention in the middle", "vq.mid_block_add_attention", "false"),
    *values("learning rate", "train.learning_rate", 5e-4, 2e-3),
    *(Variant("batch", f"{size}", batches_of(size)) for size in (8, 32)),
    *values("codes", "vq.num_vq_embeddings", 1024, 16384),
    *values("gradient loss", "loss.gradient_weight", 0, 0.3),
    *values("latent channels", "vq.latent_channels", 4),
    # The improvements of the first round, combined.
    Variant("together", "24-48-96, batch 8", ["--vq.block_out_channels", "[24,48,96]", *batches_of(8)]),
]


def main(
    data: str = "../shared/data/faces",
    seconds: float = 180.0,
    seeds: int = 2,
    best: int = len(VARIANTS),
    only: list[str] | None = None,
    name: str = "sweep_vq",
    small: bool = False,
    output: str = str(RESULTS),
) -> None:
    """Run the sweep.

    Args:
        data: a data set with the splits `train` and `validation`.
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
        small_args = []
        if small:
            drawn_faces(Path(temporary) / "images", 16, 8, 32)
            data, seconds = str(Path(temporary) / "images"), min(seconds, 1.0)
            chosen = [VARIANTS[0], *values("learning rate", "train.learning_rate", 2e-3)]
            small_args = [*SMALL_VQ, "--data.resolution", "32", "--train.batch_size", "4"]

        def make(variant: Variant, run: str) -> Any:
            args = ["--config", str(ROOT / "configs/faces64-vq.yaml"), *BASE_ARGS, "--output_dir", run]
            args += ["--data.name", data]
            args += ["--loss.adversarial_weight", "0"]
            args += ["--train.lr_scheduler", "cosine", "--train.lr_step_rules", "null", "--train.adam_beta1", "0.9"]
            return parse(TrainVQ, "", [*args, *small_args, *variant.args])

        rows = run_all(chosen, make, TimedVQ, seconds, seeds, Path(output) / f"{name}.csv", PSNR, best)
    tell(rows, PSNR, seconds, seeds, name, output, small, "sweep_vq")


if __name__ == "__main__":
    auto_cli(main)
