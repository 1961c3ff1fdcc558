"""Fixtures that several files share. The environment set first keeps tests off the network and the user's caches."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HOME"] = os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="tinyldm-tests-")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import train_ldm  # noqa: E402
import train_vq  # noqa: E402
from tests.support.runs import DATA, EVERY_STEP, LDM, VQ, run  # noqa: E402
from tinyldm.training import accelerator  # noqa: E402

# Trainings would use all cores. Tiny networks are slower with more than one, and pytest-xdist uses the others.
torch.set_num_threads(1)
accelerator.cores = lambda: 1


@pytest.fixture(scope="session")
def small_faces(tmp_path_factory) -> Path:
    """A folder with 60 toy faces, which take a second to encode."""
    from tinyldm.data import toyfaces

    folder = tmp_path_factory.mktemp("faces")
    for index in range(60):
        toyfaces.draw(0, index, 24).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def vq_run(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("vq") / "run"
        run(patch, train_vq, "--output_dir", path, *DATA, *EVERY_STEP, *VQ, "--train.max_steps", 4, curves=True)
    return path


@pytest.fixture(scope="session")
def ldm_args(vq_run, small_faces, tmp_path_factory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    data = ["--data.name", small_faces, "--data.eval_fraction", "0.2", "--data.resolution", "16", "--data.cache_dir", cache]
    return [*map(str, data), *EVERY_STEP, *LDM, "--first_stage.path", str(vq_run)]


@pytest.fixture
def forgetful():
    """Accelerate remembers the precision of earlier runs and refuses another one in the same process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def traced(monkeypatch) -> None:
    """torch.compile traces the graphs, but generates no code, which takes minutes."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network, mode: compiled(network, backend="aot_eager"))


@pytest.fixture(scope="session")
def ldm_run(ldm_args, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("ldm") / "run"
        steps = ["--train.max_steps", 6, "--train.checkpointing_steps", 2]
        run(patch, train_ldm, "--output_dir", path, *ldm_args, *steps, curves=True)
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub on loopback for this Python process. Pushes are retried without a pause."""
    from tests.support.hub_server import HubServer, user
    from tests.support.published import TOKEN, connect
    from tinyldm.training import hub

    with HubServer(tmp_path / "hub", {TOKEN: user("me", "lab")}) as server:
        connect(monkeypatch, server)
        monkeypatch.setattr(hub, "PAUSES", (0.0, 0.0))
        yield server


def pytest_collection_modifyitems(items):
    """Mark tests that use the runs of this file as slow, since these are trained first. The slowest, the labs, start."""
    items.sort(key=lambda item: "test_theory" not in item.nodeid)
    for item in items:
        if "vq_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_configure(config):
    os.environ["TINYLDM_FUZZ"] = str(config.getoption("--fuzz"))


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=3, help="how often test_interruption.py kills each kind of training")
    parser.addoption("--fuzz", type=float, default=1.0, help="how many times as many random inputs: see support/fuzz.py")
