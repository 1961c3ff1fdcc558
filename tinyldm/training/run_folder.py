"""A run folder: config.yaml, metrics.csv, loss.png, samples/, checkpoints/, the model and README.md; one run at a time."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyldm.config import parsing
from tinyldm.errors import UserError
from tinyldm.files import replace_text


class RunFolder:
    """The folder of one run, locked against a second one.

    Raises:
        UserError: when it is not empty and neither `resume` nor `overwrite` is given, when it cannot be written, or when
            another process trains in it.
    """

    def __init__(self, config: Any):
        self.path = Path(config.output_dir)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.path / ".lock")
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another process trains in {self.path}; choose another output_dir") from None
        except OSError as error:
            raise UserError(f"output_dir {self.path} cannot be written ({error.strerror}); choose another") from error
        entries = [entry for entry in self.path.iterdir() if entry.name != ".lock"]
        # What a run leaves that failed before its first step does not make a folder used.
        used = any(
            entry.name not in ("config.yaml", "logs") and (not entry.is_dir() or any(entry.iterdir())) for entry in entries
        )
        if used and config.overwrite:
            if not self._is_run():
                raise UserError(f"{self.path} is not a run folder, so --overwrite does not delete it; choose another")
            for entry in entries:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        elif used and not config.resume:
            raise UserError(f"{self.path} is in use already; continue with --resume latest, or --overwrite true")
        elif used and not self._is_run():
            raise UserError(f"{self.path} holds no run to resume; choose another output_dir")
        (self.path / "samples").mkdir(exist_ok=True)
        self.config, self.rows = config, []
        if not config.resume:
            self._write_config()  # a resumed run keeps the old one until its checkpoint has been found to fit: rewind()

    def _write_config(self) -> None:
        replace_text(self.path / "config.yaml", parsing.to_yaml(self.config))

    def _is_run(self) -> bool:
        try:
            return {"output_dir", "data", "train"} <= parsing.read_yaml(self.path / "config.yaml").keys()
        except UserError:
            return False

    # -- metrics.csv: one row a step, columns in the order of their first appearance, written anew and renamed each time

    @property
    def metrics_file(self) -> Path:
        """metrics.csv"""
        return self.path / "metrics.csv"

    def log(self, **values: Any) -> None:
        """Add a row, or add to the row of the same step."""
        if self.rows and self.rows[-1]["step"] == values["step"]:
            self.rows[-1].update(values)
        else:
            self.rows.append(values)
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(dict.fromkeys(key for row in self.rows for key in row)))
        writer.writeheader()
        writer.writerows(self.rows)
        replace_text(self.metrics_file, table.getvalue())

    def rewind(self, step: int) -> None:
        """Take up the run at `step`: the rows after it are forgotten, since they will be written again."""
        self._write_config()
        self.rows = [row for row in read_metrics(self.metrics_file) if row["step"] <= step]


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv, numbers as int or float, empty cells left away.

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
        with file.open(newline="") as opened:
            rows = [{key: number(text) for key, text in row.items() if text} for row in csv.DictReader(opened)]
        if any("step" not in row for row in rows):
            raise ValueError("a row without a step")
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{file} is not a table of numbers any more ({error}); mend it or move it away") from error
    return rows
