"""Train a latent diffusion model over a first stage:

accelerate launch train_ldm.py --config configs/demo.yaml
accelerate launch train_ldm.py --config configs/celebahq256.yaml --data.name path/or/hub-id --output_dir runs/mine
"""

from tinyldm.config import TrainLDM
from tinyldm.errors import one_line_errors
from tinyldm.parsing import parse


def main() -> None:
    """Read the config and train."""
    config = parse(TrainLDM, __doc__)

    from tinyldm.latent_task import LatentTask  # after parsing, so that --help need not wait for torch
    from tinyldm.trainer import run_training

    run_training(config, LatentTask)


if __name__ == "__main__":
    with one_line_errors():
        main()
