"""Parameters, FLOPs, memory and speed of each recipe in configs/, as `python -m tinyldm.describe` prints them for one.

python -m benchmarks.costs                    # about 6 minutes on 2 CPU cores
python -m benchmarks.costs --small true       # one recipe, to check that it runs
"""

import os

# Do not download a first stage: costs.first_stage then builds one of the same size.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from jsonargparse import auto_cli

from benchmarks.measure import RESULTS, ROOT, record, use_all_cores
from tinyldm import costs, describe
from tinyldm.training.accelerator import default_device


def main(only: list[str] | None = None, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        only: names of recipes. None: all.
        small: one recipe, measured briefly.
        output: folder for the JSON file.
    """
    use_all_cores()
    device = torch.device(default_device())
    if small:
        only, costs.MEASURED_SECONDS = ["digits-ddpm"], 0.1
    recipes: dict[str, dict] = {}
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        if only and file.stem not in only:
            continue
        config = describe.read([str(file)])
        notes: list[str] = []
        measured = {}
        for part in costs.parts(config, notes):
            cost = costs.count(part)
            measured[part.name] = {
                "parameters": cost.parameters,
                "forward": cost.forward,
                "step": cost.step if part.trained else None,
                "bytes": costs.held_bytes(part, cost, config.train.batch_size),
                "images_a_second": costs.measure(part, cost, config.train, device, notes),
            }
            print(file.stem, part.name, measured[part.name])
        recipes[file.stem] = {"batch_size": config.train.batch_size, "parts": measured, "notes": notes}
    record("costs", {"recipes": recipes}, output, small)


if __name__ == "__main__":
    auto_cli(main)
