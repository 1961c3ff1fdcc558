"""Training from stored latents compared with encoding at each step, at 256 px with the full VQ-f4 (with random weights).

python -m benchmarks.latents                  # about 5 minutes on 2 CPU cores
python -m benchmarks.latents --small true     # a small first stage at 32 px, to check that it runs
"""

import dataclasses
import tempfile
import threading
from pathlib import Path

import torch
from jsonargparse import auto_cli

from benchmarks.measure import RESULTS, ROOT, TimedLatents, in_turns, quietly, ratio, record, told, use_all_cores
from tinyldm.config.networks import VQConfig
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM, TrainVQ
from tinyldm.data import toyfaces
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.first_stage.networks import make_vq
from tinyldm.training.trainer import run_training

SMALL_VQ = VQConfig(block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, num_vq_embeddings=64)
SMALL = [
    *("--unet.block_out_channels", "[16,32]", "--unet.norm_num_groups", "8", "--unet.attention_head_dim", "16"),
    *("--unet.down_block_types", "[DownBlock2D,AttnDownBlock2D]", "--unet.up_block_types", "[AttnUpBlock2D,UpBlock2D]"),
    *("--diffusion.preview_images", "2", "--diffusion.preview_steps", "2", "--train.batch_size", "4"),
]


def first_stage(folder: Path, small: bool) -> FirstStage:
    """Save the full VQ-f4 with random weights, so that a config can name it."""
    torch.manual_seed(0)
    vq = make_vq(TrainVQ(output_dir="", vq=SMALL_VQ if small else VQConfig()))
    vq.save_pretrained(folder)
    return FirstStage(vq.eval().requires_grad_(False))


def drawn_faces(folder: Path, train: int, validation: int, side: int) -> None:
    """Write toy faces as JPEG files, in the folders of a data set."""
    for part, first, count in (("train", 0, train), ("validation", 10**6, validation)):
        (folder / part).mkdir(parents=True)
        for index in range(first, first + count):
            toyfaces.draw(0, index, side).save(folder / part / f"{index}.jpg", quality=92)


def faces64(folder: Path, train: int, validation: int, side: int) -> list[str]:
    """Arguments for configs/faces64.yaml with toy faces and a small first stage, since only the latents' shape matters."""
    first_stage(folder / "vq", small=True)
    drawn_faces(folder / "images", train, validation, side)
    args = faces64_over(str(folder / "images"), str(folder / "vq"), str(folder / "cache"))
    return [*args, "--data.resolution", str(side), "--output_dir", str(folder / "run")]


def faces64_over(data: str, first_stage: str, cache_dir: str) -> list[str]:
    """Arguments for configs/faces64.yaml with this data set and first stage."""
    args = ["--config", str(ROOT / "configs/faces64.yaml"), "--first_stage.path", first_stage]
    return [*args, "--data.name", data, "--data.cache_dir", cache_dir]


def small_trial(folder: Path) -> tuple[str, str, str, list[str]]:
    """Data, first stage, cache and arguments for a trial that only checks that a benchmark runs."""
    drawn_faces(folder / "images", 16, 8, 32)
    first_stage(folder / "vq", small=True)
    return str(folder / "images"), str(folder / "vq"), str(folder / "cache"), [*SMALL, "--data.resolution", "32"]


def main(pairs: int = 3, images: int = 8, batch_size: int = 4, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        pairs: number of paired measurements.
        images: images in the training part.
        batch_size: images per step. Larger batches do not make encoding faster per image.
        small: a small first stage at 32 px.
        output: folder for the JSON file.
    """
    use_all_cores()
    side = 32 if small else 256
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first_stage(folder / "vq", small)
        drawn_faces(folder / "images", images, 2, side * 5 // 4)
        args = ["--config", str(ROOT / "configs/celebahq256.yaml"), *(SMALL if small else [])]
        args += ["--first_stage.path", str(folder / "vq")]
        args += ["--first_stage.subfolder", "null", "--data.name", str(folder / "images")]
        args += ["--data.cache_dir", str(folder / "cache")]
        args += ["--data.resolution", str(side), "--data.random_flip", "false", "--data.num_workers", "2"]
        args += ["--train.mixed_precision", "no", "--train.compile", "false", "--train.batch_size", str(batch_size)]
        config = parse(TrainLDM, "", [*args, "--output_dir", str(folder / "run")])

        def images_a_second(keep: bool) -> float:
            kept = dataclasses.replace(config.first_stage, keep_latents=keep)
            # Two steps are timed. The first one ends when the second batch has been encoded.
            trainer = run_training(dataclasses.replace(quietly(config, 6 if keep else 3), first_stage=kept), TimedLatents)
            for thread in threading.enumerate():
                if thread.name == "read_ahead":  # it encodes one more batch before it notices the end
                    thread.join()
            return batch_size / trainer.task.seconds_a_step()

        results = ratio(in_turns(lambda: images_a_second(True), lambda: images_a_second(False), pairs))
    print(told("stored latents against encoding at each step", results))
    record("latents", {"side": side, "batch_size": batch_size, "kept": results}, output, small)


if __name__ == "__main__":
    auto_cli(main)
