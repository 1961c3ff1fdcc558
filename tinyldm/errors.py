"""The exception for errors a user can fix, and the only place that prints it."""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator


class UserError(Exception):
    """An error the user can fix. The message is one line: what is wrong and what to do."""


class NoAnswer(ConnectionError):
    """The Hub does not answer, and its cache does not have what is asked for."""


class Stopped(Exception):
    """A signal stopped a run, and the run has saved its state.

    Attributes:
        signal: the signal.
    """

    def __init__(self, message: str, signal: signal.Signals):
        super().__init__(message)
        self.signal = signal


LONGEST = 300  # characters of a reason; torch and diffusers write pages


@contextlib.contextmanager
def boundary(what: str, advice: str = "") -> Iterator[None]:
    """Read something from outside inside `with`: any exception there becomes a `UserError`.

    Only calls of libraries and checks of what they returned belong inside, so that our own bugs keep their traceback.

    Args:
        what: what failed, such as `model runs/faces cannot be loaded`. The reason follows in brackets.
        advice: what to do.
    """
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception as error:
        if is_full_disk(error):
            raise
        raise UserError(f"{what} ({why(error)}){advice and ': '}{advice}") from error


TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")  # of the Hub
LOGIN = re.compile(r"(?<=://)[^/?#@\s]*:[^/?#@\s]*@")  # user:password@ of an address


def without_secrets(text: str) -> str:
    """The text with *** in place of tokens of the Hub and of logins in addresses."""
    return LOGIN.sub("***@", TOKEN.sub("***", text))


def why(error: BaseException) -> str:
    """The reason for an error of the Hub's client or of diffusers, in one line. Replaces a token in it by ***."""
    from huggingface_hub import get_token  # imported here to keep --help fast
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    cause, token = root_cause(error), get_token()
    plain = isinstance(cause, OSError | HTTPError | ValueError | RuntimeError) or type(cause).__module__ != "builtins"
    text = str(cause) if plain else f"{type(cause).__name__}: {cause}".removesuffix(": ")
    if isinstance(cause, HfHubHTTPError) and cause.server_message:
        text = f"{cause.response.status_code}: {cause.server_message}"
    line = " ".join((text.replace(token, "***") if token else text).split()) or type(cause).__name__
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def root_cause(error: BaseException) -> BaseException:
    """The error of the Hub or the network. Libraries wrap it in errors that only report a failure."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and inner not in chain:
        chain.append(inner)
    for kind in (NoAnswer, HfHubHTTPError, HTTPError, OfflineModeIsEnabled):
        for link in chain:
            if isinstance(link, kind):
                return link
    return error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException) -> bool:
    """Whether an error of Python, safetensors or torch.save means a full disk. torch's may hide it in the chain of causes."""
    match = re.search(r"\(os error (\d+)\)", str(error))  # safetensors gives the number in the message only
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    inner = error.__cause__ or error.__context__
    hidden = isinstance(error, RuntimeError) and inner is not None and is_full_disk(inner)
    return number in FULL or hidden or "PytorchStreamWriter failed writing" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy or torch, on any device, means that memory is used up."""
    # torch.OutOfMemoryError is a RuntimeError; its CPU allocator raises a plain one.
    used_up = r"out of memory|not enough memory|[Cc]an(no|')t allocate memory"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and bool(re.search(used_up, str(error)))
    )


DISK = [
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY),  # a file where a folder is expected, or the reverse
]


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a `UserError` as one line and exit with code 2. What the disk refuses and used-up memory count as one.

    After signal n the exit code is 128 + n, as shells expect. Bugs keep their traceback.
    """
    code = 2
    try:
        yield
    except UserError as error:
        message = f"error: {error}"
    except Stopped as stopped:
        message, code = str(stopped), 128 + stopped.signal
    except BrokenPipeError:  # a reader such as `head` has closed standard output
        os._exit(128 + 13)  # as the signal SIGPIPE
    except Exception as error:
        file = getattr(error, "filename", None)
        if is_out_of_memory(error):
            message = "error: out of memory: use a smaller batch_size, or close other programs"
        elif is_full_disk(error):
            message = f"error: no space left for {file or 'the output'}: free some space and run it again"
            message += " (a training with --resume latest)"
        elif isinstance(error, OSError) and error.errno in DISK and file:
            message = f"error: {file} cannot be used ({error.strerror}): check the path and its rights, or move it away"
        else:
            raise
    except KeyboardInterrupt:
        message, code = "interrupted", 128 + signal.SIGINT
    else:
        return
    print(" ".join(without_secrets(message).split()), file=sys.stderr, flush=True)
    # sys.exit would wait for download and prefetch threads, which may hang on a dead network. Everything is saved.
    sys.stdout.flush()
    os._exit(code)
