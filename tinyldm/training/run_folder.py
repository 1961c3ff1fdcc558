"""A run folder: config.yaml, metrics.csv, pictures, checkpoints/, ema/, the model, its report; one run at a time."""

import contextlib
import csv
import io
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyldm.config import parsing
from tinyldm.config.paths import refuse_inputs_inside, refuse_output_inside
from tinyldm.errors import UserError
from tinyldm.files import refuse_links, remove_leftovers, replace_folder, replace_text
from tinyldm.manifest import LOCK, NAME, Manifest, named
from tinyldm.training import checkpoint, power_ema

Row = dict[str, Any]
FOLDERS = ("checkpoints", "ema", "samples", "logs", "pipeline", "vqvae", "classifier", "model", "jobs")


class RunFolder:
    """The folder of one run, locked against a second one. Nothing in it changes before `start`.

    Attributes:
        manifest: what the run wrote.
        rows: the rows of metrics.csv.

    Raises:
        UserError: when it holds anything that a run did not write; when it holds a run and neither `resume` nor `overwrite` is
            given; when the config reads what would be deleted; when it cannot be written; or when another program trains in it.
    """

    def __init__(self, config: Any):
        self.config, self.path = config, Path(config.output_dir)
        self.manifest = Manifest(self.path)
        self.rows: list[Row] = []
        self._columns: list[str] = []
        self._last_row = 0  # where the last row begins in metrics.csv
        values = parsing.to_dict(config)
        refuse_output_inside(self.path, values["data"].get("name"), values["data"].get("data_files"))
        if config.overwrite:
            refuse_inputs_inside(values, self.path)
        if config.resume not in (None, "latest"):
            checkpoint.named(self.path, config.resume)
        self._new = [path for path in (self.path / LOCK, self.path) if not path.exists()]  # removed if the run does not start
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.path / LOCK)
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another program trains in {self.path}; choose another output_dir") from None
        except OSError as error:
            raise UserError(f"output_dir {self.path} cannot be written ({error.strerror}); choose another") from error
        try:
            self._check()
        except BaseException:
            self.release()
            raise
        remove_leftovers(self.path, {*self.manifest.names(), NAME})
        self._identity = self._inode()

    def _check(self) -> None:
        self.manifest.recover()
        foreign, ours, is_run = self.manifest.foreign(), self.manifest.files(), self._is_run()
        # A run that failed before its first step leaves only config.yaml and logs; such a folder may be reused.
        begun = any(file.relative_to(self.path).parts[0] not in ("config.yaml", "logs", NAME) for file in ours)
        if self.config.resume:
            if (foreign or begun) and not is_run:
                raise UserError(f"{self.path} holds no run to resume; choose another output_dir")
            refuse_links(*(self.path / name for name in FOLDERS))
        elif (begun or (foreign and is_run)) and not self.config.overwrite:
            raise UserError(
                f"{self.path} holds a run already: resume it with --resume latest, replace it with --overwrite true, "
                "or choose another output_dir"
            )
        elif foreign:
            whose = "not written by its run" if is_run else "and is not a run folder"
            raise UserError(
                f"{self.path} holds {named(foreign, self.path)}, {whose}: nothing in it is deleted; "
                "choose another output_dir, or move these files away"
            )

    def release(self) -> None:
        """Unlock the folder. A run that has not started leaves it as it was."""
        for path in self._new:
            with contextlib.suppress(OSError):
                path.rmdir() if path == self.path else path.unlink()
        self.lock.release()

    def start(self) -> None:
        """Begin the run, in place of an old one. Call it when everything that the run reads is open."""
        self._new = []
        if not self.config.resume:  # a resumed run keeps its config until its checkpoint is known to fit: see rewind
            with self.manifest.replaced():
                self._write_config()

    def check(self) -> None:
        """Raise UserError if the folder was deleted or replaced since the run began, or a part of it is a symbolic link."""
        if self._inode() != self._identity:
            raise UserError(f"{self.path} was deleted or replaced while the run was training in it: start again")
        refuse_links(*(self.path / name for name in FOLDERS))

    def replace_model(self, aside: Path) -> None:
        """Move exported folders from `aside` to their places, with the files that a user put into the old ones."""
        self.manifest.own_all(self.path / file.relative_to(aside) for file in aside.rglob("*") if file.is_file())
        parts = [part.name for part in aside.iterdir()]
        for file in self.manifest.foreign():
            inside = file.relative_to(self.path)
            if inside.parts[0] in parts and file.is_file() and not file.is_symlink():
                (aside / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, aside / inside)
        for part in parts:
            replace_folder(aside / part, self.path / part)
        aside.rmdir()

    def _inode(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            return (found := self.path.stat()).st_dev, found.st_ino
        return None

    def _write_config(self) -> None:
        self.manifest.own_all([self.path / "config.yaml", self.metrics_file])
        replace_text(self.path / "config.yaml", parsing.to_yaml(self.config))

    def _is_run(self) -> bool:
        try:
            return {"output_dir", "data", "train"} <= parsing.read_yaml(self.path / "config.yaml").keys()
        except UserError:
            return False

    # ---------------------------------------------------------------------------------------------------- metrics.csv

    @property
    def metrics_file(self) -> Path:
        """metrics.csv: a row for each logged step, columns in the order of their first appearance."""
        return self.path / "metrics.csv"

    def log(self, **values: Any) -> None:
        """Add a row, or add to the row of the same step.

        Rows are appended, whatever their number; a new column rewrites the file."""
        merged = bool(self.rows) and self.rows[-1]["step"] == values["step"]
        if merged:
            self.rows[-1].update(values)
        else:
            self.rows.append(values)
        columns, self._columns = self._columns, []  # after an error the next row writes the file anew
        if set(values) <= set(columns) and self.metrics_file.exists():
            line = table([self.rows[-1]], columns, header=False).encode()
            with self.metrics_file.open("r+b") as file:
                self._last_row = file.seek(self._last_row) if merged else file.seek(0, io.SEEK_END)
                file.write(line)
                file.truncate()
        else:
            columns = _columns_of(self.rows)
            *before, last = self.rows
            text = table(before, columns)
            replace_text(self.metrics_file, text + table([last], columns, header=False))
            self._last_row = len(text.encode())
        self._columns = columns

    def rewind(self, step: int) -> None:
        """Continue the run at `step`: what is later in metrics.csv, ema/ and samples/ is dropped, and will be written again."""
        self._write_config()
        power_ema.forget_after(self.path, step)
        for picture in (self.path / "samples").glob("step-*.png"):
            number = picture.stem.removeprefix("step-")
            if number.isdigit() and int(number) > step:
                picture.unlink()
        self.rows = [row for row in read_metrics(self.metrics_file) if row["step"] <= step]
        self._columns = []  # so that the next row writes the file anew


def table(rows: list[Row], columns: list[str], header: bool = True) -> str:
    """Rows as CSV; a missing value is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_metrics(file: Path, rows: list[Row]) -> None:
    """Replace a metrics.csv by these rows."""
    replace_text(file, table(rows, _columns_of(rows)))


def _columns_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def read_metrics(file: Path) -> list[Row]:
    """The rows of a metrics.csv, numbers as int or float, empty cells left out.

    A last line without its end is what a killed run leaves: it is skipped.

    Raises:
        UserError: when the file is not such a table.
    """

    def number(text: str) -> int | float:
        try:
            return int(text)
        except ValueError:
            return float(text)

    if not file.exists():
        return []
    try:
        text = file.read_bytes().decode()
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        rows = [{key: number(cell) for key, cell in row.items() if cell} for row in reader]
        if any("step" not in row for row in rows):
            raise ValueError("a row without a step")
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{file} is not a table of numbers ({error}); fix it or move it away") from error
    return rows
