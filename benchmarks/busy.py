"""How fast is a training beside other busy programs, with and without the spin count that tinyldm/__init__.py sets?

    python -m benchmarks.busy                    # 4 minutes; the machine has to be quiet otherwise
    python -m benchmarks.busy --small true

Steps of the recipe faces64 (its denoiser on random latents, forward, backward, AdamW), alone and beside one and two programs
that keep a core each. 300,000 is what GNU's OpenMP does by itself.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from jsonargparse import auto_cli

from benchmarks.measure import RESULTS, ROOT, record, use_all_cores
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM
from tinyldm.models.denoiser import make_denoiser

SPIN_COUNTS = {"by itself": "300000", "set": "10000"}
NEIGHBOURS = (0, 1, 2)
LOOP = [sys.executable, "-c", "while True: pass"]


def main(seconds: float = 15.0, repeats: int = 2, small: bool = False, output: str = str(RESULTS), child: bool = False) -> None:
    """Run the benchmark.

    Args:
        seconds: length of each measurement.
        repeats: measurements of each kind, interleaved.
        small: a second each, once.
        output: folder for the JSON file.
        child: time steps in this process and print them.
    """
    if child:
        return print(json.dumps(steps(seconds)))
    seconds, repeats = (1.0, 1) if small else (seconds, repeats)
    times: dict[str, dict[int, list[float]]] = {name: {count: [] for count in NEIGHBOURS} for name in SPIN_COUNTS}
    for _ in range(repeats):
        for count in NEIGHBOURS:
            for name, spin in SPIN_COUNTS.items():
                times[name][count] += beside(count, spin, seconds)
    figures = {
        name: {
            str(count): {
                "steps": len(taken),
                "steps_a_second": len(taken) / sum(taken),
                "median": statistics.median(taken),
                "longest": max(taken),
            }
            for count, taken in by_count.items()
        }
        for name, by_count in times.items()
    }
    for name, by_count in figures.items():
        for neighbours, figure in by_count.items():
            print(f"spin count {name}, {neighbours} neighbours: {figure}")
    record("busy", {"spin_counts": SPIN_COUNTS, "neighbours": figures}, output, small)


def beside(count: int, spin: str, seconds: float) -> list[float]:
    """Seconds of each step in a new process beside so many busy ones."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            neighbour = subprocess.Popen(LOOP)
            stack.callback(neighbour.wait)
            stack.callback(neighbour.kill)
        command = [sys.executable, "-m", "benchmarks.busy", "--child", "true", "--seconds", str(seconds)]
        environment = {**os.environ, "GOMP_SPINCOUNT": spin}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def steps(seconds: float) -> list[float]:
    """Seconds of each training step, at least three, after two that are not counted."""
    use_all_cores()
    config = parse(TrainLDM, "", ["--config", str(ROOT / "configs/faces64.yaml")])
    torch.manual_seed(0)
    network = make_denoiser(config.unet, 16, 4)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x, time_steps = torch.randn(config.train.batch_size, 4, 16, 16), torch.zeros(config.train.batch_size, dtype=torch.long)
    taken: list[float] = []
    since = time.perf_counter()
    while len(taken) < 5 or time.perf_counter() - since < seconds:
        start = time.perf_counter()
        network(x, time_steps).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - start)
    return taken[2:]


if __name__ == "__main__":
    auto_cli(main)
