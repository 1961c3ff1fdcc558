"""A folder of pictures as a table: one row per picture, with its class, its metadata and its caption. Nothing is decoded."""

import csv
import glob
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow.parquet

from tinyldm.data.layout import CAPTIONS, METADATA, OTHER_PICTURES, READABLE, ending, layout, natural
from tinyldm.errors import UserError

CAPTION_BYTES = 2**20  # a longer text beside a picture is no caption
HEIC = " (pip install pillow-heif)"


def select(root: Path, files: list[str], data_files: Any) -> dict[str, str]:
    """The files that `data.data_files` names, with the split each pattern gives: `train` unless it is a dict of splits.

    Raises:
        UserError: for a pattern that matches nothing.
    """
    by_split = data_files if isinstance(data_files, dict) else {"train": data_files}
    chosen: dict[str, str] = {}
    for split, patterns in by_split.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            place = Path(pattern).expanduser()
            relative = os.path.relpath(place, root) if place.is_absolute() else pattern
            matches = set(glob.glob(relative, root_dir=root, recursive=True))
            matched = [file for file in files if file in matches]
            if not matched:
                raise UserError(f"data.data_files {pattern!r} matches no file in {root}; patterns are relative to data.name")
            chosen |= dict.fromkeys(matched, str(split))
    return chosen


def read_pictures(
    root: Path, files: list[str], chosen: dict[str, str] | None, duplicates: bool
) -> tuple[dict[str, datasets.Dataset], int, dict[str, list[str]], list[str]]:
    """The pictures of a folder by split.

    Args:
        files: relative paths of all its files, in natural order.
        chosen: file -> split, from `select`; None: splits come from the folders' names.
        duplicates: keep a picture as often as the metadata list it.

    Returns:
        Datasets with the columns image, perhaps label and caption, and those of metadata files; the number of pictures found;
        the files that are ignored, by reason; notes for the user.

    Raises:
        UserError: for a metadata file that cannot be read or names no files.
    """
    pictures = [file for file in files if ending(file) in READABLE and (chosen is None or file in chosen)]
    ignored: dict[str, list[str]] = {}
    stems = {file.removesuffix(PurePosixPath(file).suffix) for file in pictures}
    captions = {file for file in files if ending(file) in CAPTIONS and file.removesuffix(PurePosixPath(file).suffix) in stems}
    tables = [file for file in files if PurePosixPath(file).name in METADATA]
    understood = {*pictures, *captions, *tables}
    others = [] if chosen is not None else [file for file in files if file not in understood]
    unread = [file for file in others if ending(file) in OTHER_PICTURES]
    for file in others:
        kind = ending(file) or "no ending"
        ignored.setdefault(kind + (HEIC if kind in (".heic", ".heif") else ""), []).append(file)
    where = layout(pictures)
    if chosen is not None:
        where.splits, where.left_out, where.notes = {file: chosen[file] for file in pictures}, {}, []
    ignored |= where.left_out
    rows, unlisted = _metadata(root, [f for f in pictures if f in where.splits], tables, duplicates)
    for reason, names in unlisted.items():
        ignored.setdefault(reason, []).extend(names)
    classes = sorted(set(where.classes.values()), key=natural)
    numbers = {name: number for number, name in enumerate(classes)}
    splits: dict[str, dict[str, list[Any]]] = {}
    keys = list(dict.fromkeys(key for _, values in rows for key in values))
    for file, values in rows:
        table = splits.setdefault(where.splits[file], {})
        cells = {"image": str(root / file), **{key: values.get(key) for key in keys}}
        if classes and "label" not in keys:
            cells["label"] = numbers.get(where.classes.get(file, ""))
        if captions and "caption" not in keys:
            cells["caption"] = _caption(root, file, captions)
        for key, value in cells.items():
            table.setdefault(key, []).append(value)
    made = {split: _dataset(table, classes if "label" not in keys else []) for split, table in splits.items()}
    return made, len(pictures) + len(unread), ignored, where.notes


def _dataset(table: dict[str, list[Any]], classes: list[str]) -> datasets.Dataset:
    typed: dict[str, Any] = {"image": datasets.Image(decode=False)}
    typed |= {"label": datasets.ClassLabel(names=classes)} if classes else {}
    made = datasets.Dataset.from_dict({key: table[key] for key in typed}, features=datasets.Features(typed))
    others = {key: cells for key, cells in table.items() if key not in typed}
    return datasets.concatenate_datasets([made, datasets.Dataset.from_dict(others)], axis=1) if others else made


def _caption(root: Path, file: str, captions: set[str]) -> str | None:
    """The text beside a picture, or None."""
    stem = file.removesuffix(PurePosixPath(file).suffix)
    for kind in CAPTIONS:
        if stem + kind in captions and (root / (stem + kind)).stat().st_size <= CAPTION_BYTES:
            return (root / (stem + kind)).read_text(encoding="utf-8", errors="replace").strip()
    return None


# ------------------------------------------------------------------------------------------------------------------ metadata


def _metadata(
    root: Path, pictures: list[str], tables: list[str], duplicates: bool
) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, list[str]]]:
    """A row for each picture to read, in their order, with the cells of the metadata file above it; and what is left out."""
    governed = {table: [f for f in pictures if _above(table, f)] for table in tables}
    if not any(governed.values()):
        return [(file, {}) for file in pictures], {}
    cells: dict[str, list[dict[str, Any]]] = {}
    ignored: dict[str, list[str]] = {}
    for table, below in governed.items():
        base, there = PurePosixPath(table).parent, set(below)
        for row in read_metadata(root / table):
            name = str(row.pop("file_name")).replace("\\", "/")
            file = os.path.normpath(base / name).replace(os.sep, "/")
            if file not in there:
                ignored.setdefault(f"listed in {table}, but not there", []).append(file)
            elif duplicates or file not in cells:
                cells.setdefault(file, []).append(row)
            else:
                ignored.setdefault(f"listed in {table} more than once", []).append(file)
        ignored.setdefault(f"not listed in {table}", []).extend(f for f in below if f not in cells)
    under = {file for below in governed.values() for file in below}
    rows = [(file, row) for file in pictures for row in cells.get(file, [] if file in under else [{}])]
    return rows, {reason: names for reason, names in ignored.items() if names}


def _above(table: str, file: str) -> bool:
    folder = PurePosixPath(table).parent
    return folder == PurePosixPath(".") or folder in PurePosixPath(file).parents


def read_metadata(file: Path) -> list[dict[str, Any]]:
    """The rows of a metadata file. Each has `file_name`, relative to the file's folder.

    Raises:
        UserError: if it cannot be read, or a row has no `file_name`.
    """
    try:
        if file.suffix == ".parquet":
            rows = pyarrow.parquet.read_table(file).to_pylist()
        elif file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8-sig") as opened:
                header = opened.readline()
                opened.seek(0)
                separator = max(",;\t", key=header.count)  # spreadsheets write the one of their language
                rows = [
                    {key: _number(cell) for key, cell in row.items()} for row in csv.DictReader(opened, delimiter=separator)
                ]
        else:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if any(not isinstance(row, dict) or not row.get("file_name") for row in rows):
            raise ValueError("a row has no file_name, the picture's path relative to this file")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as metadata ({error}); fix it, or move it away") from error
    return rows


def _number(cell: str | None) -> Any:
    """A CSV cell as int or float where it is one; an empty cell is None."""
    for kind in (int, float):
        try:
            return kind(cell) if cell else None
        except (TypeError, ValueError):
            continue
    return cell
