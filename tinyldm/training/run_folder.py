"""A run folder: config.yaml, metrics.csv, loss.png, samples/, checkpoints/, the model and README.md; one run at a time."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyldm.config import parsing
from tinyldm.errors import UserError
from tinyldm.files import remove_leftovers, replace_text

Row = dict[str, Any]
REPLACED = ("config.yaml", "metrics.csv", "README.md", "evaluation.json")  # files that replace_text writes here


class RunFolder:
    """The folder of one run, locked against a second one.

    Attributes:
        rows: the rows of metrics.csv.

    Raises:
        UserError: when it is not empty and neither `resume` nor `overwrite` is given, when it cannot be written, or when
            another program trains in it.
    """

    def __init__(self, config: Any):
        self.path = Path(config.output_dir)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.path / ".lock")
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another program trains in {self.path}; choose another output_dir") from None
        except OSError as error:
            raise UserError(f"output_dir {self.path} cannot be written ({error.strerror}); choose another") from error
        remove_leftovers(self.path, REPLACED)
        entries = [entry for entry in self.path.iterdir() if entry.name != ".lock"]
        # A run that failed before its first step leaves only config.yaml and logs; such a folder may be reused.
        used = any(
            entry.name not in ("config.yaml", "logs") and (not entry.is_dir() or any(entry.iterdir())) for entry in entries
        )
        if used and config.overwrite:
            if not self._is_run():
                raise UserError(f"{self.path} is not a run folder, so --overwrite does not delete it; choose another")
            for entry in entries:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        elif used and not config.resume:
            raise UserError(f"{self.path} is in use; continue with --resume latest, or replace it with --overwrite true")
        elif used and not self._is_run():
            raise UserError(f"{self.path} holds no run to resume; choose another output_dir")
        (self.path / "samples").mkdir(exist_ok=True)
        self.config = config
        self.rows: list[Row] = []
        self._columns: list[str] = []
        self._last_row = 0  # where the last row begins in metrics.csv
        if not config.resume:
            self._write_config()  # a resumed run keeps the old one until its checkpoint fits: see rewind

    def _write_config(self) -> None:
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
        if not set(values) <= set(self._columns) or not self.metrics_file.exists():
            self._columns = _columns_of(self.rows)
            *before, last = self.rows
            text = table(before, self._columns)
            replace_text(self.metrics_file, text + table([last], self._columns, header=False))
            self._last_row = len(text.encode())
            return
        line = table([self.rows[-1]], self._columns, header=False).encode()
        with self.metrics_file.open("r+b") as file:
            self._last_row = file.seek(self._last_row) if merged else file.seek(0, io.SEEK_END)
            file.write(line)
            file.truncate()

    def rewind(self, step: int) -> None:
        """Continue the run at `step`: later rows of metrics.csv are dropped, since they will be written again."""
        self._write_config()
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
