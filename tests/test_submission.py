"""The zip that a student hands in."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from tests.support.published import finished_run
from tests.support.runs import ROOT
from tinyldm import submission
from tinyldm.errors import UserError


@pytest.fixture
def done(tmp_path):
    return finished_run(tmp_path / "faces")


def unpacked(path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode(errors="replace") for name in archive.namelist()}


def test_the_zip_has_report_numbers_pictures_and_code_but_no_weights(done, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "code_state", lambda root: ("abc123", "- old\n+ token hf_" + "a" * 34, ["Makefile"]))
    path = submission.submit(str(done), "Jane Doe", folder=str(tmp_path))
    assert path.name.startswith("submission-jane-doe-2")
    files = unpacked(path)
    pictures = {"run/loss.png", "run/samples/step-0000010.png", "run/samples/step-0000020.png"}
    assert (
        pictures | {"run/report.html", "run/README.md", "run/metrics.csv", "run/config.yaml", "run/logs/events"} <= files.keys()
    )
    assert not any("checkpoints" in name or "safetensors" in name for name in files)
    assert files["code/commit.txt"] == "abc123\n" and files["code/changes.diff"].startswith("- old\n+ token ")
    assert "a" * 34 not in files["code/changes.diff"] and ".PHONY" in files["code/added/Makefile"]
    assert str(tmp_path) not in files["run/config.yaml"] + files["COVER.md"]


def test_the_cover_says_what_was_trained_and_which_limits_were_met(done, tmp_path):
    path = submission.submit(str(done), "Jane Doe", "hours=0.01,parameters=12345,images=159", str(tmp_path))
    cover = unpacked(path)["COVER.md"]
    assert "# Jane Doe: faces" in cover and "| trained | latent diffusion model, 12,345 parameters |" in cover
    assert "| for | 1 min 1 s: 20 steps of 8 images |" in cover and "| held-out loss | 0.25 |" in cover
    assert "| at most 0.01 hours of training | 0.02 | **no** |" in cover
    assert "| at most 12,345 parameters | 12,345 | yes |" in cover
    assert "| at most 159 images seen | 160 | **no** |" in cover
    assert "| all 20 steps of the recipe | 20 | yes |" in cover and "| measured with evaluate.py |  | **no** |" in cover


def test_the_code_is_a_commit_a_diff_and_new_files(tmp_path):
    def git(*args):
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", *who, *args], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "old.py").write_text("a = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "old.py").write_text("a = 2\n")
    (tmp_path / "new.yaml").write_text("b: 3\n")
    (tmp_path / "weights.bin").write_text("large")
    commit, changes, added = submission.code_state(tmp_path)
    assert len(commit) == 40 and "-a = 1\n+a = 2\n" in changes and added == ["new.yaml"]


def test_without_git_the_version_stands_for_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert submission.code_state(tmp_path)[0].startswith("not a git checkout: tinyldm ")


@pytest.mark.parametrize(
    ("run", "name", "limits", "message"),
    [
        ("", " ", "", "whose work is it"),
        ("", "Jane", "", "is no run with an export"),
        ("faces", "Jane", "hours=ten", "limits: 'hours' is not hours or"),
        ("faces", "Jane", "weight=1", "limits: 'weight' is not hours or"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_zip(run, name, limits, message, done, tmp_path):
    with pytest.raises(UserError, match=message):
        submission.submit(str(tmp_path / run), name, limits, str(tmp_path))
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.slow
def test_make_submission(done, tmp_path):
    environment = {**os.environ, "RUN": str(done), "NAME": "J. O'Neil", "PYTHONPATH": str(ROOT)}
    dry = subprocess.run(["make", "-n", "submission"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "-m tinyldm.submission" in dry.stdout
    subprocess.run([sys.executable, "-m", "tinyldm.submission"], cwd=tmp_path, env=environment, check=True)
    (path,) = tmp_path.glob("submission-j-o-neil-*.zip")
    assert json.loads(unpacked(path)["run/card.json"])["template"] == "ldm"
