"""The entry scripts that take a config, with their schemas."""

from typing import Any

from tinyldm.config.evaluate import Evaluate
from tinyldm.config.schema import Sample, TrainClassifier, TrainDDPM, TrainLDM, TrainVQ

SCRIPTS: dict[str, type[Any]] = {
    "train_vq.py": TrainVQ,
    "train_ldm.py": TrainLDM,
    "train_ddpm.py": TrainDDPM,
    "train_classifier.py": TrainClassifier,
    "sample.py": Sample,
    "evaluate.py": Evaluate,
}
