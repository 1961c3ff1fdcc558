"""Names that are a folder or a Hub id, and a Hub that does not answer."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tinyldm.errors import NoAnswer, UserError, why

SECONDS = 10.0  # that the Hub may take to answer
OURS = ("runs", "pretrained")  # folders of recipes, docs and defaults: never users of these names on the Hub


def may_be_hub_id(name: str) -> bool:
    """Whether a name that is no file or folder here may be a Hub id: `user/name`, unless there is a folder `user`."""
    user = name.rpartition("/")[0]
    return not name.startswith((".", "/", "~")) and "/" not in user and user not in OURS and not (user and Path(user).is_dir())


@contextlib.contextmanager
def from_hub(name: str) -> Iterator[bool]:
    """Load a Hub id inside `with`. The Hub is asked once whether it answers; else only the cache is read, without retries.

    Yields:
        Whether only the cache can be read.

    Raises:
        NoAnswer: if the Hub does not answer and the cache does not have it.
    """
    from huggingface_hub import constants  # imported here to keep --help fast

    silent = _silence()
    configs = [constants, *([sys.modules["datasets.config"]] if "datasets.config" in sys.modules else [])]
    before = [config.HF_HUB_OFFLINE for config in configs]  # type: ignore[attr-defined]
    for config in configs:
        config.HF_HUB_OFFLINE = bool(silent)  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings(action="ignore"):  # of diffusers about the client's arguments
            yield bool(silent)
    except Exception as error:
        if not silent or isinstance(error, UserError):
            raise
        raise NoAnswer(f"there is no folder {name}, and the Hub {silent}") from error
    finally:
        for config, value in zip(configs, before, strict=True):
            config.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def _silence() -> str:
    """Why the Hub cannot be asked; empty if it can."""
    from huggingface_hub import constants

    return "is switched off by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else _no_answer()


@cache
def _no_answer() -> str:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of httpx2, of the operating system, or for a token that no header can hold
        return f"does not answer ({why(error)})"
    return ""
