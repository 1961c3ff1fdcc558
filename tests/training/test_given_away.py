"""A push gives away nothing about the machine and its user; nothing stored or printed holds a password or a token."""

import getpass
import json
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import evaluate
import train_ldm
import train_vq
from tests.support import zsl as support
from tests.support.evaluations import FakeNetwork
from tests.support.hub_server import user
from tests.support.published import HUB, TOKEN, environment, finished_run
from tests.support.runs import DIGITS, EVERY_STEP, LDM, ROOT, VQ, run
from tinyldm.config.parsing import parse
from tinyldm.config.paths import shareable
from tinyldm.config.schema import HubConfig, TrainDDPM
from tinyldm.data import toyfaces
from tinyldm.errors import UserError, without_secrets
from tinyldm.metrics import features
from tinyldm.training import hub
from zsl.__main__ import main as zsl

SECRET = "Anna-Private-Home"  # a folder of all paths on this machine


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The user's home, which is the working folder too, and has the name of the user and the machine."""
    place = tmp_path / SECRET
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setattr(getpass, "getuser", lambda: SECRET)
    monkeypatch.setattr(socket, "gethostname", lambda: SECRET)
    monkeypatch.setattr(platform, "node", lambda: SECRET)
    monkeypatch.chdir(place)
    return place


def uploaded(server, repo_id: str) -> dict[str, bytes]:
    """The pushed files, once nothing private is found in them."""
    pushed = server.files(repo_id)
    private = [SECRET, TOKEN, str(Path.home()), getpass.getuser(), socket.gethostname(), platform.node()]
    for name, content in pushed.items():
        assert [text for text in private if text.encode() in content or text in name] == [], name
    return pushed


@pytest.mark.slow
def test_a_push_holds_nothing_private(server, home, monkeypatch):
    """A first stage, a denoiser over it and its evaluation, with absolute paths, ~ and .. wherever there may be a path."""
    for part, numbers in (("train", range(40)), ("validation", range(40, 64))):
        (home / "faces" / part).mkdir(parents=True)
        for index in numbers:
            toyfaces.draw(0, index, 24).save(home / "faces" / part / f"{part}-{index}.png")
    data = ["--data.name", home / "faces", "--data.eval_split", "validation", "--data.resolution", 16]
    pushed = ["--data.cache_dir", "~/cache", "--train.max_steps", 2, "--hub.push", "true", "--hub.repo_id"]
    tensorboard = [*EVERY_STEP, "--train.log_with", "tensorboard"]
    run(monkeypatch, train_vq, "--output_dir", home / "vq", *data, *tensorboard, *VQ, *pushed, "me/vq")
    assert yaml.safe_load(uploaded(server, "me/vq")["config.yaml"])["data"]["name"] == "faces"

    ldm = [*data, *tensorboard, *LDM, *pushed, "me/faces", "--first_stage.path"]
    run(monkeypatch, train_ldm, "--output_dir", f"../{SECRET}/ldm", *ldm, f"../{SECRET}/vq")
    config = json.loads(uploaded(server, "me/faces")["vqvae/config.json"])
    assert config["_class_name"] == "VQModel" and "scaling_factor" in config
    local = yaml.safe_load((home / "ldm" / "config.yaml").read_text())
    assert local["first_stage"]["path"] == f"../{SECRET}/vq"  # so that the run can be resumed and evaluated

    monkeypatch.setitem(features.NETWORKS, "inception", FakeNetwork().load)
    run(monkeypatch, evaluate, "--model", home / "ldm", "--num_images", 24, "--num_inference_steps", 2)
    hub.push_command(str(home / "ldm"))
    found = json.loads(uploaded(server, "me/faces")["evaluation.json"])
    assert found["images"]["model"] == "ldm" and found["results"][0]["reference"]["data"] == "faces"
    assert "samples of ldm (" in uploaded(server, "me/faces")["README.md"].decode()


@pytest.mark.slow
def test_a_pushed_zero_shot_run_holds_nothing_private(server, home):
    args = ["train", "--output_dir", str(home / "run"), "--data.path", str(support.folder(home / "birds")), *support.TINY]
    pushed = ["--hub.push", "true", "--hub.repo_id", "me/birds", "--data.texts", str(home / "birds" / "articles.jsonl")]
    zsl([*args, "--seeds", "1", "--method", "gazsl", *pushed])
    assert {"README.md", "config.yaml", "results.csv", "model/classes.npz"} <= uploaded(server, "me/birds").keys()


def test_links_in_a_run_are_not_followed_by_a_push(server, tmp_path, capsys):
    (tmp_path / "private").mkdir()
    for name in ("key.txt", "step-0000099.png", "results.csv"):
        (tmp_path / "private" / name).write_text("a private text")
    folder = finished_run(tmp_path / "run")
    (folder / "pipeline" / "key.txt").symlink_to(tmp_path / "private" / "key.txt")
    (folder / "pipeline" / "more").symlink_to(tmp_path / "private")
    (folder / "samples" / "step-0000099.png").symlink_to(tmp_path / "private" / "step-0000099.png")
    for name in ("results.csv", "loss.png", "README.md"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "private" / "results.csv")
    hub.push(folder, HUB, "Step 20")
    pushed = server.files("me/faces")
    assert all(b"a private text" not in content for content in pushed.values())
    assert {"model_index.json", "samples/step-0000020.png", "README.md"} <= pushed.keys() and "loss.png" not in pushed
    assert f"not pushed: {folder / 'loss.png'} is a symbolic link\n" in capsys.readouterr().err
    shutil.move(folder / "samples", tmp_path / "private")
    (folder / "samples").symlink_to(tmp_path / "private")
    hub.push(folder, HUB, "again")
    assert "samples/step-0000099.png" not in server.files("me/faces")
    shutil.rmtree(folder / "pipeline")
    (folder / "pipeline").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match="pipeline is a symbolic link"):
        hub.push(folder, HUB, "once more")


@pytest.mark.parametrize(
    ("value", "shared"),
    [
        ("/home/anna/faces", "faces"),
        ("/home/anna/faces/", "faces"),
        ("~/faces", "faces"),
        ("~anna/faces", "faces"),
        ("~", ""),
        ("../../anna/faces/**/*.png", "*.png"),
        ("file:///home/anna/faces", "faces"),
        ("C:\\Users\\anna\\faces", "faces"),
        ("\\\\server\\anna\\faces", "faces"),
        ("https://anna:secret@host.org/faces/1.tar?sig=abc", "https://host.org/faces/1.tar"),
        ("https://anna@host.org/faces", "https://host.org/faces"),
        (f"https://host.org/?token={TOKEN}", "https://host.org/"),
        ("user/faces", "user/faces"),
        ("runs/faces64-vq", "runs/faces64-vq"),
        ("hf://datasets/user/faces/*.parquet", "hf://datasets/user/faces/*.parquet"),
        ("train[:5%]", "train[:5%]"),
        (0.5, 0.5),
        (None, None),
        ({"train": ["/a/b.tar", "c.tar"]}, {"train": ["b.tar", "c.tar"]}),
    ],
)
def test_of_a_path_only_the_last_part_is_given_away(value, shared):
    assert shareable(value) == shared


# ------------------------------------------------------------------------------------------------- passwords and tokens


SECRETS = [
    ("--data.data_files", "https://anna:s3cret@host.org/faces.tar"),
    ("--data.data_files", '["faces.tar", "ftp://anna:s3cret@host.org/more.tar"]'),
    ("--data.data_files", '{"train": "s3://key:s3cret@bucket/faces.tar"}'),
    ("--data.name", "https://anna:s3cret@host.org/faces.tar"),
    ("--hub.repo_id", TOKEN),
    ("--hub.repo_id", f"me/{TOKEN}"),
    ("--data.revision", TOKEN),
    ("--resume", f"runs/{TOKEN}"),
]


@pytest.mark.parametrize(("key", "value"), SECRETS)
def test_a_config_with_a_password_or_token_is_refused_and_not_repeated(key, value, tmp_path):
    args = ["--output_dir", str(tmp_path / "run"), "--train.max_steps", "1", *DIGITS, key, value]
    with pytest.raises(UserError, match=rf"{key[2:]}\S* holds a (token|password)") as caught:
        parse(TrainDDPM, "", args)
    assert "s3cret" not in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.slow
def test_no_error_repeats_a_password_or_token(server, tmp_path):
    folder = finished_run(tmp_path / "run", HubConfig())
    training = [ROOT / "train_ddpm.py", "--output_dir", tmp_path / "new", *DIGITS, "--train.max_steps", "1"]
    push = ["-m", "tinyldm.training.hub", "push", folder, "--repo_id"]
    for command in ([*training, "--hub.private", TOKEN], [*training, "--train.max_steps", f"https://a:s3cret@b/{TOKEN}"]):
        ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
        assert ended.returncode == 2 and TOKEN not in ended.stderr and "s3cret" not in ended.stderr
    for repo_id in (TOKEN, f"{TOKEN}/faces"):
        ended = subprocess.run(
            [sys.executable, *push, repo_id], capture_output=True, text=True, cwd=ROOT, env=environment(server, tmp_path / "h")
        )
        assert ended.returncode == 2 and TOKEN not in ended.stderr + ended.stdout
    assert not (tmp_path / "new").exists()


def test_a_token_in_the_place_of_a_repository_is_not_repeated(server):
    server.tokens[TOKEN] = user("me")
    for repo_id in (TOKEN, f"{TOKEN}/faces"):
        with pytest.raises(UserError) as caught:
            hub.check_token(HubConfig(True, repo_id))
        assert TOKEN not in str(caught.value) and "***" in str(caught.value)


def test_secrets_are_found_in_any_text():
    text = f"a {TOKEN}, https://u:p@h/x and ftp://u:p@h; https://h/x, mail me@h, 3:4@5"
    assert without_secrets(text) == "a ***, https://***@h/x and ftp://***@h; https://h/x, mail me@h, 3:4@5"


def test_labels_that_look_like_paths_keep_their_names(tmp_path):
    values = {"columns": [["kind", ["/m/01g317", "~x", "../a/b"]]], "_name_or_path": "/home/me/run/pipeline/labels"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    hub._copy(tmp_path / "config.json", tmp_path / "pushed/config.json")
    assert json.loads((tmp_path / "pushed/config.json").read_text()) == values | {"_name_or_path": "labels"}
