"""Train a classifier of noisy latents or images, which guides a model without labels:

accelerate launch train_classifier.py --config configs/faces64-classifier.yaml
accelerate launch train_classifier.py --config configs/digits-classifier.yaml
python sample.py --model runs/faces64 --classifier runs/faces64-classifier --labels 'Smiling=true' --guidance_scale 3
"""

from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainClassifier
from tinyldm.errors import one_line_errors


def main() -> None:
    """Read the config and train."""
    config = parse(TrainClassifier, __doc__)

    from tinyldm.diffusion.classifier_task import ClassifierTask  # after parsing, so that --help does not import torch
    from tinyldm.training.trainer import run_training

    run_training(config, ClassifierTask)


if __name__ == "__main__":
    with one_line_errors():
        main()
