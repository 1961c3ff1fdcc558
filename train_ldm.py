"""Train a latent diffusion model over a first stage:

accelerate launch train_ldm.py --config configs/demo.yaml
accelerate launch train_ldm.py --config configs/celebahq256.yaml --data.name path/or/hub-id --output_dir runs/mine
"""

from tinyldm.config import TrainLDM, parse
from tinyldm.errors import one_line_errors


def main() -> None:
    """Read the config and train."""
    config = parse(TrainLDM, __doc__)

    from tinyldm.diffusion_task import DiffusionTask  # after parsing, so that --help need not wait for torch
    from tinyldm.trainer import run_training

    run_training(config, DiffusionTask)


if __name__ == "__main__":
    with one_line_errors():
        main()
