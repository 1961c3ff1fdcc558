"""Load the data set that `data.path` names, in any of the supported layouts."""

from pathlib import Path

from tinyldm.errors import UserError
from zsl import originals, text
from zsl.data import Dataset, load_npz, with_texts


def load(path: str, split: str = "easy", texts: str | None = None) -> Dataset:
    """Load and check a data set.

    Args:
        path: a .npz, a folder with features.npz and texts, or an original folder.
        split: easy or hard, for CUB2011/ and NABird/.
        texts: a file with class texts that replace those at `path`.

    Raises:
        UserError: if the layout is unknown or the content is not consistent.
    """
    place = Path(path).expanduser()
    text_file = Path(texts).expanduser() if texts else None
    if not place.exists():
        raise UserError(f"data.path {path} does not exist")
    if place.is_file():
        data = load_npz(place, text.read(text_file) if text_file else None)
    elif originals.is_original(place):
        data = originals.load(place, split)
        if text_file:
            data = with_texts(data, text.read(text_file))
    elif (place / "features.npz").is_file():
        candidates = [place / name for name in ("texts.npz", "articles.jsonl") if (place / name).is_file()]
        text_file = text_file or (candidates[0] if candidates else None)
        data = load_npz(place / "features.npz", text.read(text_file) if text_file else None)
        data.name = place.name
    else:
        raise UserError(f"{path} holds no data set: it has no features.npz, res101.mat or train_test_split_*.mat")
    return data.check()
