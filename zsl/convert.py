"""`python -m zsl convert --from DIR --out FILE`: an original folder, .mat and .pkl, -> one .npz without pickles."""

from pathlib import Path

from tinyldm.errors import UserError
from zsl import data, originals
from zsl.config import Convert


def run(config: Convert) -> str:
    """Convert, and say what is in the file."""
    folder = Path(config.source).expanduser()
    if not folder.is_dir() or not originals.is_original(folder):
        raise UserError(f"{folder} is no original folder: there is neither res101.mat nor train_test_split_*.mat in it")
    found = originals.load(folder, config.split).check()
    data.save_npz(found, Path(config.out))
    count, size = found.features.shape
    return (
        f"{config.out}: {found.name}, {count:,} images of {size} {'SIMULATED ' if found.simulated else ''}features, "
        f"{len(found.seen)} seen and {len(found.unseen)} unseen classes, texts of {found.texts.shape[1]:,} numbers"
    )
