"""Creativity-inspired generative zero-shot learning from text.

python -m zsl train --config configs/zsl/flowers.yaml [--method gazsl,cizsl --seeds 5 ...]
python -m zsl evaluate --run RUN [--data features.npz]
python -m zsl text --articles articles.jsonl --out texts.npz
python -m zsl features --images FOLDER --backbone NAME --out features.npz
python -m zsl convert --from DIR --out FILE

Each explains its keys: python -m zsl train --help
"""

import importlib
import sys

from tinyldm.config.parsing import parse
from tinyldm.errors import UserError, one_line_errors
from zsl import config

COMMANDS = {
    "train": config.Train,
    "evaluate": config.Evaluate,
    "text": config.Text,
    "features": config.Features,
    "convert": config.Convert,
}


def main(args: list[str] | None = None) -> None:
    """Read the command's config and run it: `run(config)` of the module of that name."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(__doc__.strip())
        return
    command, *rest = args
    if command not in COMMANDS:
        raise UserError(f"{command!r} is no command of zsl; take {', '.join(COMMANDS)}")
    sys.argv[0] = f"python -m zsl {command}"  # what --help calls the program
    if command == "convert":  # `from` cannot be the name of a key in Python
        rest = ["--source" + arg[6:] if arg.split("=")[0] == "--from" else arg for arg in rest]
    found = parse(COMMANDS[command], COMMANDS[command].__doc__, rest)
    module = importlib.import_module(f"zsl.{command}")  # after parsing, so that --help need not wait for torch
    print(module.run(found))


if __name__ == "__main__":
    with one_line_errors():
        main()
