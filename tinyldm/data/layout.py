"""What the files of a local data set are: pictures, tables, archives, metadata, captions; their splits and their classes.

Only names are looked at. folders.py makes a table of the pictures, sources.py opens tables.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from datasets.data_files import SPLIT_KEYWORDS
from PIL import Image

try:  # without it, .heic files are counted and named
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pass

READABLE = frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN) - {".pdf"}
# Pictures that Pillow cannot read: they count as found, and the reason names them.
OTHER_PICTURES = (
    frozenset({".heic", ".heif", ".avif", ".jxl", ".svg", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf"}) - READABLE
)
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json", ".tar": "webdataset"}
TARS = (".tar.gz", ".tgz")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTIONS = (".txt", ".json")  # beside a picture of the same name
KEYWORDS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
GENERIC = frozenset(  # words that a split's name may have beside `train`
    ("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "split")
)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that orders numbers in names by value: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def ending(name: str) -> str:
    """The lower-case ending of a file name, `.tar.gz` included."""
    lower = name.lower()
    return next((tar for tar in TARS if lower.endswith(tar)), PurePosixPath(lower).suffix)


def walk(root: Path) -> tuple[list[str], list[str]]:
    """All files below a folder, relative, in natural order; and the hidden ones.

    A folder that is a symbolic link is followed once, and never into a folder that is read anyway.
    """
    found: list[str] = []
    hidden: list[str] = []
    visited = {os.path.realpath(root)}
    inside = os.path.realpath(root) + os.sep
    for place, folders, files in os.walk(root, followlinks=True):
        below = os.path.relpath(place, root)
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(place, name))
            linked = os.path.islink(os.path.join(place, name))
            if name.startswith(".") or real in visited or (linked and real.startswith(inside)):
                continue
            visited.add(real)
            kept.append(name)
        folders[:] = kept
        for name in files:
            path = PurePosixPath(name if below == "." else f"{Path(below).as_posix()}/{name}").as_posix()
            (hidden if name.startswith(".") else found).append(path)
    return sorted(found, key=natural), sorted(hidden, key=natural)


# -------------------------------------------------------------------------------------------------------------------- splits


def split_of(names: Iterable[str]) -> dict[str, str] | None:
    """The split that each name means, in the spellings that `datasets` knows: {"training_set": "train", ...}.

    None unless all of them are names of splits: `bus, car, train` are classes. `faces_train, faces_test` are splits, since
    they share the rest of their name; `train_station, test_tube` do not.
    """
    splits: dict[str, str] = {}
    rests = set()
    for name in names:
        words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
        named = [word for word in words if word in KEYWORDS]
        if len(named) != 1:
            return None
        splits[name] = KEYWORDS[named[0]]
        rests.add(tuple(word for word in words if word not in KEYWORDS and word not in GENERIC))
    one_rest = len(rests) == 1 and (rests == {()} or len(set(splits.values())) > 1)
    return splits if splits and one_rest else None


def canonical(split: str) -> str:
    """`training` -> `train`, whatever its case; other names stay as they are."""
    return KEYWORDS.get(split.lower(), split)


@dataclass
class Layout:
    """The splits and classes that folder names give to files.

    Attributes:
        splits: file -> split.
        classes: file -> the name of its class folder, for files that lie in one.
        left_out: reason -> files of no split.
        notes: sentences for the user about names that look like splits and are not read as such.
    """

    splits: dict[str, str]
    classes: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def layout(files: list[str]) -> Layout:
    """Read splits and classes from the folders of these files (relative paths).

    A level of folders names splits only if all its folders do. Files that are in none of them are the training split, unless
    one of the folders is. Below the top, one such name alone beside other files is no split. The first other level with
    several folders names the classes.
    """
    parts = {file: PurePosixPath(file).parts[:-1] for file in files}
    result = Layout(dict.fromkeys(files, "train"))
    level = None
    for depth in range(max(map(len, parts.values()), default=0)):
        deep = {file: names[depth] for file, names in parts.items() if len(names) > depth}
        splits = split_of(dict.fromkeys(deep.values()))
        loose = [file for file in files if file not in deep]
        if splits and (not loose or depth == 0 or len(set(splits.values())) > 1):
            level = depth
            result.splits = {file: splits[name] for file, name in deep.items()}
            if "train" in splits.values():
                result.left_out = {"beside the folders of the splits": loose} if loose else {}
            else:
                result.splits |= dict.fromkeys(loose, "train")
            break
        looks = {name for name in deep.values() if split_of([name])}
        if looks and len(set(deep.values())) > 1:
            listed = ", ".join(sorted(looks, key=natural))
            result.notes.append(f"{listed} beside other folders is read as a class of pictures, not as a split")
    below = {file: names[:level] + names[level + 1 :] if level is not None else names for file, names in parts.items()}
    for depth in range(max(map(len, below.values()), default=0)):
        named = {file: names[depth] for file, names in below.items() if len(names) > depth}
        if len(set(named.values())) > 1 or depth + 1 == max(map(len, below.values())):
            result.classes = named
            break
    return result


def layout_of_tables(files: list[str]) -> Layout:
    """As `layout`, for tables: file names count too, as in `train-00000-of-00002.parquet` and `data/validation.csv`."""
    named: dict[str, str] = {}
    for file in files:
        sharded = re.fullmatch(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*", PurePosixPath(file).name)
        if sharded:
            named[file] = canonical(sharded[1])
            continue
        for part in (PurePosixPath(file).name.removesuffix(ending(file)), *reversed(PurePosixPath(file).parts[:-1])):
            words = [word for word in re.split(r"[^a-z]+", part.lower()) if word in KEYWORDS]
            if len(set(words)) == 1:
                named[file] = KEYWORDS[words[0]]
                break
    loose = [file for file in files if file not in named]
    if "train" in named.values():
        return Layout(named, left_out={"tables of no split beside those of splits": loose} if loose else {})
    return Layout({file: named.get(file, "train") for file in files})
