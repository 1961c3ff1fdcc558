"""Train a diffusion model on pixels:

accelerate launch train_ddpm.py --config configs/toyfaces32-ddpm.yaml
accelerate launch train_ddpm.py --config configs/cifar10-ddpm.yaml
"""

from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainDDPM
from tinyldm.errors import one_line_errors


def main() -> None:
    """Read the config and train."""
    config = parse(TrainDDPM, __doc__)

    from tinyldm.diffusion.pixel_task import PixelTask  # after parsing, so that --help does not import torch
    from tinyldm.training.trainer import run_training

    run_training(config, PixelTask)


if __name__ == "__main__":
    with one_line_errors():
        main()
