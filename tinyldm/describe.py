"""What a recipe costs before it is run: parameters, FLOPs, memory, and how long it will take here.

python -m tinyldm.describe configs/celebahq256.yaml
python -m tinyldm.describe configs/faces64.yaml --train.batch_size 128

Parameters, FLOPs and memory are counted on the meta device: nothing is allocated. Memory is what a training must hold at the
end of a forward pass: weights, gradients, Adam's two averages, the averaged weights and the guide, and what the backward pass
needs of each layer, all in float32; an allocator takes some more. The time is that of a few steps of the networks on random
inputs, in the recipe's batches unless one of them takes longer than 48 s, without data, evaluations and pictures.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

from tinyldm.config.help import asks_for
from tinyldm.config.parsing import parse, read_recipe
from tinyldm.config.schema import TRAININGS, TrainDDPM, Training, TrainLDM, TrainVQ
from tinyldm.errors import UserError, one_line_errors

USAGE = "python -m tinyldm.describe configs/faces64.yaml"


def read(args: list[str]) -> Training:
    """The recipe that the command line names. Without one, `--help` prints the docstring of this file.

    Raises:
        UserError: when it names none, and as parsing.parse.
    """
    if args and not args[0].startswith("-"):
        args = ["--config", *args]
    joined = (arg.removeprefix("--config=") for arg in args if arg.startswith("--config="))
    file = next((after for before, after in itertools.pairwise(args) if before == "--config"), next(joined, None))
    if file is None and asks_for(args):
        print(f"{(__doc__ or '').strip()}\n\nAny key of the recipe can follow it. To list them: {USAGE} --help all")
        raise SystemExit(0)
    if file is None:
        raise UserError(f"no recipe given: {USAGE}")
    return parse(schema_of(read_recipe(Path(file))), __doc__, args)


def schema_of(recipe: dict[str, Any]) -> type[Training]:
    """The schema that a recipe's key `script` names. A config.yaml older than that key is recognised by its sections."""
    if "script" in recipe:
        return TRAININGS.get(str(recipe["script"]), TrainLDM)  # parse refuses the name of another script
    return TrainVQ if recipe.keys() & {"vq", "loss"} else TrainLDM if "first_stage" in recipe else TrainDDPM


if __name__ == "__main__":
    with one_line_errors():
        sys.argv[0] = "python -m tinyldm.describe"  # what --help calls the program
        config = read(sys.argv[1:])

        from tinyldm.costs import table  # after parsing, so that --help does not import torch

        print(table(config))
