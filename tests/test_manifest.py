import itertools
import os
import sys
from pathlib import Path

import pytest

from tinyldm.errors import UserError
from tinyldm.manifest import HEADER, Manifest, list_in_run

OURS = ("config.yaml", "checkpoints/step-1/unet.safetensors", "checkpoints/step-1/state.json", "samples/step-1.png")


def written(folder: Path, *names: str, text: str = "old") -> Manifest:
    """A folder with these files, all listed."""
    manifest = Manifest(folder)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        manifest.own(folder / name).write_text(text)
    return manifest


def files(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def names(paths: list[Path], folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in paths}


def test_the_list_is_text_with_each_name_once(tmp_path):
    manifest = written(tmp_path, *OURS)
    for name in OURS:
        Manifest(tmp_path).own(tmp_path / name)
    lines = (tmp_path / ".manifest").read_text().splitlines(keepends=True)
    assert lines[0] == HEADER and sorted(lines[1:]) == sorted(f"{name}\n" for name in OURS)
    assert manifest.names() == set(OURS)


def test_a_list_that_a_full_disk_has_cut_gives_no_half_name(tmp_path):
    manifest = written(tmp_path, *OURS)
    with (tmp_path / ".manifest").open("a") as file:
        file.write("notes")
    (tmp_path / "notes").write_text("mine")
    assert names(manifest.foreign(), tmp_path) == {"notes"}
    manifest.own(tmp_path / "README.md")
    assert manifest.names() >= {*OURS, "README.md"}


def test_everything_else_in_the_folder_is_foreign(tmp_path):
    manifest = written(tmp_path, *OURS)
    for name in ("notes.txt", "checkpoints/step-1/mine", ".git/HEAD", ".bashrc.123", "samples/.old-photos/1.jpg", "a/b/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    found = {"notes.txt", "checkpoints/step-1/mine", ".git/HEAD", ".bashrc.123", "samples/.old-photos/1.jpg", "a/b/c"}
    assert names(manifest.foreign(), tmp_path) == {*found, "link", "dangling", "fifo"}
    assert names(manifest.files(), tmp_path) == {*OURS, ".manifest"}


def test_temporary_names_are_ours(tmp_path):
    manifest = written(tmp_path, *OURS, "pipeline/model_index.json")
    temporary = [
        ".config.yaml.4711",
        ".exporting/vqvae/config.json",
        "checkpoints/.saving-2/x",
        ".pushing-1-2/README.md",
        ".lock",
    ]
    for name in [*temporary, ".old-pipeline/model_index.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert manifest.foreign() == []


@pytest.mark.parametrize("listed", ["../victim", "{top}/victim", "link/victim", "./../victim", "sub/../../victim"])
def test_a_name_that_leads_out_of_the_folder_is_never_followed(listed, tmp_path):
    (tmp_path / "victim").write_text("mine")
    run = tmp_path / "run"
    written(run, *OURS)
    (run / "link").symlink_to(tmp_path)
    with (run / ".manifest").open("a") as file:
        file.write(listed.format(top=tmp_path) + "\n")
    manifest = Manifest(run)
    assert names(manifest.files(), run) == {*OURS, ".manifest"}
    manifest.remove(manifest.files())
    assert "config.yaml" not in files(run)
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_listed_file_that_is_a_link_now_is_foreign(tmp_path):
    manifest = written(tmp_path / "run", *OURS)
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / "config.yaml").symlink_to(tmp_path / "victim")
    assert names(manifest.foreign(), tmp_path / "run") == {"config.yaml"}


def test_a_manifest_of_another_program_is_its_own(tmp_path):
    (tmp_path / ".manifest").write_text("main.py\n")
    (tmp_path / "main.py").write_text("mine")
    manifest = Manifest(tmp_path)
    assert names(manifest.foreign(), tmp_path) == {".manifest", "main.py"} and manifest.files() == []
    with pytest.raises(UserError, match="the file of another program"):
        manifest.own(tmp_path / "config.yaml")
    manifest.recover()
    assert files(tmp_path) == {".manifest": "main.py\n", "main.py": "mine"}


def test_a_folder_with_a_manifest_of_its_own_belongs_to_the_run_that_lists_it(tmp_path):
    run = written(tmp_path / "run", *OURS)
    pictures = written(tmp_path / "run" / "pictures", "images/seed-000000.png", "grid.png")
    assert run.foreign() == [tmp_path / "run" / "pictures"]
    list_in_run(pictures.folder)
    assert run.foreign() == []
    (pictures.folder / "images" / "holiday.png").write_text("mine")
    assert names(run.foreign(), run.folder) == {"pictures/images/holiday.png"}
    list_in_run(tmp_path / "alone")  # in no run
    assert not (tmp_path / ".manifest").exists()


def test_removing_keeps_the_rest_and_its_list(tmp_path):
    manifest = written(tmp_path, *OURS)
    (tmp_path / "samples" / "mine.png").write_text("mine")
    manifest.remove([tmp_path / "samples" / "step-1.png", tmp_path / "config.yaml"])
    assert manifest.names() == {name for name in OURS if name.startswith("checkpoints")}
    assert (tmp_path / "samples").is_dir()
    manifest.remove(manifest.files())
    assert manifest.names() == set() and (tmp_path / "samples" / "mine.png").read_text() == "mine"


def test_a_replacement_that_fails_puts_the_old_files_back(tmp_path):
    manifest = written(tmp_path, *OURS)
    before = files(tmp_path)
    with pytest.raises(UserError, match="no data"), manifest.replaced():
        assert files(tmp_path).keys() == {f".replaced/{name}" for name in before}
        written(tmp_path, "config.yaml", "metrics.csv", text="new")
        raise UserError("no data")
    assert files(tmp_path) == before


@pytest.mark.slow
def test_a_replacement_killed_at_any_moment_leaves_one_of_the_two(tmp_path):
    """The process ends before its n-th change of a file; then the folder is opened again."""

    def replace(folder: Path, at: int) -> bool:
        """Whether the process ran to its end."""
        changes = itertools.count()

        def count(event: str, details: tuple) -> None:
            writes = event == "open" and isinstance(details[1], str) and set(details[1]) & set("wa+")
            if (writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")) and next(changes) == at:
                os._exit(9)

        child = os.fork()
        if child == 0:
            sys.addaudithook(count)
            with Manifest(folder).replaced():
                written(folder, "config.yaml", "metrics.csv", text="new")
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    outcomes = set()
    for at in itertools.count():
        folder = tmp_path / str(at)
        old = files(written(folder, *OURS).folder)
        ended = replace(folder, at)
        manifest = Manifest(folder)
        manifest.recover()
        found = files(folder)
        is_new = manifest.names() <= {"config.yaml", "metrics.csv"}
        assert manifest.foreign() == []
        if is_new:
            assert found.keys() <= {"config.yaml", "metrics.csv", ".manifest"} and "old" not in found.values()
        else:
            assert found == old
        outcomes.add(is_new)
        if ended:
            break
    assert outcomes == {True, False} and at > 10
