"""Throughput of train_ldm.py with one rank and with two ranks on the same cores, in turns.

python -m benchmarks.processes                # configs/faces64.yaml's network: about 4 minutes on 2 CPU cores
python -m benchmarks.processes --small true   # a small network, to check that it runs
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.latents import SMALL, faces64
from benchmarks.measure import RESULTS, ROOT, in_turns, ratio, record, told
from tinyldm.config.parsing import parse, to_yaml
from tinyldm.config.schema import TrainLDM
from tinyldm.training.checkpoint import steps as kept_steps


def images_a_second(ranks: int, config: Path, run: Path, batch_size: int, steps: int) -> float:
    """Images per second of a training of `steps` steps, with the batch split over the ranks. Evaluation is not counted."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    args = ["--config", str(config), "--train.batch_size", str(batch_size // ranks), "--train.max_steps", str(steps)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, *launch, "train_ldm.py", *args]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    state = json.loads((run / "checkpoints" / f"step-{kept_steps(run)[-1]}" / "state.json").read_text())
    return steps * batch_size / state["seconds"]


def main(pairs: int = 3, steps: int = 30, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        pairs: number of paired measurements.
        steps: steps per training.
        small: a small network and few steps.
        output: folder for the JSON file.
    """
    steps = 2 if small else steps
    with tempfile.TemporaryDirectory() as temporary:
        folder, side = Path(temporary), 32 if small else 64
        args = faces64(folder, 128, 16, side)
        args += ["--overwrite", "true", "--train.num_eval_images", "16"]
        args += ["--train.log_with", "none", "--diffusion.preview_images", "1", "--diffusion.preview_steps", "1"]
        parsed = parse(TrainLDM, "", [*args, *(SMALL if small else [])])
        config = folder / "config.yaml"
        config.write_text(to_yaml(parsed))

        def speed(ranks: int) -> float:
            return images_a_second(ranks, config, folder / "run", parsed.train.batch_size, steps)

        results = ratio(in_turns(lambda: speed(2), lambda: speed(1), pairs))
    print(told("two ranks against one, on the same cores", results))
    record("processes", {"two": results, "batch_size": parsed.train.batch_size, "steps": steps}, output, small)


if __name__ == "__main__":
    auto_cli(main)
