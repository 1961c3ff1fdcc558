"""Generative zero-shot learning from class texts.

python -m zsl train --config configs/zsl/flowers.yaml [--method gazsl,cizsl --seeds 5 ...]
python -m zsl evaluate --run RUN [--data features.npz]
python -m zsl text --articles articles.jsonl --out texts.npz
python -m zsl features --images FOLDER --backbone NAME --out features.npz
python -m zsl convert --from DIR --out FILE

To see all keys of a command: python -m zsl train --help
"""

import importlib
import sys
from typing import Any

from tinyldm.config.parsing import parse
from tinyldm.errors import UserError, one_line_errors
from zsl import config

COMMANDS: dict[str, type[Any]] = {
    "train": config.Train,
    "evaluate": config.Evaluate,
    "text": config.Text,
    "features": config.Features,
    "convert": config.Convert,
}


def main(args: list[str] | None = None) -> None:
    """Read the config of a command, then call `run(config)` in the module with the command's name."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    command, *rest = args
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}: use one of {', '.join(COMMANDS)}")
    sys.argv[0] = f"python -m zsl {command}"  # the program name that --help prints
    if command == "convert":  # `from` is a keyword in Python, so the key has another name
        rest = ["--source" + arg[6:] if arg.split("=")[0] == "--from" else arg for arg in rest]
    parsed = parse(COMMANDS[command], COMMANDS[command].__doc__ or "", rest)
    module = importlib.import_module(f"zsl.{command}")  # imported after parsing, so that --help does not load torch
    print(module.run(parsed))


if __name__ == "__main__":
    with one_line_errors():
        main()
