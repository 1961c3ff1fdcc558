"""What a training does when something beside it fails: a warning where it can go on, one line where it cannot."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from tinyldm.errors import UserError, is_full_disk, is_out_of_memory
from tinyldm.training import checkpoint


@contextmanager
def one_line_shortages(run: Path) -> Iterator[None]:
    """A full disk and used-up memory as a UserError that names the last checkpoint."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            what, advice = "out of memory", "use a smaller train.batch_size with more train.gradient_accumulation_steps"
        elif is_full_disk(error):
            what, advice = f"no space left for {getattr(error, 'filename', None) or run}", "free some space"
        else:
            raise
        raise UserError(f"{what}: {last_checkpoint(run)}; {advice}, and continue with --resume latest") from error


def last_checkpoint(run: Path) -> str:
    """A clause that names the last checkpoint of a run."""
    done = checkpoint.steps(run)
    return f"the last checkpoint is step-{done[-1]}" if done else "there is no checkpoint yet"


@contextmanager
def may_fail(what: str, step: int) -> Iterator[None]:
    """An error in this context becomes a warning of one line, which says what failed."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        tqdm.write(f"warning: {what} failed at step {step} ({reason}); the training continues", file=sys.stderr)
