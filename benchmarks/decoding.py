"""Peak memory while the full VQ-f4 decodes 16 images of 256 px: all at once (as in pipelines), and in parts (as
in sample.py).

python -m benchmarks.decoding                # 2 minutes on 2 CPU cores
python -m benchmarks.decoding --small true   # a small first stage, to check that it runs
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from benchmarks.latents import first_stage
from benchmarks.measure import RESULTS, in_new_process, megabytes, record, use_all_cores
from tinyldm.models import model as model_module
from tinyldm.models.model import Model, to_images


def decode(folder: str, images: int, side: int, at_once: int | None) -> float:
    """Peak MB that decoding added. Call it in a new operating-system process.

    Args:
        side: side length of the latents.
        at_once: value for diffusion.model.DECODED_AT_ONCE. None: the value of sample.py.
    """
    use_all_cores()
    stage = first_stage(Path(folder), small=side < 64)
    unused: Any = None  # decoding needs neither the network nor its process
    model = Model(denoiser=unused, process=unused, first_stage=stage.model)
    model_module.DECODED_AT_ONCE = at_once or model_module.DECODED_AT_ONCE
    latents = torch.randn(images, stage.channels, side, side)
    before = megabytes("VmHWM")
    to_images(model, latents)
    return megabytes("VmHWM") - before


def main(images: int = 16, small: bool = False, output: str = str(RESULTS)) -> None:
    """Run the benchmark.

    Args:
        images: images per measurement.
        small: a small first stage and small latents.
        output: folder for the JSON file.
    """
    side, results = 8 if small else 64, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, at_once in (("all at once", images * side**2), ("in parts", None)):
            results[name] = in_new_process(decode, folder, images, side, at_once)
            print(f"{name}: {results[name]:,.0f} MB more")
    record("decoding", {"images": images, "resolution": 4 * side, "megabytes": results}, output, small)


if __name__ == "__main__":
    auto_cli(main)
