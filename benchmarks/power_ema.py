"""What the power-function averages cost: their share of the CPU time of a training step, their memory and a snapshot.

    python -m benchmarks.power_ema                    # configs/faces64.yaml's network: a minute on one core
    python -m benchmarks.power_ema --small true       # few images, to check that it runs

Steps and updates take turns in one process on one thread, and its CPU time is measured, so that other programs disturb little.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from jsonargparse import auto_cli

from benchmarks.measure import RESULTS, ROOT, record
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM
from tinyldm.models.denoiser import make_denoiser
from tinyldm.training.power_ema import PowerAverages


def main(rounds: int = 12, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        rounds: steps that are timed; the first one is not counted.
        small: a batch of 2 and two rounds.
        output: folder for the JSON file.
    """
    torch.set_num_threads(1)
    config = parse(TrainLDM, None, ["--config", str(ROOT / "configs/faces64.yaml")])
    batch, rounds = (2, 2) if small else (config.train.batch_size, rounds)
    network = make_denoiser(config.unet, config.data.resolution // 4, 3).to(memory_format=torch.channels_last)
    weights, names = list(network.parameters()), [name for name, _ in network.named_parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    classic, power = EMAModel(weights, decay=0.999, foreach=True), PowerAverages(weights)
    x, noise = torch.randn(2, batch, *(3, network.unet.config.sample_size, network.unet.config.sample_size))
    times = torch.randint(1000, (batch,))

    def step() -> None:
        torch.nn.functional.mse_loss(network(x, times), noise).backward()
        optimizer.step()
        optimizer.zero_grad()
        classic.step(weights)

    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], None]] = {
            "step": step,
            "averages": lambda: power.update(weights, 1000),
            "snapshot": lambda: power.save_snapshot(Path(folder), 1000, names),
        }
        spent: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(rounds + 1):
            for name, do in parts.items():
                started = time.process_time()
                do()
                spent[name].append(time.process_time() - started)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
    seconds = {name: statistics.median(values[1:]) for name, values in spent.items()}
    share = (seconds["averages"] + seconds["snapshot"] / (config.train.ema_snapshot_steps or 1)) / seconds["step"]
    memory = sum(4 * tensor.numel() for average in power.averages.values() for tensor in average)
    print(f"{1000 * seconds['averages']:.2f} ms for both averages, {1000 * seconds['snapshot']:.0f} ms for a snapshot")
    print(
        f"{share:.2%} of a step of {seconds['step']:.3f} s; {memory / 2**20:.0f} MiB of memory, {size / 2**20:.0f} MiB on disk"
    )
    record(
        "power_ema", {"batch_size": batch, "seconds": seconds, "share": share, "memory": memory, "file": size}, output, small
    )


if __name__ == "__main__":
    auto_cli(main)
