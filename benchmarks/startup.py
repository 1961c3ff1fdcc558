"""How long one waits: for --help, and from the launch of a training to its first step with the latents kept already.

    python -m benchmarks.startup                  # about 2 minutes
    python -m benchmarks.startup --small true     # once each, to see that it runs

The launches run benchmarks/startup_stages.py in place of train_ldm.py: the same calls, with the time noted between them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.latents import SMALL, drawn_faces, first_stage
from benchmarks.measure import RESULTS, ROOT, record
from tinyldm.config import TrainLDM
from tinyldm.parsing import parse, to_yaml

SCRIPTS = ("train_ldm.py", "train_vq.py", "train_ddpm.py", "sample.py", "evaluate.py")
LAUNCH = [*("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"), "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no"]


def seconds_of(*args: str) -> float:
    """How long a Python process takes."""
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


def main(repeats: int = 5, small: bool = False, output: str = str(RESULTS)) -> None:
    """Measure.

    Args:
        repeats: of each; medians are reported.
        small: one script, a small network.
        output: where the JSON goes.
    """
    helps = {
        script: statistics.median(seconds_of(script, "--help") for _ in range(repeats))
        for script in (SCRIPTS[:1] if small else SCRIPTS)
    }
    for script, seconds in helps.items():
        print(f"{script} --help: {seconds:.2f} s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first_stage(folder / "vq", small=True)
        drawn_faces(folder / "images", 64, 16, 32)
        args = ["--config", str(ROOT / "configs/faces64.yaml"), "--first_stage.path", str(folder / "vq")]
        args += ["--data.name", str(folder / "images"), "--data.resolution", "32", "--data.cache_dir", str(folder / "cache")]
        args += ["--output_dir", str(folder / "run"), "--overwrite", "true", "--train.max_steps", "1"]
        args += ["--train.num_eval_images", "16", "--diffusion.preview_steps", "1"]
        config = folder / "config.yaml"
        config.write_text(to_yaml(parse(TrainLDM, "", [*args, *(SMALL if small else [])])))
        launch(config, folder / "marks.json")  # makes the latents
        launches = [launch(config, folder / "marks.json") for _ in range(repeats)]
    reached = {stage: statistics.median(each[stage] for each in launches) for stage in launches[0]}
    before = 0.0
    for stage, seconds in reached.items():
        print(f"{stage}: +{seconds - before:.2f} s, {seconds:.2f} s since the launch")
        before = seconds
    record("startup", {"help": helps, "stages": reached, "repeats": repeats}, output, small)


if __name__ == "__main__":
    auto_cli(main)
