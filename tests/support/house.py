"""Checks how the source tree is laid out: imports, lengths, mirrored test folders, who reads a scheduler's fields.

Each check takes the repository's folder and returns the violations as `file:line: what is wrong`, sorted.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("tinyldm", "zsl")
# Layers from bottom to top. A layer may import the layers before it.
ROOMS = [
    *("portable", "errors", "files", "manifest", "limits", "remote", "randomness", "config", "data", "pictures"),
    *("metrics", "training", "first_stage", "process", "models", "drawing", "diffusion", "evaluation"),
    *("costs", "describe", "ema", "submission", "app"),
]
FILE_LINES, FUNCTION_LINES = 400, 80
DISPATCH = "zsl/__main__.py"  # imports the module of the command after parsing its arguments
SCHEDULER_FIELDS = {"alphas_cumprod", "betas", "num_train_timesteps", "prediction_type", "variance_type"}
SCHEDULER_OWNERS = tuple(f"tinyldm/{room}/" for room in ("portable", "process", "models", "drawing", "diffusion", "config"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    """One imported module of the project, and whether a function or TYPE_CHECKING hides the import."""

    line: int
    module: str
    hidden: bool


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def sources(root: Path, *packages: str) -> list[Path]:
    """The .py files of the packages, and of the top level where no package is given."""
    packages_files = [file for package in packages or PACKAGES for file in (root / package).rglob("*.py")]
    return sorted([*packages_files, *([] if packages else root.glob("*.py"))])


def module_name(root: Path, file: Path) -> str:
    """tinyldm/data/images.py -> tinyldm.data.images, tinyldm/data/__init__.py -> tinyldm.data."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(root: Path, file: Path) -> list[Import]:
    """Every import of a module of the project, also in functions, under TYPE_CHECKING and by import_module."""
    return [
        Import(node.lineno, module, hidden)
        for node, hidden in _nodes(_tree(file), False)
        for module in _imported(root, file, node)
        if module.split(".")[0] in PACKAGES
    ]


def _nodes(node: ast.AST, hidden: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below, and whether they are in a function or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        within = hidden or isinstance(node, Function | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child is not node.test:
            within = True
        yield child, within
        yield from _nodes(child, within)


def _imported(root: Path, file: Path, node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            base = node.module or ""
            if node.level:
                package = file.parent.relative_to(root).parts
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            return list(dict.fromkeys(_submodule(root, base, alias.name) for alias in node.names))
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[argument, *_]) if "import" in name:
            text = ast.unparse(argument).lstrip("frFR").strip("'\"")  # import_module("zsl.train"), import_module(f"zsl.{x}")
            return [text] if name in ("import_module", "__import__") else []
    return []


def _submodule(root: Path, base: str, name: str) -> str:
    """`from a import b` imports the module a.b if it exists, else the module a."""
    path = root.joinpath(*base.split("."))
    return f"{base}.{name}" if (path / f"{name}.py").exists() or (path / name).is_dir() else base


# -------------------------------------------------------------------------------------------------------------- checks


def upward_imports(root: Path) -> list[str]:
    """tinyldm imports only from its own and lower layers, and never from zsl. Anyone may import `tinyldm` itself."""
    violations = []
    for file in sources(root, "tinyldm"):
        room = _room(module_name(root, file))
        for line, module, _ in imports(root, file):
            other = _room(module)
            if module.split(".")[0] != "tinyldm":
                violations.append(f"{_at(root, file, line)}: tinyldm imports {module}")
            elif other is None or other == room:
                continue
            elif room is not None and (other not in ROOMS or room not in ROOMS):
                unknown = other if other not in ROOMS else room
                violations.append(f"{_at(root, file, line)}: {unknown} is missing in the order of layers")
            elif room is None or ROOMS.index(other) > ROOMS.index(room):
                violations.append(f"{_at(root, file, line)}: {room or 'tinyldm'} imports {module}, which is above it")
    return sorted(violations)


def circles(root: Path) -> list[str]:
    """Cycles of module-level imports within tinyldm and zsl. One edge of each is removed to find the next."""
    graph = {
        module_name(root, file): {module for _, module, hidden in imports(root, file) if not hidden} - {module_name(root, file)}
        for file in sources(root, *PACKAGES)
    }
    violations = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]  # graphlib lists imported modules before importing ones
            violations.append(" -> ".join(circle))
            graph[circle[0]].discard(circle[1])
        else:
            return sorted(violations)


def hidden_imports(root: Path) -> list[str]:
    """tinyldm and zsl import their own modules at the top of the file: not in functions, not under TYPE_CHECKING."""
    return sorted(
        f"{_at(root, file, line)}: {module} is imported in a function or under TYPE_CHECKING"
        for file in sources(root, *PACKAGES)
        if file != root / DISPATCH
        for line, module, hidden in imports(root, file)
        if hidden
    )


def too_long(root: Path) -> list[str]:
    """Files over 400 lines and functions over 80 lines in tinyldm, zsl and the scripts beside them."""
    violations = []
    for file in sources(root):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES:
            violations.append(f"{_at(root, file, 1)}: {lines} lines, more than {FILE_LINES}")
        for node in ast.walk(_tree(file)):
            if isinstance(node, Function) and (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                violations.append(f"{_at(root, file, node.lineno)}: {node.name} has {lines} lines, more than {FUNCTION_LINES}")
    return sorted(violations)


def unmirrored(root: Path) -> list[str]:
    """Each folder of tinyldm has a folder of tests, and each folder of tests is one of tinyldm's, zsl or support."""
    rooms = {file.parent.relative_to(root / "tinyldm") for file in sources(root, "tinyldm")} - {Path()}
    tested = {file.parent.relative_to(root / "tests") for file in (root / "tests").rglob("test_*.py")} - {Path()}
    missing = [f"tests/{room}: no tests of tinyldm/{room}" for room in rooms - tested]
    unknown = [f"tests/{folder}: tinyldm has no such folder" for folder in tested - rooms - {Path("zsl"), Path("support")}]
    return sorted(missing + unknown)


def scheduler_fields(root: Path) -> list[str]:
    """Reads of a scheduler's fields outside the rooms that own them.

    The fields are alphas_cumprod, betas, num_train_timesteps, prediction_type and variance_type. They count as read wherever
    they are an attribute of anything (`scheduler.betas`, `x.config.prediction_type`), a key (`config["betas"]`,
    `config.get("betas")`), or a name for getattr. Passing a whole scheduler, or its whole config, does not count.
    """
    violations = []
    for file in sources(root):
        if file.relative_to(root).as_posix().startswith(SCHEDULER_OWNERS):
            continue
        for node in ast.walk(_tree(file)):
            match node:
                case ast.Attribute(attr=field, ctx=ast.Load()):
                    pass
                case ast.Subscript(slice=ast.Constant(value=field), ctx=ast.Load()):
                    pass
                case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=field), *_]):
                    pass
                case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=field), *_]):
                    pass
                case _:
                    continue
            if field in SCHEDULER_FIELDS:
                violations.append(f"{_at(root, file, node.lineno)}: reads the scheduler's {field}")
    return sorted(violations)


def _room(module: str) -> str | None:
    """tinyldm.data.images -> data. None: tinyldm itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def _at(root: Path, file: Path, line: int) -> str:
    return f"{file.relative_to(root).as_posix()}:{line}"


CHECKS = [upward_imports, circles, hidden_imports, too_long, unmirrored, scheduler_fields]
