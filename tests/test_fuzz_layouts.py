"""Random folders of pictures, read by the program and by a slow plain reader that knows nothing of it."""

import csv
import io
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzz import bounded
from tests.support.sources import config, folder, in_order, picture
from tinyldm.data.sources import open_part, open_sources
from tinyldm.errors import UserError

SPLITS = {
    "train": "train",
    "Training": "train",
    "test_set": "test",
    "TEST": "test",
    "val": "validation",
    "dev-images": "validation",
}
OTHERS = ("bus", "car", "7", "10", "train_station", "x y", "[a]", "émigré")
ENDINGS = (".png", ".PNG", ".jpeg", ".webp")  # the content is a PNG: Pillow looks at it, not at the name
JUNK = (".txt", ".heic", ".pdf", "", ".mp4")

name = st.sampled_from([*SPLITS, *OTHERS])
place = st.lists(name, max_size=2)
pictures = st.lists(st.tuples(place, st.sampled_from(ENDINGS), st.booleans()), min_size=1, max_size=12)  # whether it is hidden
junk = st.lists(st.tuples(place, st.sampled_from(JUNK)), max_size=4)
layouts = st.fixed_dictionaries(
    {
        "pictures": pictures,
        "junk": junk,
        "listed": st.none() | st.lists(st.integers(0, 14), min_size=1, max_size=20),  # rows of metadata.csv at the root
        "link": st.booleans(),  # a class folder that is a link to a folder elsewhere
    }
)


def write(root: Path, drawn: dict) -> dict[str, int]:
    """Write a drawn layout. Returns the number of the picture in each file that is not hidden."""
    files: dict[str, bytes] = {}
    numbers: dict[str, int] = {}
    for number, (folders, ending, hidden) in enumerate(drawn["pictures"]):
        file = "/".join([*folders, f"{'.' if hidden else ''}p{number}{ending}"])
        files[file] = picture(number)
        if not hidden:
            numbers[file] = number
    for number, (folders, ending) in enumerate(drawn["junk"]):
        files["/".join([*folders, f"j{number}{ending}"])] = b"junk"
    folder(root / "data", files)
    if drawn["link"]:
        folder(root / "elsewhere", {"q.png": picture(100)})
        os.symlink(root / "elsewhere", root / "data/linked")
        numbers["linked/q.png"] = 100
    if drawn["listed"] is not None:
        rows = [
            (next((file for file, n in numbers.items() if n == number), f"gone{number}.png"),) for number in drawn["listed"]
        ]
        text = io.StringIO()
        csv.writer(text).writerows([("file_name",), *rows])
        (root / "data/metadata.csv").write_text(text.getvalue())
    return numbers


def plain(drawn: dict, numbers: dict[str, int]) -> tuple[dict[str, set[int]], dict[int, str]]:
    """Which pictures each split has, and the class folder of each picture, by the rules in the README."""
    parts = {number: file.split("/")[:-1] for file, number in numbers.items()}
    level = None
    for depth in (0, 1):
        names = {folders[depth] for folders in parts.values() if len(folders) > depth}
        everyone = all(len(folders) > depth for folders in parts.values())
        several = len({SPLITS.get(name) for name in names}) > 1
        if names and names <= set(SPLITS) and (everyone or depth == 0 or several):
            level = depth
            break
    splits: dict[str, set[int]] = {}
    split_names = [folders[level] for folders in parts.values() if level is not None and len(folders) > level]
    train_folder = any(SPLITS[name] == "train" for name in split_names)
    classes = {}
    for number, folders in parts.items():
        if level is None:
            split = "train"
        elif len(folders) > level:
            split = SPLITS[folders[level]]
        else:
            split = "nowhere" if train_folder else "train"
        splits.setdefault(split, set()).add(number)
        rest = [part for i, part in enumerate(folders) if i != level]
        classes[number] = rest
    splits.pop("nowhere", None)
    if drawn["listed"] is not None:
        splits = {split: members & set(drawn["listed"]) for split, members in splits.items()}
    depth = next((d for d in (0, 1) if len({rest[d] for rest in classes.values() if len(rest) > d}) > 1), None)
    named = {number: rest[depth] for number, rest in classes.items() if depth is not None and len(rest) > depth}
    return {split: members for split, members in splits.items() if members}, named


@bounded(100)
@given(layouts)
def test_random_folders_are_read_as_by_a_plain_reader(drawn):
    root = Path(tempfile.mkdtemp())
    try:
        numbers = write(root, drawn)
        splits, classes = plain(drawn, numbers)
        for split in ("train", "validation", "test"):
            try:
                source = open_part(config(root / "data"), split)[0]
            except UserError as error:
                assert split not in splits and "\n" not in str(error)
                continue
            assert sorted(in_order(source)) == sorted(splits[split])
            if classes and "label" in source.dataset.features:
                feature = source.dataset.features["label"]
                for row in source.dataset:
                    number = int(Path(row["image"]["path"]).stem.strip("pq") or 100)
                    label = row["label"]
                    assert (None if label is None else feature.names[label]) == classes.get(number)
        if "train" in splits:
            found = open_sources(config(root / "data"), 0)[0].description.to_json()
            junk = Counter(ending or "no ending" for _, ending in drawn["junk"])
            assert found["read"] == len(splits["train"]) and found["found"] == len(numbers) + junk[".heic"]
            for ending in (".pdf", ".mp4", "no ending"):
                assert found["ignored"].get(ending, 0) == junk[ending]
    finally:
        shutil.rmtree(root)
