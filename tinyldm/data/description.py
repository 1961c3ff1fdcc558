"""What a run understood of its data: printed at the start, kept in data.json and checkpoints, compared on --resume."""

from dataclasses import dataclass, field
from typing import Any

from tinyldm.errors import UserError

NAMED = 5  # names listed for each reason


@dataclass
class Class:
    """A class: its number for the network, its name, and its training images (None: a stream does not know yet)."""

    number: int
    name: str
    count: int | None = None


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
        classes: the classes; None without labels.
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
    classes: list[Class] | None = None
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
            "classes": None if self.classes is None else [vars(entry) for entry in self.classes],
        }

    def lines(self) -> list[str]:
        """The block that is printed before a training."""
        found = "" if self.found is None else f"{self.found:,} pictures found, "
        counts = "read as a stream" if self.read is None else f"{self.train:,} to train on, {self.held_out:,} held out"
        lines = [f"data: {self.name} ({self.kind}): {found}{counts}"]
        groups = "" if self.groups is None else f", {self.groups:,} groups"
        lines.append(f"  column {self.column}, split {self.split}; held out: {self.how}{groups}")
        if self.classes is not None:
            listed = [f"{e.number} {e.name}" + ("" if e.count is None else f" ({e.count:,})") for e in self.classes[:12]]
            more = f", ... {len(self.classes) - 12} more" if len(self.classes) > 12 else ""
            lines.append(f"  {len(self.classes)} classes: {', '.join(listed)}{more}")
        for reason, names in self.ignored.items():
            if isinstance(names, int):
                lines.append(f"  ignored, {reason}: {names:,}")
            else:
                dots = ", ..." if len(names) > NAMED else ""
                lines.append(f"  ignored, {reason}: {len(names):,} ({', '.join(names[:NAMED])}{dots})")
        return lines + [f"  note: {note}" for note in self.notes]


def compare(before: dict[str, Any], now: dict[str, Any], folder: str) -> list[str]:
    """What changed in the data since a checkpoint, as text.

    Args:
        before, now: as `Description.to_json` gives them.
        folder: the checkpoint, for the message.

    Raises:
        UserError: if a class number now means another class.
    """
    old, new = ([(e["number"], e["name"]) for e in part["classes"] or []] for part in (before, now))
    if old != new:
        changed = next(((a, b) for a, b in zip(old, new, strict=False) if a != b), None)
        what = (
            f"class {changed[0][0]} was {changed[0][1]!r} and is {changed[1][1]!r} now"
            if changed
            else (f"there were {len(old)} classes and are {len(new)} now")
        )
        raise UserError(f"the classes of the data changed since {folder}: {what}; rename them back, or train in a new folder")
    keys = ("found", "column", "split", "held_out")
    return [
        f"{key.replace('_', ' ')} {_short(before[key])} -> {_short(now[key])}"
        for key in keys
        if before[key] != now[key] and None not in (before[key], now[key])
    ]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{item:,}" if isinstance(item, int) else str(item) for item in value.values() if item is not None)
    return f"{value:,}" if isinstance(value, int) else str(value)
