"""The schema of `python -m tinyldm.app`: which keys it has, what they mean and their defaults. Imports no torch."""

from dataclasses import dataclass

from tinyldm.config.parsing import parse
from tinyldm.config.schema import Sample
from tinyldm.errors import UserError


@dataclass(kw_only=True)
class App:
    """Open a page in the browser to play with a model."""

    run: str = Sample.model
    """A run, one of its checkpoints, a pipeline folder or a Hub id. The word `--run` may be left out."""
    then: str | None = None
    """Super-resolution stages that enlarge what `run` draws, as in sample.py. The page then only draws."""
    space: str | None = None
    """Write the page of a Hub id as a Hugging Face Space to this new folder, and open nothing."""
    device: str | None = None
    """cuda, mps, cpu and so on. null: the GPU if there is one."""

    def check(self) -> None:
        """Raise UserError for keys that contradict each other."""
        if self.space is not None and self.then is not None:
            raise UserError("a Space has one model: remove then, or space")


def read(description: str | None, args: list[str]) -> App:
    """The command line, whose first word may be the run.

    Raises:
        UserError: as parsing.parse.
    """
    return parse(App, description, ["--run", *args] if args and not args[0].startswith("-") else args)
