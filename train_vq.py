"""Train a first stage, a VQ autoencoder, on any images:

python train_vq.py --config configs/demo-vq.yaml
accelerate launch train_vq.py --config configs/faces64-vq.yaml --data.name path/or/hub-id --output_dir runs/my-vq
"""

from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainVQ
from tinyldm.errors import one_line_errors


def main() -> None:
    """Read the config and train."""
    config = parse(TrainVQ, __doc__)

    from tinyldm.first_stage.task import VQTask  # after parsing, so that --help does not import torch
    from tinyldm.training.trainer import run_training

    run_training(config, VQTask)


if __name__ == "__main__":
    with one_line_errors():
        main()
