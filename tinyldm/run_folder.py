"""A run folder: config.yaml, metrics.csv, loss.png, samples/, checkpoints/, the model and README.md; one run at a time."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyldm import config as configs
from tinyldm.errors import UserError


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
            if not {"output_dir", "data", "train"} <= self._previous_config().keys():
                raise UserError(f"{self.path} is not a run folder, so --overwrite does not delete it; choose another")
            for entry in entries:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        elif used and not config.resume:
            raise UserError(f"{self.path} is in use already; continue with --resume latest, or --overwrite true")
        elif not used and config.resume:
            raise UserError(f"{self.path} holds no run to resume; leave --resume away")
        (self.path / "samples").mkdir(exist_ok=True)
        self.config, self.rows = config, []
        if not config.resume:
            self._write_config()  # a resumed run keeps the old one until its checkpoint has been found to fit: rewind()

    def _write_config(self) -> None:
        (self.path / "config.yaml").write_text(configs.to_yaml(self.config))

    def _previous_config(self) -> dict[str, Any]:
        try:
            return configs.read_yaml(self.path / "config.yaml")
        except UserError:
            return {}

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
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        aside = self.path / ".metrics.csv"
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(aside, self.metrics_file)

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
