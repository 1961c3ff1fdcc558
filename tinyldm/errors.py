"""One exception for what the user can mend, and the one place that prints it."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong and what to do."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: Exception) -> bool:
    """Whether an error of Python, safetensors (which tells the number in its text) or torch.save means a full disk."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    return number in FULL or "PytorchStreamWriter failed writing" in str(error)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a `UserError` (or a full disk, which no code here can prevent) as one line and exit with code 2.

    Bugs keep their traceback.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
    except Exception as error:
        if not is_full_disk(error):
            raise
        message = (
            f"no space left for {getattr(error, 'filename', None) or 'what was being written'}: free some, then --resume latest"
        )
    except KeyboardInterrupt:
        message = "interrupted"
    else:
        return
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    # Not sys.exit: download and prefetch threads may still wait on a dead network, and nothing is left to save.
    sys.stdout.flush()
    os._exit(2)
