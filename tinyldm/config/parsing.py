"""A config from the command line and from YAML, and back.

config = parse(TrainLDM, "Train a latent diffusion model.")     # reads sys.argv: --config FILE --section.key value ...
"""

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from tinyldm.errors import UserError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Schema = TypeVar("Schema")


def parse(schema: type[Schema], description: str, args: list[str] | None = None) -> Schema:
    """Read `--config FILE` and `--section.key value` overrides into an instance of `schema`.

    Raises:
        UserError: for an unknown key, a value of the wrong type, or values that contradict each other.
    """
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file with any of these keys; what follows overrides it.")
    parser.add_class_arguments(schema)
    try:
        config = parser.parse_args(args)
        for section in (part.name for part in fields(schema) if is_dataclass(part.type)):
            if not isinstance(config[section], Namespace):
                raise UserError(f"{section} is {config[section]!r}, but it is a section: give its keys, --help lists them")
        config = parser.instantiate(config)
    except ArgumentError as error:
        raise UserError(f"{' '.join(str(error).split())}; --help explains every key") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the file given as --config is not a text ({error}); it must be a YAML file") from error
    values = {key: value for key, value in vars(config).items() if key != "config"}
    config = schema(**values)
    config.check()
    return config


def to_yaml(config: Any) -> str:
    """The resolved config as YAML, every key in it, in the order of the schema."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=120)


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain dicts, lists, numbers and strings; tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(asdict(config))


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a run's config.yaml.

    Raises:
        UserError: when it is missing or not YAML.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is missing: {path.parent} is not a run folder") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML any more: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a config's keys")
    return values
