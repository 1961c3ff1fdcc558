"""One exception for what the user can mend, and the one place that prints it."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong and what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a `UserError` (or a full disk, which no code here can prevent) as one line and exit with code 2.

    Bugs keep their traceback.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        message = f"no space left for {error.filename or 'the file being written'}: free some and use --resume latest"
    except KeyboardInterrupt:
        message = "interrupted"
    else:
        return
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    # Not sys.exit: download and prefetch threads may still wait on a dead network, and nothing is left to save.
    sys.stdout.flush()
    os._exit(2)
