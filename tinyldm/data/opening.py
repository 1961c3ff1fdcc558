"""Opens one split of a data set of any kind: a folder or an archive of pictures, tables, a Hub data set, the built-in ones.

Add new kinds of data sets here.
"""

import contextlib
import glob
import os
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.ipc
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image

from tinyldm.config.paths import strings
from tinyldm.config.schema import DataConfig
from tinyldm.data import toyfaces
from tinyldm.data.folders import read_pictures, select
from tinyldm.data.layout import READABLE, TABLES, TARS, canonical, ending, layout_of_tables, walk
from tinyldm.errors import UserError, boundary
from tinyldm.files import digest
from tinyldm.limits import check_expansion, load_yaml, read_text
from tinyldm.remote import from_hub

BUILT_IN = ("toyfaces", "digits")
BUILDERS = ("parquet", "arrow", "csv", "json", "webdataset", "imagefolder", "text")  # of `datasets`, named with data_files
MAX_MEMBER = 2**30  # bytes of one file in an archive; a larger one is no picture


@dataclass
class Opened:
    """One split of a data set, undecoded.

    Attributes:
        dataset: a Dataset (random access) or an IterableDataset (streamed).
        kind: what it is, in words.
        roots: where the paths in its cells may lie; None where the program itself listed the files.
        found: pictures in all splits, unread ones included, if that is known.
        listed: pictures in all splits that can be read, if that is known.
        ignored: reason -> files that are not read.
        notes: for the user, about names that may be misread.
        length: of a stream by the data set's metadata, or None.
        exact: whether `length` is certain.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    kind: str
    roots: list[str] | None
    found: int | None = None
    listed: int | None = None
    ignored: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    length: int | None = None
    exact: bool = False


def open_split(data: DataConfig, split: str) -> Opened:
    """Open a split. An existing file or folder goes before a built-in data set and a Hub id of the same name.

    Raises:
        UserError: if there is no such data set or split, with the ones there are.
        Exception: whatever `datasets` raises for files that it cannot read.
    """
    local = Path(data.name).expanduser()
    if local.exists():
        opened = _open_local(data, local, split)
        if data.name in BUILT_IN:
            opened.notes.append(f"{local.resolve()} is read, not the built-in data set {data.name}")
        return opened
    if data.name == "toyfaces":
        return _toyfaces(data, split)
    if data.name == "digits":
        return _digits(split, data.streaming)
    if data.name.startswith((".", "/", "~")) or Path(data.name).suffix.lower() in (*TABLES, ".zip"):
        raise UserError(f"data set {data.name} does not exist; data.name takes a Hub id, a folder, or an archive or table file")
    if data.name == "arrow":
        for file in {
            name for _, pattern in strings(data.data_files) for name in glob.glob(os.path.expanduser(pattern), recursive=True)
        }:
            check_arrow(Path(file))
    with contextlib.nullcontext() if data.name in BUILDERS else from_hub(data.name):
        dataset = datasets.load_dataset(
            data.name, data_files=data.data_files, revision=data.revision, split=split, streaming=data.streaming
        )
    kind = f"{data.name} files" if data.name in BUILDERS else "Hub data set"
    return Opened(dataset, kind, _remote_roots(data), length=_listed(dataset, split))


def _listed(dataset: Any, split: str) -> int | None:
    listed = (dataset.info.splits or {}).get(split)
    return listed.num_examples if listed else None


def _remote_roots(data: DataConfig) -> list[str]:
    """Where the cells of a Hub data set may point: into the data set itself, and into the caches that hold its files."""
    patterns = [text for _, text in strings(data.data_files)]
    own = [pattern.rsplit("/", 1)[0] if "://" in pattern else str(_fixed_part(pattern)) for pattern in patterns]
    caches = [str(datasets.config.HF_DATASETS_CACHE), str(datasets.config.HF_CACHE_HOME), HF_HUB_CACHE]
    return [*own, f"hf://datasets/{data.name}", *caches]


def _fixed_part(pattern: str) -> Path:
    """The folder above the first wildcard of a pattern."""
    parts = Path(pattern).expanduser().parts[:-1]
    magic = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:magic]).resolve()


# ------------------------------------------------------------------------------------------------------------------ built in


def _toyfaces(data: DataConfig, split: str) -> Opened:
    if not data.streaming:
        raise UserError("toyfaces is drawn while streaming: set data.streaming to true")
    if split not in toyfaces.SPLITS:
        raise UserError(_no_split(data.name, split, list(toyfaces.SPLITS)))
    length = toyfaces.SPLITS[split][1]  # counting them would draw them
    return Opened(toyfaces.load(split, data.resolution), "drawn on the fly", [], length=length, exact=True)


def _digits(split: str, streaming: bool) -> Opened:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,500 for training, the rest for validation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    parts = {"train": slice(0, 1500), "validation": slice(1500, None)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    tables = {}
    for name, rows in parts.items():
        examples = {"image": [Image.fromarray(image) for image in pixels[rows]], "label": digits.target[rows].tolist()}
        tables[name] = datasets.Dataset.from_dict(examples, features=features)
    dataset = choose_split(tables, split, "digits")
    stream = dataset.to_iterable_dataset() if streaming else dataset
    return Opened(stream, "scikit-learn's digits", [], len(pixels), len(pixels), length=len(dataset))


# --------------------------------------------------------------------------------------------------------------------- local


def choose_split(tables: dict[str, datasets.Dataset], split: str, name: str) -> datasets.Dataset:
    """The rows that a split's name asks for, in the syntax of `datasets`: `train`, `train[:80%]`, `train+test`.

    Raises:
        UserError: for an unknown split, with the ones there are.
    """
    wanted = _in_their_spelling(split, tables)
    try:
        rows = datasets.ReadInstruction.from_spec(wanted).to_absolute({key: len(table) for key, table in tables.items()})
    except (ValueError, AssertionError, KeyError) as error:
        raise UserError(_no_split(name, split, list(tables))) from error
    parts = [tables[part.splitname].select(range(part.from_, part.to)) for part in rows]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _in_their_spelling(split: str, there: Iterable[str]) -> str:
    """`Training[:80%]+dev` -> `train[:80%]+validation`, but for names that there are."""
    parts = (part.strip().partition("[") for part in split.split("+"))
    return "+".join((name if name in there else canonical(name)) + bracket + rest for name, bracket, rest in parts)


def _no_split(name: str, split: str, there: list[str]) -> str:
    return (
        f"data set {name!r} has no split {split!r}, it has {there}; set data.split and data.eval_split "
        "(null: hold out a fraction of data.split)"
    )


def _open_local(data: DataConfig, local: Path, split: str) -> Opened:
    if local.is_file():
        kind = ending(local.name)
        if kind == ".zip":
            return _open_folder(data, _extracted(data, [local]), split)
        if kind not in (*TABLES, *TARS):
            raise UserError(
                f"data.name {local} is a file that is not read; give a folder, a .zip, or a file of {', '.join(TABLES)}"
            )
        return _open_tables(data, local.parent, [local.name], {local.name: "train"}, {}, split)
    if any((local / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        for file in local.rglob("*.arrow"):
            check_arrow(file)
        saved = datasets.load_from_disk(str(local))
        tables = dict(saved) if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        return Opened(choose_split(tables, split, data.name), "saved data set", [str(local)])
    return _open_folder(data, local, split)


def _open_folder(data: DataConfig, root: Path, split: str) -> Opened:
    files, hidden = walk(root)
    chosen = select(root, files, data.data_files) if data.data_files else None
    candidates = files if chosen is None else list(chosen)
    pictures = [file for file in candidates if ending(file) in READABLE]
    tables = [file for file in candidates if ending(file) in (*TABLES, *TARS) and not (pictures and _belongs_to_pictures(file))]
    zips = [file for file in candidates if ending(file) == ".zip"]
    if chosen is None and not data.image_column and _configures(root):
        dataset = datasets.load_dataset(str(root), split=split, streaming=data.streaming)
        return Opened(dataset, "data set with a card", [str(root)], length=_listed(dataset, split))
    strong = [file for file in tables if ending(file) not in (".csv", ".json", ".jsonl")]
    if tables and (not pictures or data.image_column or len(strong) >= len(pictures)):
        ignored = {"pictures beside tables": pictures} if pictures and strong else {}
        return _open_tables(data, root, tables, chosen, ignored, split)
    if strong:
        raise UserError(
            f"{root} holds {len(pictures)} pictures and {len(strong)} tables ({strong[0]}, ...): set data.data_files to the "
            "ones to read, such as '**/*.png'"
        )
    if not pictures and zips:
        return _open_folder(data, _extracted(data, [root / file for file in zips]), split)
    made, found, ignored, notes = read_pictures(root, files, chosen, data.duplicates)
    if covered := [name for name in hidden if ending(name) in READABLE]:
        ignored["hidden"] = covered
    if not made:
        listed = "; ".join(f"{len(names)} {reason}" for reason, names in ignored.items())
        raise UserError(
            f"{root} holds no pictures{f' but {listed}' if listed else ''}: data.name takes a Hub id, or a folder with images, "
            "parquet files or tars"
        )
    table = choose_split(made, split, data.name)
    return Opened(table, "folder of pictures", None, found, sum(map(len, made.values())), ignored, notes)


def _belongs_to_pictures(file: str) -> bool:
    """Whether a table describes the pictures beside it: metadata, captions and annotations."""
    return Path(file).stem == "metadata" or ending(file) == ".json"


def _configures(root: Path) -> bool:
    """Whether a data set card says which files are which split."""
    try:
        header = re.match(r"---\n(.*?)\n---", read_text(root / "README.md"), re.DOTALL)
        return bool(header and "configs" in (load_yaml(header[1]) or {}))
    except Exception:  # no card, or one that is not YAML
        return False


def _open_tables(
    data: DataConfig, root: Path, files: list[str], chosen: dict[str, str] | None, ignored: dict[str, list[str]], split: str
) -> Opened:
    """Tables of one kind, by the reader that `datasets` has for it."""
    kinds = Counter(TABLES.get(ending(file), "webdataset") for file in files)
    if len(kinds) > 1:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise UserError(f"{root} holds tables of several kinds ({listed}): set data.data_files to the ones to read")
    where = layout_of_tables(files) if chosen is None else None
    splits = where.splits if where else {file: canonical(str(chosen[file])) for file in files}  # type: ignore[index]
    by_split: dict[str, list[str]] = {}
    for file, name in splits.items():
        by_split.setdefault(name, []).append(glob.escape(str((root / file).resolve())))
    builder = next(iter(kinds))
    wanted = _in_their_spelling(split, by_split)
    names = {part.partition("[")[0] for part in wanted.split("+")}
    if names - set(by_split):
        raise UserError(_no_split(data.name, split, list(by_split)))
    for file in (file for file, name in splits.items() if name in names):
        if check := {"webdataset": check_tar, "arrow": check_arrow}.get(builder):
            check(root / file)
    dataset = datasets.load_dataset(builder, data_files=by_split, split=wanted, streaming=data.streaming)
    if isinstance(dataset, datasets.IterableDataset) and builder == "parquet":
        dataset = dataset.reshard()  # Arrow reads ahead to the end of a shard: of a row group then, not of a whole file
    left = {**ignored, **(where.left_out if where else {})}
    return Opened(dataset, f"{builder} files", [str(root.resolve())], ignored=left, length=_listed(dataset, wanted))


# ------------------------------------------------------------------------------------------------------------------ archives


def check_arrow(file: Path) -> None:
    """Raise UserError for a damaged Arrow file. Reading one would end the interpreter: its offsets are not checked then."""
    with boundary(f"{file} is damaged"), pa.memory_map(str(file)) as opened:
        try:
            table = pa.ipc.open_stream(opened).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(opened).read_all()
        table.validate(full=True)


def check_tar(file: Path) -> None:
    """Raise UserError for a tar with a file in it that is too large to be a picture: it would fill the memory."""
    try:
        with tarfile.open(file, "r:*") as tar:
            for member in tar:
                if member.size > MAX_MEMBER:
                    raise UserError(f"{file} holds {member.name} of {member.size:,} bytes, too large for a picture: remove it")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"data set '{file}' cannot be read ({type(error).__name__}): it is damaged, or no tar") from error


def _extracted(data: DataConfig, archives: list[Path]) -> Path:
    """A folder in data.cache_dir with the pictures of zip archives. Extracts them only once.

    Raises:
        UserError: for an archive that is damaged, or whose content is too large.
    """
    stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in archives]
    folder = Path(data.cache_dir).expanduser() / "extracted" / digest(stamps)
    if folder.is_dir():
        return folder
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with boundary(f"{archives[0]} cannot be unpacked into {folder.parent}"):
            for file in archives:
                inside = aside / file.stem if len(archives) > 1 else aside
                with zipfile.ZipFile(file) as opened:
                    members = [member for member in opened.infolist() if not member.is_dir()]
                    check_expansion(sum(member.file_size for member in members), file.stat().st_size)
                    inside.mkdir(parents=True)
                    for member in members:
                        opened.extract(member, inside)  # zipfile removes `..` and leading slashes, and writes no links
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
