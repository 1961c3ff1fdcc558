import errno
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from tinyldm.errors import is_full_disk


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("Error while deserializing header: HeaderTooLarge"), False),
        (RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/3"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("28"), False),
    ],
)
def test_errors_of_a_full_disk_are_recognised(error, full):
    assert is_full_disk(error) == full


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        ("UserError('this is wrong:\\n do that')", 2, "error: this is wrong: do that\n"),
        ("KeyboardInterrupt()", 130, "interrupted\n"),
        ("Stopped('stopped, but saved', signal.SIGTERM)", 143, "stopped, but saved\n"),
        (
            "OSError(28, 'No space', 'weights.bin')",
            2,
            "error: no space left for weights.bin: free some space and run it again (a training with --resume latest)\n",
        ),
        ("BrokenPipeError()", 141, ""),
        ("ZeroDivisionError('a bug')", 1, "Traceback"),
    ],
)
def test_one_line_for_the_user_and_a_traceback_for_a_bug(raised, code, words):
    script = f"import signal\nfrom tinyldm.errors import *\nwith one_line_errors():\n    raise {raised}"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == code
    assert done.stderr == words if code != 1 else words in done.stderr
