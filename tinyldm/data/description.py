"""What a run understood of its data: printed at the start, kept in data.json and checkpoints, compared on --resume."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tinyldm.data.batch import UNKNOWN
from tinyldm.errors import UserError

NAMED = 5  # names listed for each reason
LISTED = 12  # values listed of each label
RARE = 10  # training images of a value


@dataclass
class Value:
    """A value of a label: its number for the network, its name, and its training images (None: a stream does not know yet)."""

    number: int
    name: str
    count: int | None = None


@dataclass
class Label:
    """A column of labels: its values, and the number of training images without one of them."""

    values: list[Value]
    unknown: int | None = None

    @classmethod
    def of(cls, names: list[str]) -> "Label":
        """A label with these values, none of them counted yet."""
        return cls([Value(number, name) for number, name in enumerate(names)])

    def count(self, numbers: Counter) -> None:
        """Take over how many training images have each number."""
        for value in self.values:
            value.count = numbers[value.number]
        self.unknown = numbers[UNKNOWN]

    def line(self, name: str) -> str:
        """The line about this label, for the block that is printed before a training."""
        listed = [value.name + ("" if value.count is None else f" ({value.count:,})") for value in self.values[:LISTED]]
        more = f", ... {len(self.values) - LISTED} more" if len(self.values) > LISTED else ""
        unknown = f"; unknown ({self.unknown:,})" if self.unknown else ""
        return f"  label {name}: {', '.join(listed)}{more}{unknown}"


@dataclass
class Description:
    """One data set as the program reads it. What a stream cannot know before it ends is None.

    Attributes:
        name: the data set's name in the recipe, without the folders above it.
        kind: folder, parquet, webdataset, Hub data set ...
        found: pictures found, those of other splits and unreadable ones included.
        train: pictures of the training part.
        ignored: reason -> names of the files, or their number where names are unknown.
        column: the column with the images.
        split: the split of the training part.
        held_out: number of held-out images, and how they were chosen.
        groups: number of groups in the held-out part, with data.group_column.
        labels: the label columns by name, in the order of data.label_columns.
        notes: sentences about what may be misread.
    """

    name: str
    kind: str
    column: str
    split: str
    held_out: int | None
    how: str
    train: int | None = None
    found: int | None = None
    ignored: dict[str, list[str] | int] = field(default_factory=dict)
    groups: int | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ignore(self, reason: str, names: list[str]) -> None:
        """Add files that are not read. Each name counts once."""
        if names:
            known = self.ignored.get(reason, [])
            assert isinstance(known, list)  # numbers alone are of other splits
            self.ignored[reason] = list(dict.fromkeys([*known, *names]))

    @property
    def chosen(self) -> int | None:
        """Pictures of the training part and the held-out part, unreadable ones included."""
        return None if self.train is None or self.held_out is None else self.train + self.held_out

    @property
    def read(self) -> int | None:
        """Pictures of both parts that could be read, as far as is known."""
        return None if self.chosen is None else self.chosen - len(self.unreadable)

    @property
    def unreadable(self) -> list[str]:
        """The names of the files that turned out to be unreadable."""
        names = self.ignored.get("unreadable", [])
        return names if isinstance(names, list) else []

    def to_json(self) -> dict[str, Any]:
        """The content of data.json."""
        counts = {reason: names if isinstance(names, int) else len(names) for reason, names in self.ignored.items()}
        named = {reason: names[:NAMED] for reason, names in self.ignored.items() if not isinstance(names, int)}
        return {
            "name": self.name,
            "kind": self.kind,
            "found": self.chosen if self.found is None else self.found,
            "read": self.read,
            "ignored": counts,
            "ignored_names": named,
            "column": self.column,
            "split": self.split,
            "held_out": {"images": self.held_out, "how": self.how, "groups": self.groups},
            "labels": {name: asdict(label) for name, label in self.labels.items()},
        }

    def lines(self) -> list[str]:
        """The block that is printed before a training."""
        found = "" if self.found is None else f"{self.found:,} pictures found, "
        counts = "read as a stream" if self.read is None else f"{self.train:,} to train on, {self.held_out:,} held out"
        lines = [f"data: {self.name} ({self.kind}): {found}{counts}"]
        groups = "" if self.groups is None else f", {self.groups:,} groups"
        lines.append(f"  column {self.column}, split {self.split}; held out: {self.how}{groups}")
        lines += [label.line(name) for name, label in self.labels.items()]
        for reason, names in self.ignored.items():
            if isinstance(names, int):
                lines.append(f"  ignored, {reason}: {names:,}")
            else:
                dots = ", ..." if len(names) > NAMED else ""
                lines.append(f"  ignored, {reason}: {len(names):,} ({', '.join(names[:NAMED])}{dots})")
        return lines + [f"  note: {note}" for note in [*self.notes, *self._rare()]]

    def _rare(self) -> list[str]:
        """A note about values that are too rare to learn."""
        rare = [
            f"{name}={value.name} ({value.count})"
            for name, label in self.labels.items()
            for value in label.values
            if value.count is not None and value.count < RARE
        ]
        more = f", ... {len(rare) - LISTED} more" if len(rare) > LISTED else ""
        return [f"fewer than {RARE} training images, too few to learn: {', '.join(rare[:LISTED])}{more}"] if rare else []


def compare(before: dict[str, Any], now: dict[str, Any], folder: str) -> list[str]:
    """What changed in the data since a checkpoint, as text.

    Args:
        before, now: as `Description.to_json` gives them.
        folder: the checkpoint, for the message.

    Raises:
        UserError: if the number of a label now means another value.
    """
    old, new = (
        {name: [v["name"] for v in e["values"]] for name, e in part.get("labels", {}).items()} for part in (before, now)
    )
    if list(old.items()) != list(new.items()):
        changed = next((name for name in old if name in new and old[name] != new[name]), None)
        what = (
            f"label {changed} was {_names(old[changed])} and is {_names(new[changed])} now"
            if changed
            else (f"they were {_names(list(old))} and are {_names(list(new))} now")
        )
        raise UserError(f"the labels of the data changed since {folder}: {what}; change them back, or train in a new folder")
    keys = ("found", "column", "split", "held_out")
    return [
        f"{key.replace('_', ' ')} {_short(before[key])} -> {_short(now[key])}"
        for key in keys
        if before[key] != now[key] and None not in (before[key], now[key])
    ]


def _names(names: list[str]) -> str:
    return (", ".join(names[:LISTED]) or "none") + (f", ... ({len(names):,})" if len(names) > LISTED else "")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{item:,}" if isinstance(item, int) else str(item) for item in value.values() if item is not None)
    return f"{value:,}" if isinstance(value, int) else str(value)
