"""The keys of a schema: their types and defaults, and what to say about a key that does not exist."""

import difflib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from tinyldm.errors import UserError

SCRIPTS = ("train_vq", "train_ldm", "train_ddpm", "train_classifier")  # the values of the key `script`


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        name: with its section, e.g. train.batch_size.
        kind: its type.
        default: MISSING where a value is required.
        owner: the dataclass that declares it.
    """

    name: str
    kind: Any
    default: Any
    owner: type

    @property
    def leaf(self) -> str:
        """The name without its section."""
        return self.name.rpartition(".")[2]


def sections(schema: Any) -> dict[str, Any]:
    """The dataclass of each section."""
    return {item.name: item.type for item in fields(schema) if is_dataclass(item.type)}


def read_keys(schema: Any) -> dict[str, Key]:
    """Every key of a schema by its dotted name, in the order of the schema."""
    return {key.name: key for key in _walk(schema, None, "")}


def _walk(schema: Any, defaults: Any, prefix: str) -> Iterator[Key]:
    for item in fields(schema):
        default = getattr(defaults, item.name, item.default)
        if default is MISSING and item.default_factory is not MISSING:
            default = item.default_factory()
        if is_dataclass(item.type):
            yield from _walk(item.type, None if default is MISSING else default, f"{prefix}{item.name}.")
        else:
            yield Key(prefix + item.name, item.type, default, schema)


def unknown_key(schema: Any, name: str) -> str:
    """One line about a key that the schema does not have, with the most similar one that it has."""
    group, _, leaf = name.rpartition(".")
    section: Any = sections(schema).get(group)
    if reason := getattr(section, "refused", {}).get(leaf):
        return f"{name} {reason}"
    message = f"there is no key {name}"
    if close := _closest(schema, group, leaf):
        message += f": did you mean {close}?"
    if hasattr(section, "builds"):
        others = f"ther arguments of diffusers' {section.builds} go into {group}.extra"
        return f"{message} O{others}" if close else f"{message}; o{others}"
    return message if close else f"{message}; --help all explains every key"


def _closest(schema: Any, group: str, leaf: str) -> str | None:
    known, leaf = [*read_keys(schema), *([] if group else sections(schema))], leaf.replace("-", "_")
    if group in sections(schema):
        inside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == group}
        if close := difflib.get_close_matches(leaf, inside, n=1):
            return inside[close[0]]
    if same := [key for key in known if key.rpartition(".")[2] == leaf]:  # the right name in the wrong section
        return same[0]
    name = f"{group}.{leaf}" if group else leaf
    leaves = {} if group else {key.rpartition(".")[2]: key for key in known}
    close = difflib.get_close_matches(name, {**leaves, **dict.fromkeys(known)}, n=1, cutoff=0.75)
    return leaves.get(close[0], close[0]) if close else None


def check_recipe(schema: Any, values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values of a recipe, with YAML's readings of `no` and `null` as the choices "no" and "none".

    Raises:
        UserError: for a recipe of another script, an unknown key, or a section that is not one.
    """
    _check_script(schema, values, path)
    return _check_section(schema, schema, values, path, "")


def _check_script(schema: Any, values: dict[str, Any], path: Path) -> None:
    wanted = values.get("script")
    own = next((item.default for item in fields(schema) if item.name == "script"), None)
    if "script" not in values or wanted == own:
        return
    if wanted not in SCRIPTS:
        raise UserError(f"{path}: script is {wanted}; give one of {', '.join(SCRIPTS)}")
    raise UserError(f"{path} is a recipe for {wanted}.py: python {wanted}.py --config {path}")


def _check_section(root: Any, schema: Any, values: dict[str, Any], path: Path, prefix: str) -> dict[str, Any]:
    kinds: dict[str, Any] = {item.name: item.type for item in fields(schema)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if not prefix and name in read_keys(root):  # `train.batch_size: 8`, which jsonargparse takes too
            checked[name] = _choice(value, read_keys(root)[name].kind)
            continue
        if name not in kinds:
            raise UserError(f"{path}: {unknown_key(root, f'{prefix}{name}')}")
        if is_dataclass(kinds[name]):
            if not isinstance(value, dict):
                given = "empty" if value is None else f"{value!r}"
                example = f"{name}: {{{fields(kinds[name])[0].name}: ...}}"
                raise UserError(f"{path}: {name} is {given}, but it is a section; give its keys, as in {example}")
            value = _check_section(root, kinds[name], value, path, f"{prefix}{name}.")
        checked[name] = _choice(value, kinds[name])
    return checked


def _choice(value: Any, kind: Any) -> Any:
    """YAML reads `no` as False and `null` as None; where "no" or "none" is a choice, that is what was meant."""
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if value is False and "no" in choices:
        return "no"
    return "none" if value is None and "none" in choices else value
