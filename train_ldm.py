"""Train a latent diffusion model on the latents of a first stage:

accelerate launch train_ldm.py --config configs/demo.yaml
accelerate launch train_ldm.py --config configs/celebahq256.yaml --data.name path/or/hub-id --output_dir runs/mine
"""

from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM
from tinyldm.errors import one_line_errors


def main() -> None:
    """Read the config and train."""
    config = parse(TrainLDM, __doc__)

    from tinyldm.diffusion.latent_task import LatentTask  # after parsing, so that --help does not import torch
    from tinyldm.training.trainer import run_training

    run_training(config, LatentTask)


if __name__ == "__main__":
    with one_line_errors():
        main()
