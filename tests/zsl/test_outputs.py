"""Files and folders of others are not replaced or deleted by zsl."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import zsl as support
from tests.support.runs import files
from tinyldm.errors import UserError
from tinyldm.files import refuse_existing
from tinyldm.manifest import Manifest
from zsl.__main__ import main
from zsl.simulate import simulate


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


@pytest.fixture
def inputs(tmp_path) -> Path:
    """Inputs of the commands that write one file."""
    support.articles(tmp_path / "articles.jsonl")
    support.original_cub(tmp_path / "CUB2011")
    (tmp_path / "flowers" / "tulip").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "flowers" / "tulip" / "1.png")
    return tmp_path


COMMANDS = {
    "text": ["text", "--articles", "articles.jsonl"],
    "features": ["features", "--images", "flowers"],
    "convert": ["convert", "--from", "CUB2011"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_existing_file_is_replaced_only_with_overwrite(command, inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    (inputs / "out.npz").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"out.npz exists already: choose another file, or use --overwrite true"):
        main([*COMMANDS[command], "--out", "out.npz"])
    assert (inputs / "out.npz").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("text", "articles.jsonl"),
        ("text", "./CUB2011/../articles.jsonl"),
        ("text", "link.jsonl"),
        ("features", "flowers/tulip/1.png"),
        ("convert", "CUB2011/labels_train.pkl"),
    ],
)
def test_an_input_is_never_replaced(command, out, inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    (inputs / "link.jsonl").symlink_to(inputs / "articles.jsonl")
    before = contents(inputs)
    with pytest.raises(UserError, match="is one of the inputs, or in one of them"):
        main([*COMMANDS[command], "--out", out, "--overwrite", "true"])
    assert contents(inputs) == before


def test_overwrite_replaces(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    for command in ("text", "convert"):
        (inputs / "out.npz").write_bytes(b"old")
        main([*COMMANDS[command], "--out", "out.npz", "--overwrite", "true"])
        assert "texts" in np.load(inputs / "out.npz")
    refuse_existing(inputs / "new.npz", False, inputs)  # a new file in the folder of an input is none of the inputs


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run and its arguments."""
    place = tmp_path_factory.mktemp("zsl")
    args = ["train", "--data.path", str(support.folder(place / "birds")), *support.TINY, "--seeds", "1", "--method", "gazsl"]
    args += ["--output_dir", str(place / "run")]
    main(args)
    return place / "run", args


@pytest.mark.slow
def test_everything_that_a_run_and_its_evaluation_write_is_on_the_list(finished):
    run, _ = finished
    main(["evaluate", "--run", str(run)])
    main(["evaluate", "--run", str(run)])  # its own files are replaced
    assert Manifest(run).foreign() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [["--data.path", "nothing"], ["--data.texts", "nothing.jsonl"], ["--text.min_df", "10000"], ["--device", "tpu9"]]
)
def test_a_run_that_cannot_start_leaves_the_old_one(wrong, finished):
    run, args = finished
    before = contents(run)
    with pytest.raises(UserError):
        main([*args, "--overwrite", "true", *wrong])
    assert contents(run) == before


@pytest.mark.slow
def test_overwrite_refuses_a_run_with_files_of_others(finished):
    run, args = finished
    (run / "jobs" / "notes.txt").write_text("mine")
    before = contents(run)
    with pytest.raises(UserError, match=r"holds jobs/notes.txt, not written by its run"):
        main([*args, "--overwrite", "true"])
    assert contents(run) == before
    (run / "jobs" / "notes.txt").unlink()
    main([*args, "--overwrite", "true"])
    assert contents(run).keys() <= before.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation.csv", "curve.png", "curve.csv"])
def test_an_evaluation_does_not_replace_files_of_others(name, finished, tmp_path):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=f"{name} was not written by this program"):
        main(["evaluate", "--run", str(finished[0]), "--output_dir", str(tmp_path)])
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.slow
@support.needs_cub_wiki
def test_simulated_features_do_not_replace_real_ones(tmp_path):
    (tmp_path / "pfc_feat_train.mat").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"pfc_feat_train.mat was not written by this program"):
        simulate(str(support.CUB_WIKI), str(tmp_path))
    assert contents(tmp_path) == {"pfc_feat_train.mat": b"mine"}
