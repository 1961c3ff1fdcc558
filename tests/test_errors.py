import errno
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from tinyldm.errors import UserError, boundary, is_full_disk


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


OF_LIBRARIES = [KeyError("a"), RecursionError(), OverflowError("inf"), SafetensorError("header"), OSError(5, "I/O")]


@pytest.mark.parametrize("error", OF_LIBRARIES)
def test_whatever_a_library_raises_at_a_boundary_is_one_line(error):
    words = r"^model x is damaged \(.+\): train it again$"
    with pytest.raises(UserError, match=words) as caught, boundary("model x is damaged", "train it again"):
        raise error
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error


def test_a_boundary_passes_errors_on_that_are_already_clear():
    for error in (UserError("clear"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, boundary("model x is damaged"):
            raise error
        assert caught.value is error


def test_a_long_reason_is_cut():
    with pytest.raises(UserError) as caught, boundary("model x is damaged"):
        raise ValueError("word\n" * 1000)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cause",
    [
        "pathlib.Path('folder').write_text('x')",
        "pathlib.Path('file/inside').mkdir()",
        "pathlib.Path('file').mkdir(exist_ok=True)",
        "pathlib.Path('x' * 300).touch()",
        "raise PermissionError(13, 'Permission denied', 'folder')",
        "raise OSError(30, 'Read-only file system', 'folder')",
    ],
)
def test_what_the_disk_refuses_is_one_line(cause, tmp_path):
    """Also a file where a folder is expected, and the reverse."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    script = f"import pathlib\nfrom tinyldm.errors import *\nwith one_line_errors():\n    {cause}"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "cannot be used (" in done.stderr
