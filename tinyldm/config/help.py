"""What `--help` prints: the keys that people set first, or with `--help all` every key, grouped by section.

The text of a key is the docstring under its field. It is read from the source with `ast`, which takes milliseconds.
"""

import ast
import inspect
import os
import shutil
import sys
import textwrap
from dataclasses import MISSING
from functools import cache
from typing import Any

import yaml

from tinyldm.config.keys import Key, read_keys, sections
from tinyldm.config.ranges import expected

FEW = 18  # all keys are shown if there are no more
CONFIG = "A recipe: a YAML file with any of these keys. Flags that follow it override its values."
PRINT_CONFIG = "Print all values, those of the recipe and flags before it included, as YAML, and exit."


def asks_for(args: list[str]) -> str | None:
    """Whether the command line asks for help: "first", "all", or None."""
    for position, arg in enumerate(args):
        if arg in ("-h", "--help"):
            return "all" if args[position + 1 : position + 2] == ["all"] else "first"
        if arg.startswith("--help="):
            return "all" if arg == "--help=all" else "first"
    return None


def help_text(schema: Any, description: str | None, everything: bool) -> str:
    """The whole page. The description, with its examples, is printed as it is."""
    keys = read_keys(schema)
    shown = list(keys.values()) if everything or len(keys) <= FEW else first_keys(schema, keys)
    lines = [
        f"usage: {program()} [--config RECIPE] [--KEY VALUE ...]",
        "",
        *inspect.cleandoc(description or "").splitlines(),
        "",
    ]
    lines += _entry("--config", "(type: file)", CONFIG)
    if len(shown) < len(keys):
        for key in shown:
            lines += _key(key)
        return "\n".join([*lines, "", f"{program()} --help all lists the other {len(keys) - len(shown)} keys, by section."])
    lines += _entry("--print_config", "", PRINT_CONFIG)
    groups: dict[str, list[Key]] = {"": []}
    for key in shown:
        groups.setdefault(key.name.rpartition(".")[0], []).append(key)
    for name, group in groups.items():
        if name:
            summary = inspect.cleandoc(sections(schema)[name].__doc__ or "")
            lines += ["", *textwrap.wrap(f"{name}: {' '.join(summary.split())}", _width())]
        for key in sorted(group, key=lambda key: key.default is not MISSING):  # required ones first
            lines += _key(key)
    return "\n".join(lines)


def first_keys(schema: Any, keys: dict[str, Key]) -> list[Key]:
    """The keys that a schema names in `first_keys`; without that, those outside sections and those that are required."""
    names = getattr(schema, "first_keys", None)
    if names is None:
        return [key for key in keys.values() if "." not in key.name or key.default is MISSING]
    return [keys[name] for name in names]


def program() -> str:
    """The command, as a user types it."""
    name = os.path.basename(sys.argv[0])
    return f"python {name}" if name.endswith(".py") else name


def _key(key: Key) -> list[str]:
    default = "required" if key.default is MISSING else f"default: {_written(key.default)}"
    return _entry(
        f"--{key.name}", f"(type: {expected(key.kind).removeprefix('a ')}; {default})", docstrings(key.owner).get(key.leaf, "")
    )


def _entry(flag: str, kind: str, text: str) -> list[str]:
    head = textwrap.wrap(f"{flag} {kind}", _width(), initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    body = textwrap.wrap(
        " ".join(text.split()), _width(), initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
    )
    return [*head, *body]


def _width() -> int:
    return max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))


def _written(value: Any) -> str:
    """A value as YAML has it on one line."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


@cache
def docstrings(owner: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of the classes that it extends."""
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(node, ast.ClassDef)
        for statement, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match after:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found[statement.target.id] = text
    return found
