"""One exception for what the user can mend, and the one place that prints it."""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong and what to do."""


class Stopped(Exception):
    """A run that was asked to stop and has saved what it had. `signal` is what asked for it."""

    def __init__(self, message: str, signal: signal.Signals):
        super().__init__(message)
        self.signal = signal


def why(error: BaseException) -> str:
    """The reason for an error of the Hub's client or of diffusers, in one line. A token in it is replaced by ***."""
    from huggingface_hub import get_token  # here, so that --help does not wait for the client
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    found, token = root_cause(error), get_token()
    text = str(found) if isinstance(found, OSError | HTTPError | ValueError | RuntimeError) else repr(found)
    if isinstance(found, HfHubHTTPError) and found.server_message:
        text = f"{found.response.status_code}: {found.server_message}"
    return " ".join((text.replace(token, "***") if token else text).split()) or type(found).__name__


def root_cause(error: BaseException) -> BaseException:
    """What the Hub or the network said: libraries wrap it in errors that only say that something failed."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and inner not in chain:
        chain.append(inner)
    for kind in (HfHubHTTPError, HTTPError, OfflineModeIsEnabled):
        for found in chain:
            if isinstance(found, kind):
                return found
    return error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: Exception) -> bool:
    """Whether an error of Python, safetensors (which tells the number in its text) or torch.save means a full disk."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    return number in FULL or "PytorchStreamWriter failed writing" in str(error)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a `UserError` (or a full disk, which no code here can prevent) as one line and exit with code 2.

    A run that was stopped by signal n exits with 128 + n, as shells expect. Bugs keep their traceback.
    """
    code = 2
    try:
        yield
    except UserError as error:
        message = f"error: {error}"
    except Stopped as stopped:
        message, code = str(stopped), 128 + stopped.signal
    except Exception as error:
        if not is_full_disk(error):
            raise
        file = getattr(error, "filename", None) or "what was being written"
        message = f"error: no space left for {file}: free some, then run it again (a training with --resume latest)"
    except KeyboardInterrupt:
        message, code = "interrupted", 128 + signal.SIGINT
    else:
        return
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    # Not sys.exit: download and prefetch threads may still wait on a dead network, and nothing is left to save.
    sys.stdout.flush()
    os._exit(code)
