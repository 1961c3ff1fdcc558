"""Faults between a run and the Hub: what the user sees, and that nothing is lost. With the real client over HTTP."""

import errno
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download

import train_vq
from tests.support import models, sources
from tests.support.published import HUB, TOKEN, environment, finished_run
from tests.support.runs import DATA, EVERY_STEP, ROOT, VQ, files, run
from tinyldm.config.schema import FirstStageConfig
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import load_first_stage
from tinyldm.models.loading import load_model
from tinyldm.training import hub

ALWAYS = 10**6
UNET = "unet/diffusion_pytorch_model.safetensors"
SIZE = 195_132  # of it


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run, and its weights a little later."""
    changed = models.unet()
    torch.nn.init.ones_(changed.conv_out.bias)
    changed.save_pretrained(tmp_path_factory.mktemp("later"))
    return finished_run(tmp_path_factory.mktemp("finished")), tmp_path_factory.getbasetemp() / "later0"


@pytest.fixture
def pushed(server, finished, tmp_path):
    """A run that was pushed and then trained further, so weights and metrics differ."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    hub.push(folder, HUB, "first")
    shutil.copytree(finished[1], folder / "pipeline" / "unet", dirs_exist_ok=True)
    (folder / "metrics.csv").write_text("step,eval_loss\n20,0.25\n30,0.125\n")
    return folder


def whole(server, folder) -> bool:
    """Whether the repository holds what the run holds now."""
    pairs = [(name, folder / name) for name in ("README.md", "metrics.csv", "loss.png")]
    pairs += [(name, folder / "pipeline" / name) for name in files(folder / "pipeline")]
    return all(server.files("me/faces")[name] == file.read_bytes() for name, file in pairs)


# --------------------------------------------------------------------------------------------------- pushes that recover


@pytest.mark.parametrize(
    "part", ["/repos/create", "/validate-yaml", "/preupload/", "/objects/batch", "/lfs/", "/verify", "/commit/"]
)
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429, "headers": {"Retry-After": "1"}}, {"lose": True}])
def test_a_push_recovers_from_a_fault_in_any_request(server, pushed, part, fault, monkeypatch):
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    server.fail("PUT" if part == "/lfs/" else "POST", part, **fault)
    hub.push(pushed, HUB, "second")
    assert server.history("me/faces") == ["first", "second"]  # and no third one if only a response was lost
    assert whole(server, pushed)


def test_a_connection_that_breaks_during_the_weights_sends_them_again(server, pushed):
    server.fail("PUT", "/lfs/", cut=SIZE // 2, times=2)
    hub.push(pushed, HUB, "second")
    assert whole(server, pushed)
    assert server.count("PUT", "/lfs/") == 4 + 3  # those of the first push; then the UNet, complete at the third attempt


def test_weights_that_arrive_changed_are_refused_and_sent_again(server, pushed):
    server.fail("PUT", "/lfs/", flip=True)
    hub.push(pushed, HUB, "second")
    assert whole(server, pushed)


def test_a_retry_after_is_respected(server, pushed, monkeypatch):
    slept = []
    monkeypatch.setattr(hub.time, "sleep", slept.append)
    server.fail("POST", "/commit/", status=429, headers={"Retry-After": "7"})
    hub.push(pushed, HUB, "second")
    assert slept == [7.0]
    server.fail("POST", "/repos/create", status=429, message="slow down", headers={"Retry-After": "3600"})
    with pytest.raises(UserError, match=r"failed \(429: slow down\)"):
        hub.push(pushed, HUB, "third")
    assert slept == [7.0]


@pytest.mark.slow
def test_a_hub_that_does_not_respond_is_not_waited_for_forever(server, pushed, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 1.0)
    server.fail("PUT", "/lfs/", hang=True)
    hub.push(pushed, HUB, "second")
    assert whole(server, pushed)


# ------------------------------------------------------------------------------------------------------ pushes that fail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "part", "fault", "words", "tries"),
    [
        ("POST", "/preupload/", {"status": 401, "message": "Invalid token"}, "401: Invalid token", 1),
        ("POST", "/commit/", {"status": 403, "message": "You don't have the rights"}, "403: You don't have the rights", 1),
        ("POST", "/objects/batch", {"status": 404, "message": "Repository not found"}, "404: Repository not found", 1),
        ("POST", "/commit/", {"status": 500, "message": "oh no"}, "500: oh no", 3),
        ("PUT", "/lfs/", {"status": 500, "message": "oh no"}, "500: oh no", 3),
        ("PUT", "/lfs/", {"flip": True}, "400: BadDigest: the 195132 bytes that arrived are not those of sha256", 3),
        ("PUT", "/lfs/", {"cut": 1000}, "", 3),
        ("POST", "/repos/create", {"cut": 0}, "", 3),
    ],
)
def test_a_push_that_fails_leaves_the_old_commit_and_can_be_repeated(server, pushed, method, part, fault, words, tries, capsys):
    before = server.files("me/faces")
    server.requests.clear()
    server.fail(method, part, times=ALWAYS, **fault)
    with pytest.raises(UserError) as caught:
        hub.push(pushed, HUB, "second")
    assert str(caught.value).startswith(f"the push to me/faces failed ({words}") and "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"; the run is complete in {pushed}")
    assert server.count("POST", "/repos/create") == tries
    assert capsys.readouterr().err.count("trying again in 0 s\n") == tries - 1
    assert server.history("me/faces") == ["first"] and server.files("me/faces") == before
    server.faults.clear()
    hub.push(pushed, HUB, "second")
    assert whole(server, pushed)


@pytest.mark.slow
def test_a_full_quota_is_reported_at_once_and_the_command_repeats_the_push(server, pushed, tmp_path):
    before, server.quota = server.files("me/faces"), 400_000
    command = [sys.executable, "-m", "tinyldm.training.hub", "push", pushed]

    def again():
        ours = environment(server, tmp_path / "home")
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ours)

    full = again()
    assert full.returncode == 2 and server.files("me/faces") == before
    assert full.stderr == (
        "error: the push to me/faces failed (403: Private repository storage limit reached, please upgrade your plan); "
        f"the run is complete in {pushed}\n"
    )
    server.quota = 10**9
    assert again().returncode == 0
    assert whole(server, pushed)


@pytest.mark.slow
def test_the_token_is_never_shown(server, pushed, tmp_path, capfd):
    """Not even if the Hub's message contains it, or if the push runs during training."""
    server.fail("POST", "/commit/", status=500, message=f"what is {TOKEN}?", times=ALWAYS)
    with pytest.raises(UserError) as caught:
        hub.push(pushed, HUB, "second")
    assert "500: what is ***?" in str(caught.value) and TOKEN not in str(caught.value)
    background = hub.BackgroundPush(pushed, HUB)
    background.start("Step 30")
    background.thread.join()
    server.faults.clear()
    background.finish("last")
    shown = capfd.readouterr()
    assert shown.err.count("***") == 5 and TOKEN not in shown.out + shown.err
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):  # the run, and the files of the Hub
        assert TOKEN.encode() not in file.read_bytes(), file


# -------------------------------------------------------------------------------------------------- while training


def test_training_continues_during_a_push_and_the_push_has_the_saved_files(server, pushed, capsys):
    saved = {name: (pushed / name).read_bytes() for name in ("metrics.csv", f"pipeline/{UNET}")}
    server.fail("PUT", "/lfs/", hang=True)
    background = hub.BackgroundPush(pushed, HUB)
    background.start("Step 30")
    while not server.count("PUT", "/lfs/"):
        threading.Event().wait(0.01)
    background.start("Step 40")
    assert capsys.readouterr().err == "Step 40: not pushed, the last push is still running\n"
    # Meanwhile a later save writes other metrics, and replaces the pipeline folder.
    (pushed / "metrics.csv").write_text("step\n50\n")
    shutil.rmtree(pushed / "pipeline")
    finished_run(pushed)
    server.release.set()
    background.thread.join()
    assert server.history("me/faces") == ["first", "Step 30"]
    assert server.files("me/faces")["metrics.csv"] == saved["metrics.csv"]
    assert server.files("me/faces")[UNET] == saved[f"pipeline/{UNET}"]
    background.finish("Step 50")
    assert server.history("me/faces") == ["first", "Step 30", "Step 50"] and whole(server, pushed)
    assert not list(pushed.glob(".pushing*"))


@pytest.mark.slow
def test_failed_pushes_do_not_stop_a_training(server, tmp_path, monkeypatch, capsys):
    """Not by those during training. At the end it says what to do, and the run is complete."""
    monkeypatch.setattr("tinyldm.training.hub.check_token", lambda hub: None)
    server.fail("POST", "/repos/create", status=403, message="no", times=ALWAYS)
    args = [*DATA, *EVERY_STEP, *VQ, "--hub.push", "true", "--hub.push_steps", 1, "--hub.repo_id", "me/vq"]
    folder = tmp_path / "my runs"
    with pytest.raises(UserError) as caught:
        run(monkeypatch, train_vq, "--output_dir", folder, *args, "--train.max_steps", 2)
    failed = f"the push to me/vq failed (403: no); the run is complete in {folder}"
    assert str(caught.value) == f"{failed}: `python -m tinyldm.training.hub push '{folder}'` repeats the push"
    assert capsys.readouterr().err.count(f"Step 1: {failed}; training continues\n") == 1
    assert (folder / "checkpoints" / "step-2" / "state.json").exists()
    server.faults.clear()
    hub.push_command(str(folder))
    assert server.history("me/vq") == ["Push my runs"]


def test_a_full_disk_for_the_copies_of_a_push_does_not_stop_a_training(server, pushed, monkeypatch, capsys):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub.shutil, "copy2", full)
    hub.BackgroundPush(pushed, HUB).start("Step 30")
    expected = f"Step 30: {pushed} cannot be pushed: [Errno {errno.ENOSPC}] No space left on device; training continues\n"
    assert capsys.readouterr().err == expected
    assert not list(pushed.glob(".pushing*"))


def test_without_hard_links_files_are_copied(server, pushed, monkeypatch):
    monkeypatch.setattr(hub.os, "link", lambda *args: (_ for _ in ()).throw(OSError("no links here")))
    hub.push(pushed, HUB, "second")
    assert whole(server, pushed)


def test_the_remains_of_a_killed_push_are_removed(pushed):
    (pushed / ".pushing-1-2" / "unet").mkdir(parents=True)
    hub.BackgroundPush(pushed, HUB)
    assert not list(pushed.glob(".pushing*"))


# --------------------------------------------------------------------------------------------------- what is downloaded


def test_an_interrupted_download_is_resumed(server, pushed, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # an incomplete chunk is lost; chunks are 10 MB
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    server.fail("GET", UNET, cut=100_500)
    server.fail("GET", UNET, cut=50_000)
    with open(hf_hub_download("me/faces", UNET), "rb") as file:
        assert file.read() == server.files("me/faces")[UNET]
    ranges = [asked for method, path, asked in server.requests if method == "GET" and path.endswith(UNET)]
    assert ranges == ["", "bytes=100000-", "bytes=150000-"]


LOADS = {"model": lambda: load_model("me/faces"), "first_stage.path": lambda: load_first_stage(FirstStageConfig("me/faces"))}


@pytest.mark.parametrize("what", LOADS)
@pytest.mark.parametrize(
    ("method", "part", "fault", "words"),
    [
        ("GET", "/", {"status": 401, "message": "Invalid token"}, "401: Invalid token"),
        ("HEAD", "/", {"status": 403, "message": "not yours"}, "403: not yours"),
        ("GET", "/", {"status": 404, "message": "Repository not found"}, "404: Repository not found"),
        ("GET", "/config.json", {"status": 429, "message": "slow down", "headers": {"Retry-After": "1"}}, "429: slow down"),
        ("GET", "/config.json", {"status": 500, "message": "oh no"}, "500: oh no"),
        ("GET", ".safetensors", {"cut": 0}, "peer closed connection"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_and_loads_later(server, pushed, what, method, part, fault, words):
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    server.fail(method, part, times=ALWAYS, **fault)
    with pytest.raises(UserError) as caught:
        LOADS[what]()
    assert str(caught.value).startswith(f"{what} me/faces cannot be loaded ({words}") and "\n" not in str(caught.value)
    server.faults.clear()
    LOADS[what]()


@pytest.fixture
def stream(server, tmp_path):
    """A parquet data set with one shard on the Hub, larger than the 32 MB read at once. Returns its cells and source."""
    cells = [os.urandom(1_000_000) for _ in range(50)]
    sources.table(cells).to_parquet(tmp_path / "train.parquet", batch_size=10)
    HfApi().create_repo("me/set", repo_type="dataset")
    shard = CommitOperationAdd("data/train-00000-of-00001.parquet", tmp_path / "train.parquet")
    HfApi().create_commit("me/set", [shard], commit_message="x", repo_type="dataset")
    return cells, sources.whole("me/set")


def broken_off(server, stream, **fault) -> list[bytes]:
    """Read a shard with a fault in its second block. Its footer is read first, from the last 70 kB."""
    source = stream[1]
    server.fail("GET", ".parquet", within=range(1_000_000, 49_900_000), **fault)
    got = [source.content(fetch()) for fetch in source.epoch(None, 0)]
    assert server.faults[-1].times < fault.get("times", 1)  # the fault did occur
    return got


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"cut": 1_000_000, "times": 3}, {"cut": 0, "times": 20}, {"status": 503, "times": 3}])
def test_an_interrupted_shard_yields_each_image_once_in_order(server, stream, fault):
    assert broken_off(server, stream, **fault) == stream[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"), [({"cut": 1000}, "peer closed connection"), ({"status": 500, "message": "oh no"}, "oh no")]
)
def test_a_shard_that_stays_unreachable_is_reported(server, stream, fault, words):
    with pytest.raises(UserError, match=rf"data set 'me/set' cannot be reached \((.|\n)*{words}"):
        broken_off(server, stream, **fault, times=ALWAYS)
