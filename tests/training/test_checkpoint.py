import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinyldm.errors import UserError
from tinyldm.training import checkpoint
from tinyldm.training.checkpoint import CHECKSUMS, Damaged

FILES = ["checksums.json", "ema.safetensors", "optimizers.pt", "state.json", "unet.safetensors"]


def write(run: Path, step: int = 10) -> Path:
    random = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, 3, 3, generator=random).to(memory_format=torch.channels_last)  # as in training
    networks = {"unet": {"weight": weight, "count": torch.tensor(7)}, "ema": {"weight": weight / 3}}
    optimizers = {"unet": {"state": {0: {"step": torch.tensor(5.0), "exp_avg": weight / 7}}, "param_groups": [{"lr": 1e-4}]}}
    return checkpoint.save(run, step, networks, optimizers, {"step": step, "best_figure": float("inf"), "config": {"a": [1]}})


def test_a_checkpoint_is_loaded_bit_for_bit(tmp_path):
    folder = write(tmp_path)
    assert folder == tmp_path / "checkpoints" / "step-10"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    networks, optimizers, state = checkpoint.load(folder)
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(10))
    assert torch.equal(networks["unet"]["weight"], weight) and networks["unet"]["count"] == 7
    assert torch.equal(networks["ema"]["weight"], weight / 3)
    assert torch.equal(optimizers["unet"]["state"][0]["exp_avg"], weight / 7)
    assert optimizers["unet"]["param_groups"] == [{"lr": 1e-4}]
    assert state == {"step": 10, "best_figure": float("inf"), "config": {"a": [1]}}


def test_saving_again_replaces(tmp_path):
    write(tmp_path)
    checkpoint.save(tmp_path, 10, {"unet": {"weight": torch.ones(2)}}, {}, {"step": 10})
    networks, _, _ = checkpoint.load(tmp_path / "checkpoints" / "step-10")
    assert list(networks) == ["unet"] and torch.equal(networks["unet"]["weight"], torch.ones(2))


def refused(folder: Path) -> str:
    with pytest.raises(Damaged) as caught:
        checkpoint.load(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_each_damaged_file_is_named(tmp_path, name):
    file = write(tmp_path) / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (flipped, whole[:-1], b"", b"\xff nonsense", b"[]", b"null", b"{}", b'"text"'):
        file.write_bytes(damaged)
        # A wrong byte in the list of checksums looks like a damaged file.
        assert name in refused(file.parent) or (name == "checksums.json" and damaged == flipped)
    file.unlink()
    assert name in refused(file.parent)
    file.write_bytes(whole)
    checkpoint.load(file.parent)


def test_pickled_code_is_not_run(tmp_path):
    folder, victim = write(tmp_path), tmp_path / "victim"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(victim),)

    pickle.loads(pickle.dumps(Malicious()))
    victim.rmdir()  # the attack would work
    file = folder / "optimizers.pt"
    for protocol in ("zip", "bare"):
        if protocol == "zip":
            torch.save(Malicious(), file)
            assert zipfile.is_zipfile(file)
        else:
            file.write_bytes(pickle.dumps(Malicious(), protocol=2))
        sums = json.loads((folder / "checksums.json").read_text())
        sums["optimizers.pt"] = checkpoint._sha256(file)  # an attacker can update the checksums too
        (folder / "checksums.json").write_text(json.dumps(sums))
        assert "optimizers.pt" in refused(folder)
        assert not victim.exists()


# ----------------------------------------------------------------------------------------------------- finding, pruning


def test_latest_skips_damaged_checkpoints_with_a_warning(tmp_path, capsys):
    for step in (5, 10, 20, 100):
        write(tmp_path, step)
    folders = tmp_path / "checkpoints"
    (folders / "step-x").mkdir()
    assert checkpoint.find(tmp_path, "latest") == folders / "step-100"  # by number, not by name
    assert capsys.readouterr().err == ""
    (folders / "step-100" / "state.json").unlink()
    with (folders / "step-20" / "unet.safetensors").open("ab") as file:
        file.write(b"x")
    assert checkpoint.find(tmp_path, "latest") == folders / "step-10"
    message = capsys.readouterr().err.splitlines()
    assert len(message) == 2 and "step-100" in message[0] and "state.json" in message[0]
    assert "step-20" in message[1] and "unet.safetensors" in message[1]


def test_nothing_to_resume_from(tmp_path):
    assert checkpoint.find(tmp_path, "latest") is None
    (write(tmp_path) / "unet.safetensors").unlink()
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        checkpoint.find(tmp_path, "latest")


def test_a_named_checkpoint(tmp_path):
    folder = write(tmp_path)
    write(tmp_path, 20)
    assert checkpoint.find(tmp_path, str(folder)) == folder
    with pytest.raises(UserError, match=r"step-30 does not exist; .* has steps \[10, 20\]"):
        checkpoint.find(tmp_path, str(folder.with_name("step-30")))
    (folder / "unet.safetensors").unlink()
    with pytest.raises(Damaged, match=r"unet\.safetensors"):  # named explicitly, it is not skipped
        checkpoint.find(tmp_path, str(folder))


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 10, 20):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2, best=2)
    assert checkpoint.steps(tmp_path) == [2, 10, 20]
    checkpoint.prune(tmp_path, keep=2, best=20)
    assert checkpoint.steps(tmp_path) == [10, 20]
    checkpoint.prune(tmp_path, keep=5, best=None)
    assert checkpoint.steps(tmp_path) == [10, 20]
    checkpoint.prune(tmp_path, keep=1, best=None)
    assert checkpoint.steps(tmp_path) == [20]


# ------------------------------------------------------------------------------------------------------ failing to save


@pytest.mark.parametrize("broken", ["save_file", "torch.save", "_sync", "_sha256"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_saving_leaves_no_folder_and_the_old_ones(tmp_path, monkeypatch, broken, error):
    write(tmp_path, 5)

    def fails(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"tinyldm.training.checkpoint.{broken}", fails)
        with pytest.raises(type(error)):
            write(tmp_path, 10)
        with pytest.raises(type(error)):
            write(tmp_path, 5)  # the old one is deleted only when the new one is complete
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    checkpoint.load(tmp_path / "checkpoints" / "step-5")


def test_the_next_save_removes_the_remains_of_a_kill(tmp_path):
    (tmp_path / "checkpoints" / ".saving-7").mkdir(parents=True)
    write(tmp_path, 10)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-10"]
    assert checkpoint.steps(tmp_path) == [10]


def resummed(folder: Path) -> None:
    """Give the files of a checkpoint right checksums."""
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(sums))


@pytest.mark.parametrize("file", ["optimizers.pt", "state.json", "unet.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[" * 5000, bytes(200)], ids=len)
def test_damaged_files_with_right_checksums(tmp_path, file, content):
    folder = write(tmp_path)
    (folder / file).write_bytes(content)
    resummed(folder)
    with pytest.raises(UserError) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_resumed(tmp_path, value):
    folder = write(tmp_path)
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    weights["weight"][0, 0, 0, 0] = value
    save_file(weights, file)
    resummed(folder)
    with pytest.raises(UserError, match=rf"is not finite in {file.name}"):
        checkpoint.load(folder)
