"""Waiting times: for --help, and from the launch of a training to its first step with stored latents.

    python -m benchmarks.startup                  # about 6 minutes on 2 CPU cores, 3 GB of temporary files
    python -m benchmarks.startup --small true     # once each, to check that it runs

The launches run benchmarks/startup_stages.py instead of train_ldm.py: the same calls, with timestamps between them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from jsonargparse import auto_cli

from benchmarks.data import jpegs, parquet
from benchmarks.latents import SMALL, first_stage
from benchmarks.measure import RESULTS, ROOT, record
from tinyldm.config.parsing import parse, to_yaml
from tinyldm.config.schema import TrainLDM, TrainVQ
from tinyldm.diffusion.latent_task import LatentTask
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.first_stage.networks import make_vq
from tinyldm.training.accelerator import make_accelerator

SCRIPTS = ("train_ldm.py", "train_vq.py", "train_ddpm.py", "sample.py", "evaluate.py")
RECIPES = {"faces64": 12_000, "celebahq256": 28_000}  # images
LAUNCH = [*("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"), "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no"]


def seconds_of(*args: str) -> float:
    """Seconds that a Python program takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *args], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def launch(config: Path, marks: Path) -> dict[str, float]:
    """Seconds since the launch at which each stage was reached."""
    started = time.time()
    args = [*LAUNCH, "-m", "benchmarks.startup_stages", "--config", str(config)]
    done = subprocess.run([sys.executable, *args, "--marks", str(marks)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {stage: reached - started for stage, reached in json.loads(marks.read_text()).items()}


def recipe(name: str, images: int, folder: Path, small: bool) -> Path:
    """A config file for a recipe of configs/, with as many toy faces as its data set has images, and a first stage of the same
    size with random weights. Stores random latents, since encoding would take hours and does not change the result."""
    config = ROOT / "configs" / f"{name}.yaml"
    large = name == "celebahq256"
    side = 32 if small else 256 if large else 64
    if large or small:
        first_stage(folder / "vq", small)
    else:
        make_vq(parse(TrainVQ, "", ["--config", str(ROOT / "configs/faces64-vq.yaml")])).save_pretrained(folder / "vq")
    args = ["--config", str(config), "--first_stage.path", str(folder / "vq"), "--output_dir", str(folder / "run")]
    args += ["--first_stage.subfolder", "null", "--data.name", str(parquet(folder / "images", jpegs(64, side), images, 4))]
    args += ["--data.split", "train", "--data.eval_split", "validation", "--data.resolution", str(side)]
    args += ["--data.cache_dir", str(folder / "cache"), "--overwrite", "true", "--train.max_steps", "1"]
    args += ["--train.num_eval_images", "1", "--diffusion.preview_images", "1", "--diffusion.preview_steps", "1"]
    if not torch.cuda.is_available():
        args += ["--train.mixed_precision", "no", "--train.compile", "false"]
    parsed = parse(TrainLDM, "", [*args, *(SMALL if small else [])])
    with mock.patch.multiple(FirstStage, encode=_noise, to_half=lambda stage, latents: latents.half()):
        LatentTask(parsed, make_accelerator(parsed.train, parsed.output_dir))
    (folder / "config.yaml").write_text(to_yaml(parsed))
    return folder / "config.yaml"


def _noise(stage: FirstStage, images: torch.Tensor) -> torch.Tensor:
    return torch.randn(len(images), stage.channels, *(side // stage.downscale for side in images.shape[2:]))


def main(repeats: int = 3, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        repeats: measurements of each; the medians are reported.
        small: one script, a small network, few images.
        output: folder for the JSON file.
    """
    helps = {
        script: statistics.median(seconds_of(script, "--help") for _ in range(repeats))
        for script in (SCRIPTS[:1] if small else SCRIPTS)
    }
    for script, seconds in helps.items():
        print(f"{script} --help: {seconds:.2f} s")
    results = {}
    for name, images in ({"faces64": 64} if small else RECIPES).items():
        with tempfile.TemporaryDirectory() as temporary:
            config = recipe(name, images, Path(temporary), small)
            launches = [launch(config, Path(temporary) / "marks.json") for _ in range(repeats)]
        reached = {stage: statistics.median(each[stage] for each in launches) for stage in launches[0]}
        results[name] = {"images": images, "stages": reached}
        for stage, seconds in reached.items():
            print(f"{name}, {stage}: {seconds:.2f} s since launch")
    record("startup", {"help": helps, "recipes": results, "repeats": repeats}, output, small)


if __name__ == "__main__":
    auto_cli(main)
