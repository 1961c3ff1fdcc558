"""A config from the command line and from YAML, and back.

config = parse(TrainLDM, "Train a latent diffusion model.")     # reads sys.argv: --config FILE --section.key value ...
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from tinyldm.config.help import asks_for, help_text
from tinyldm.config.keys import check_recipe, read_keys, sections, unknown_key
from tinyldm.config.paths import refuse_secrets
from tinyldm.config.ranges import expected, plain
from tinyldm.errors import UserError, boundary
from tinyldm.limits import load_yaml, read_text

Schema = TypeVar("Schema")
GIVEN = (  # where jsonargparse's messages have the value that does not fit
    r"Given value: (.*)$",
    r"Got value: (.*)$",
    r"Unable to load config '(.*)'",
)
PART = (  # and the entry of a list that does not fit, or the value itself
    r": (\S+) does not conform to restriction",
    r"with base 10: '(.*)'",
    r"convert string to float: '(.*)'",
    r": (\S+) not an? (?:integer|number)",
)
YAML_WORDS = {"None": "null", "True": "true", "False": "false", "": "empty"}


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number; YAML 1.1 wants 1.0e-3."""


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse(schema: type[Schema], description: str | None, args: list[str] | None = None) -> Schema:
    """Read `--config FILE` and `--section.key value` overrides into an instance of `schema`.

    Prints the help and exits where the command line asks for it.

    Raises:
        UserError: for an unknown key, a value of the wrong type or range, or values that contradict each other.
    """
    args = list(sys.argv[1:] if args is None else args)
    if how := asks_for(args):
        print(help_text(schema, description, how == "all"))
        raise SystemExit(0)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(schema)
    try:
        found = vars(parser.instantiate(parser.parse_args(list(_with_recipes(schema, args)))))
    except ArgumentError as error:
        raise UserError(_explain(schema, str(error))) from error
    found.pop("config", None)
    config = _plain(schema(**found))
    refuse_secrets(to_dict(config))
    config.check()
    return config


def _with_recipes(schema: type[Any], args: list[str]) -> Iterator[str]:
    """The arguments, with the checked content of each recipe in place of its path."""
    rest = iter(args)
    for arg in rest:
        path = arg.removeprefix("--config=") if arg.startswith("--config=") else None
        if arg == "--config" and (path := next(rest, None)) is None:
            raise UserError("--config names no file: python train_ldm.py --config configs/demo.yaml")
        if path is None:
            yield arg
        else:
            recipe = Path(path).expanduser()
            yield f"--config={json.dumps(check_recipe(schema, read_recipe(recipe), recipe), default=str)}"


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a recipe, as they are written.

    Raises:
        UserError: when it is missing, or not a YAML file with keys.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(f"the recipe {path} cannot be read: {error.strerror}; check the path") from error
    except ValueError as error:
        raise UserError(f"the recipe {path} is not a text file ({error}); give a YAML file") from error
    with boundary(f"the recipe {path} is not valid YAML"):
        values = load_yaml(text, RecipeLoader)
    if not isinstance(values, dict):
        given = "is empty" if values is None else "is not a mapping"
        raise UserError(f"the recipe {path} {given}; write keys and values, such as output_dir: runs/mine")
    return values


def _explain(schema: type[Any], message: str) -> str:
    """jsonargparse's message as one line that names the key and says what to give."""
    line = " ".join(message.split())
    if found := re.match(r"unrecognized arguments: (\S*)", line):
        name = found[1].split("=")[0]
        if not name.startswith("--"):
            return f"unexpected argument {name!r}: keys are given as --key value"
        return unknown_key(schema, name[2:])
    if found := re.match(r"Group '(\S+)' does not accept option '(\S+)'", line):
        return unknown_key(schema, f"{found[1]}.{found[2]}")
    if found := re.match(r"Option '(\S+)' is not accepted", line):
        return unknown_key(schema, found[1])
    if found := re.match(r"the following arguments are required: (.*)", line):
        names = found[1].split(", ")
        flags = " ".join(f"--{name} VALUE" for name in names)
        return f"{' and '.join(names)} must be given: add {flags}, or set it in the recipe"
    found = re.match(r'Parser key "([^"]+)"', line) or re.match(r"argument --(\S+): expected one argument", line)
    keys = read_keys(schema)
    if found and found[1] in keys:
        return _does_not_fit(found[1], keys[found[1]].kind, message)
    if found and found[1] in sections(schema):
        return f"{found[1]} is a section: give its keys, such as --{next(k for k in keys if k.startswith(f'{found[1]}.'))}"
    return f"{line}; --help all explains every key"


def _does_not_fit(key: str, kind: Any, message: str) -> str:
    for verb, patterns in (("is", GIVEN), ("contains" if "list" in expected(kind) else "is", PART)):
        for pattern in patterns:
            if given := re.search(pattern, message, re.MULTILINE):
                value = YAML_WORDS.get(given[1], given[1])
                return f"{key} {verb} {value}; give {expected(kind)}"
    return f"{key} has no value that fits; give {expected(kind)}"


def _plain(config: Any) -> Any:
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{item.name} is {value!r}; a path or name cannot hold the character 0")
        setattr(config, item.name, _plain(value) if is_dataclass(value) else plain(value))
    return config


def to_yaml(config: Any) -> str:
    """The resolved config as YAML, every key in it, in the order of the schema."""
    return dump(to_dict(config))


def dump(values: dict[str, Any]) -> str:
    """The values of a config as YAML, in their order."""
    return yaml.safe_dump(values, sort_keys=False, width=120)


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain dicts, lists, numbers and strings; tuples become lists."""

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(item) for key, item in value.items()}
        return [listed(item) for item in value] if isinstance(value, list | tuple) else value

    return listed(asdict(config))


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a run's config.yaml.

    Raises:
        UserError: when it is missing or not YAML.
    """
    try:
        with boundary(f"{path} is not valid YAML"):
            values = load_yaml(read_text(path))
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise UserError(f"{path} is missing: {path.parent} is not a run folder") from error
        raise
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no keys; a run's config.yaml has some")
    return values
