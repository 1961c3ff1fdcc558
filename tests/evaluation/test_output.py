"""What evaluate.py replaces and deletes in its output folder, and what it leaves."""

from pathlib import Path

import numpy as np
import pytest

import evaluate
from tests.support.evaluations import FakeNetwork, pictures
from tests.support.runs import run
from tinyldm.errors import UserError
from tinyldm.manifest import Manifest
from tinyldm.metrics import features


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Run evaluate.py on a folder of pictures."""
    monkeypatch.setattr(features, "NETWORKS", {"inception": FakeNetwork().load})
    reference, drawn = pictures(tmp_path / "reference", 60), pictures(tmp_path / "drawn", 24)
    data = [
        "--data.name",
        reference,
        "--data.eval_fraction",
        0.5,
        "--data.resolution",
        16,
        "--data.cache_dir",
        tmp_path / "cache",
    ]

    def go(output: Path, *args, images: Path | str = drawn) -> None:
        run(monkeypatch, evaluate, "--images", images, *data, "--metrics", "fid", "--output_dir", output, *args)

    return go


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "name", ["features/mine.npy", "drawn/portrait.png", "evaluation.json", "samples.png", "neighbours-x.png"]
)
def test_overwrite_refuses_files_of_others_in_its_places(name, go, tmp_path):
    output = tmp_path / "out"
    (output / name).parent.mkdir(parents=True)
    (output / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=f"holds {name}, not written by evaluate.py"):
        go(output, "--overwrite", "true")
    assert contents(output) == {name: b"mine"}


@pytest.mark.parametrize("name", ["evaluation.json", "samples.png", "reference-inception-held_out.npz", "reconstructions.png"])
def test_files_of_others_are_not_replaced_without_the_flag_either(name, go, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=f"holds {name}, not written by evaluate.py"):
        go(output)
    assert contents(output) == {name: b"mine"}


def test_overwrite_deletes_the_old_evaluation_and_nothing_else(go, tmp_path):
    output = tmp_path / "out"
    go(output)
    assert Manifest(output).foreign() == []
    (output / "paper.pdf").write_bytes(b"mine")
    stale = Manifest(output).own(output / "neighbours-old.png")
    stale.write_bytes(b"of an earlier evaluation")
    go(output, "--overwrite", "true")
    assert contents(output)["paper.pdf"] == b"mine" and not stale.exists()


@pytest.mark.parametrize(
    ("args", "images"),
    [
        (["--data.name", "/nowhere/faces"], None),
        (["--data.eval_split", "nothing"], None),
        (["--data.image_column", "imgae"], None),
        ([], "/nowhere/images"),
        (["--reference", "/nowhere/reference.npz"], None),
    ],
)
def test_an_evaluation_that_cannot_start_leaves_the_old_one(args, images, go, tmp_path):
    output = tmp_path / "out"
    go(output)
    before = contents(output)
    with pytest.raises(UserError):
        go(output, "--overwrite", "true", *args, **({"images": images} if images else {}))
    assert contents(output) == before


def test_a_reference_in_the_output_is_kept(go, tmp_path):
    output = tmp_path / "out"
    go(output)
    saved = np.load(output / "reference-inception-held_out.npz")["features"]
    go(output, "--overwrite", "true", "--reference", output / "reference-inception-held_out.npz")
    assert np.array_equal(np.load(output / "reference-inception-held_out.npz")["features"], saved)


def test_images_that_would_be_deleted_or_mixed_with_pictures_are_refused(go, tmp_path):
    inside = pictures(tmp_path / "out" / "features" / "images", 24)
    with pytest.raises(UserError, match=r"images is .* would delete"):
        go(tmp_path / "out", "--overwrite", "true", images=inside)
    for output in (tmp_path / "drawn", tmp_path / "drawn" / "deep" / "out", tmp_path / "reference" / "out"):
        with pytest.raises(UserError, match="whose images are read: choose another output_dir"):
            go(output)
    assert len(list(inside.iterdir())) == 24 and len(list((tmp_path / "drawn").iterdir())) == 24
