"""Checkpoints: written aside, synced, renamed; checksummed; never unpickled.

checkpoints/step-1000/
    denoiser.safetensors ...    one file per network, named as in Task.networks
    ema.safetensors         the averaged weights of the first network
    optimizers.pt           optimizer states, read with weights_only=True
    state.json              step, images seen, seconds, best figure, the config
    checksums.json          SHA-256 of each file: written last
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tinyldm.config.schema import Training
from tinyldm.errors import UserError, boundary
from tinyldm.files import open_to_others, refuse_links
from tinyldm.limits import check_finite
from tinyldm.manifest import Manifest

CHECKSUMS = "checksums.json"
NEEDED = {"optimizers.pt", "state.json"}  # beside the networks


class Damaged(UserError):
    """A checkpoint that is incomplete or does not match its checksums."""


def save(run: Path, step: int, networks: dict[str, dict[str, torch.Tensor]], optimizers: Any, state: dict) -> Path:
    """Write checkpoints/step-N of a run; a kill at any moment leaves either the whole folder or none."""
    final = run / "checkpoints" / f"step-{step}"
    refuse_links(final.parent, final)
    aside = final.with_name(f".saving-{step}")
    for leftover in final.parent.glob(".saving-*"):  # from a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for name, tensors in networks.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, aside / f"{name}.safetensors")
        with (aside / "optimizers.pt").open("wb") as file:  # opened here, so that a full disk is an OSError
            torch.save(optimizers, file)
        (aside / "state.json").write_text(json.dumps(state, indent=1))
        sums = {file.name: _sha256(file) for file in sorted(aside.iterdir())}
        (aside / CHECKSUMS).write_text(json.dumps(sums, indent=1))
        open_to_others(aside)
        for path in [*aside.iterdir(), aside]:
            _sync(path)
        Manifest(run).own_all(final / file.name for file in aside.iterdir())
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return final


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], Any, dict]:
    """(networks, optimizers, state) of a checkpoint, on the CPU.

    Raises:
        Damaged: when a file is missing or differs from its checksum.
        UserError: when it has other contents, or weights that are not finite.
    """
    verify(folder)
    with boundary(f"the weights of checkpoint {folder} are damaged"):
        networks = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
        for name, tensors in networks.items():
            check_finite(tensors, f" in {name}.safetensors")
    try:
        optimizers = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch's message says how to run the code in it
        raise Damaged(f"{folder / 'optimizers.pt'} has more than tensors and numbers in it, or is not a torch file") from error
    return networks, optimizers, load_state(folder)


def load_state(folder: Path) -> dict:
    """The state.json of a checkpoint.

    Raises:
        Damaged: when it cannot be read.
    """
    with boundary(f"{folder / 'state.json'} cannot be read"):
        state = json.loads((folder / "state.json").read_text())
        if not isinstance(state, dict):
            raise ValueError("not a mapping")
    return state


def verify(folder: Path) -> None:
    """Raise Damaged unless every file of the checkpoint is there and has its checksum."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        if not isinstance(sums, dict) or not sums.keys() >= NEEDED:
            raise ValueError(f"it does not list {' and '.join(sorted(NEEDED))}")
    except Exception as error:  # JSON that is nested too deeply raises a RecursionError
        raise Damaged(f"checkpoint {folder} is incomplete: {CHECKSUMS} cannot be used ({error})") from error
    try:
        wrong = [name for name, digest in sums.items() if _sha256(folder / name) != digest]
    except OSError as error:
        raise Damaged(f"checkpoint {folder} is incomplete ({error})") from error
    if wrong:
        raise Damaged(f"checkpoint {folder} is damaged: {', '.join(wrong)} changed since it was saved")


def steps(run: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    found = []
    for folder in (run / "checkpoints").glob("step-*"):
        with contextlib.suppress(ValueError):
            found.append(int(folder.name.removeprefix("step-")))
    return sorted(found)


def find(run: Path, resume: str) -> Path | None:
    """The checkpoint that `resume` names: `latest` (skips damaged checkpoints with a warning) or a path.

    None: `latest` of a run that has not saved one yet, so that a cluster can start and restart a run by one command.

    Raises:
        UserError: when all checkpoints are damaged.
    """
    if resume != "latest":
        folder = named(run, resume)
        verify(folder)
        return folder
    found = steps(run)
    for step in reversed(found):
        folder = run / "checkpoints" / f"step-{step}"
        try:
            verify(folder)
            return folder
        except Damaged as error:
            print(f"warning: {error}; skipping it", file=sys.stderr)
    if found:
        raise UserError(f"{run} has no undamaged checkpoint to resume from; start again with --overwrite true")
    return None


def starts_anew(config: Training) -> bool:
    """Whether a training begins at step 0: it does not resume, or there is nothing yet to resume from."""
    return config.resume is None or (config.resume == "latest" and not steps(Path(config.output_dir)))


def kept(config: Training) -> dict[str, float]:
    """The numbers that the run which `config` resumes has measured at its start; empty for a new run. See Task.kept.

    Raises:
        UserError: as `find`, or for a damaged checkpoint.
    """
    folder = find(Path(config.output_dir), config.resume) if config.resume else None
    numbers = load_state(folder).get("kept", {}) if folder else {}
    with boundary(f"{folder}/state.json holds no sound numbers"):
        if not all(0 < value < math.inf for value in numbers.values()):
            raise ValueError(numbers)
    return numbers


def named(run: Path, resume: str) -> Path:
    """The folder of a checkpoint that is given by its path.

    Raises:
        UserError: when it is missing, or belongs to another run, whose steps are not those of this one.
    """
    folder = Path(resume).expanduser()
    if not folder.is_dir():
        raise UserError(f"checkpoint {resume} does not exist; {run} has steps {steps(run)}")
    if folder.resolve().parent != (run / "checkpoints").resolve():
        raise UserError(f"checkpoint {resume} is not one of {run}: set output_dir to its own run, or resume from latest")
    return folder


def prune(run: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the one of step `best`."""
    for step in steps(run)[:-keep]:
        if step != best:
            shutil.rmtree(run / "checkpoints" / f"step-{step}", ignore_errors=True)


def forget_after(run: Path, step: int) -> None:
    """Delete the checkpoints after `step`: a run that continues from there writes them again."""
    for later in steps(run):
        if later > step:
            shutil.rmtree(run / "checkpoints" / f"step-{later}", ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
