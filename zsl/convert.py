"""`python -m zsl convert --from DIR --out FILE`: convert an original folder (.mat and .pkl) to one .npz without pickles."""

from pathlib import Path

from tinyldm.errors import UserError
from tinyldm.files import refuse_existing
from zsl import data, originals
from zsl.config import Convert


def run(config: Convert) -> str:
    """Convert the folder and describe the file."""
    folder = Path(config.source).expanduser()
    if not folder.is_dir() or not originals.is_original(folder):
        raise UserError(f"{folder} is not an original folder: it has no res101.mat and no train_test_split_*.mat")
    refuse_existing(Path(config.out), config.overwrite, folder)
    dataset = originals.load(folder, config.split).check()
    data.save_npz(dataset, Path(config.out))
    count, size = dataset.features.shape
    assert dataset.texts is not None  # original folders hold vectors, not articles
    return (
        f"{config.out}: {dataset.name}, {count:,} images with {size} {'SIMULATED ' if dataset.simulated else ''}features, "
        f"{len(dataset.seen)} seen and {len(dataset.unseen)} unseen classes, text vectors of size {dataset.texts.shape[1]:,}"
    )
