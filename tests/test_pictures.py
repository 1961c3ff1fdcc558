import math

import numpy as np
import pytest
import torch
from PIL import Image

from tinyldm import pictures
from tinyldm.errors import UserError
from tinyldm.manifest import Manifest
from tinyldm.pictures import OutputFolder


def images(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 255, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(("count", "side", "columns"), [(6, 8, 3), (5, 128, 2), (4, 100, None), (200, 8, 20)])
def test_each_image_is_at_its_place_in_the_grid(count, side, columns):
    batch = images(count, side)
    picture = np.asarray(pictures.grid(batch, columns))
    columns, factor = columns or 2, 1 if count > 144 else max(1, 128 // side)
    rows, pitch = -(-count // columns), side + 2
    assert picture.shape == (factor * (rows * pitch + 2), factor * (columns * pitch + 2), 3)
    picture = picture[::factor, ::factor]
    for i, image in enumerate(batch.permute(0, 2, 3, 1).numpy()):
        top, left = 2 + i // columns * pitch, 2 + i % columns * pitch
        assert np.array_equal(picture[top : top + side, left : left + side], image)
    assert (picture[:2] == 255).all() and (picture[:, :2] == 255).all()


def test_one_image_is_enlarged_by_a_whole_factor():
    picture = np.asarray(pictures.grid(images(1, 32)))
    assert picture.shape == (128, 128, 3)
    assert np.array_equal(picture[::4, ::4], images(1, 32)[0].permute(1, 2, 0).numpy())


@pytest.mark.filterwarnings("error")  # matplotlib warns of empty legends and collapsed axes
@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}],
        [{"step": 10, "loss": 1.0}, {"step": 20, "eval_loss": 0.7, "eval_psnr": 20.0}, {"step": 30, "loss": 0.4}],
        [{"step": 10, "loss": 1.0}],
        [{"step": 10, "eval_loss": 1.0}],
        [{"step": 10, "eval_psnr": 1.0}],
        [],
    ],
)
def test_curves_with_and_without_evaluations(tmp_path, rows):
    pictures.curves(rows, tmp_path / "loss.png")
    keys = {key for row in rows for key in row if key == "loss" or key.startswith("eval_")}
    panels = max(1, len({"q" if key.startswith("eval_loss_q") else key for key in keys}))
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (min(3, panels) * 420, math.ceil(panels / 3) * 320)
        assert len(picture.convert("L").getcolors()) > 10  # something is drawn


def test_curves_of_training_and_held_out_loss_compare(tmp_path, monkeypatch):
    """They share an axis, with the same weights, and each axis says what it shows."""
    figures = []
    monkeypatch.setattr(pictures.pyplot(), "close", figures.append)
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 300)]
    for step in (100, 200, 299):
        held_out = {"eval_loss_as_trained": 3.0, "eval_loss": 7.0, "eval_loss_q1": 9.0, "eval_loss_q2": 5.0, "eval_new": 4.0}
        rows[step - 1] |= held_out
    pictures.curves(rows, tmp_path / "loss.png")
    trained, *others = (axis for axis in figures[0].axes if axis.axison)
    assert [line.get_label() for line in trained.lines] == ["training", "held out, averaged weights"]
    assert trained.get_ylim()[1] > 3 and len(others) == 3
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in (trained, *others))


def test_the_accuracies_of_a_classifier_share_two_panels(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures.pyplot(), "close", figures.append)
    names = ["loss", "eval_accuracy", "eval_accuracy_q1", "eval_accuracy_q2", "eval_accuracy_of_hat", "eval_accuracy_of_q1"]
    pictures.curves([{"step": 1} | dict.fromkeys(names, 0.5), {"step": 2} | dict.fromkeys(names, 0.6)], tmp_path / "loss.png")
    lines = [[line.get_label() for line in axis.lines] for axis in figures[0].axes if axis.axison]
    assert lines[2:] == [["q1", "q2"], ["hat", "q1"]] and len(lines) == 4


def test_curves_of_a_classifier_have_a_line_and_a_guess_for_each_label(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures.pyplot(), "close", figures.append)
    pictures.accuracy_curves([0.25, 0.75], {"hat": [0.9, 0.4], "hair": [0.7, 0.6]}, [0.3, 0.5], tmp_path / "curves.png")
    (axis,) = figures[0].axes
    drawn = [list(line.get_ydata()) for line in axis.lines]
    assert drawn == [[0.9, 0.4], [0.3, 0.3], [0.7, 0.6], [0.5, 0.5]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["hat", "hair"]
    colours = [line.get_color() for line in axis.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3] and (tmp_path / "curves.png").exists()


# --------------------------------------------------------------------------------------------------- the output folder


def test_the_files_are_the_images(tmp_path):
    batch = images(5, 16)
    output = OutputFolder(str(tmp_path / "new" / "out"), overwrite=False)
    output.add(batch[:3], first=7)
    output.add(batch[3:], first=7)
    output.finish()
    assert sorted(file.name for file in output.images.iterdir()) == [f"seed-{seed:06d}.png" for seed in range(7, 12)]
    stored = np.load(output.path / "samples.npz")["arr_0"]
    assert stored.dtype == np.uint8 and np.array_equal(stored, batch.permute(0, 2, 3, 1).numpy())
    for i in range(5):
        assert np.array_equal(pixels(output.images / f"seed-{7 + i:06d}.png"), stored[i])
    assert np.array_equal(pixels(output.path / "grid.png"), np.asarray(pictures.grid(batch)))


def test_strips_and_animations(tmp_path):
    output = OutputFolder(str(tmp_path), overwrite=False)
    frames = [images(2, 128) // (i + 1) for i in range(3)]
    output.strip(frames)
    strip = pixels(tmp_path / "denoising.png")
    for row in range(2):
        for column in range(3):
            top, left = 2 + row * 130, 2 + column * 130
            expected = frames[column][row].permute(1, 2, 0).numpy()
            assert np.array_equal(strip[top : top + 128, left : left + 128], expected)
    output.interpolation(images(4, 128))
    assert pixels(tmp_path / "interpolation.png").shape == (132, 4 * 130 + 2, 3)
    for name, count in (("denoising", 3), ("interpolation", 4)):
        with Image.open(tmp_path / f"{name}.gif") as animation:
            assert animation.n_frames == count
            animation.seek(count - 1)
            assert animation.info["duration"] == 1500  # the last frame is shown longest


def test_one_frame_is_an_animation_too(tmp_path):
    pictures.save_gif([pictures.grid(images(1, 16))], tmp_path / "one.gif")
    with Image.open(tmp_path / "one.gif") as animation:
        assert animation.n_frames == 1


def test_old_pictures_are_not_mixed_with_new_ones(tmp_path):
    first = OutputFolder(str(tmp_path), overwrite=False)
    first.add(images(4, 16), first=0)
    first.finish()
    first.strip([images(1, 16)])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds pictures already"):
        OutputFolder(str(tmp_path), overwrite=False)
    before = sorted(tmp_path.rglob("*"))
    second = OutputFolder(str(tmp_path), overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is lost if the model does not load
    second.add(images(1, 16), first=2)
    second.add(images(1, 16), first=2)
    names = sorted(path.name for path in tmp_path.rglob("*"))
    assert names == [".manifest", "images", "notes.txt", "seed-000002.png", "seed-000003.png"]
    (tmp_path / "grid.png").write_bytes(b"of another run")
    with pytest.raises(UserError, match="holds pictures already"):
        OutputFolder(str(tmp_path), overwrite=False)


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in ("file", "file/below"):
        with pytest.raises(UserError, match="cannot be written"):
            OutputFolder(str(tmp_path / path), overwrite=True)


def drawn(path, first: int = 0, overwrite: bool = False) -> OutputFolder:
    """A folder after a sample.py."""
    with OutputFolder(str(path), overwrite) as output:
        output.add(images(2, 16), first)
        output.finish()
    return output


@pytest.mark.parametrize(
    "name", ["images/seed-holiday.png", "images/portrait.jpg", "images/seed-1.png", "notes.txt", ".git/HEAD"]
)
def test_overwrite_keeps_the_pictures_of_others(name, tmp_path):
    drawn(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    drawn(tmp_path, first=5, overwrite=True)
    assert (tmp_path / name).read_bytes() == b"mine"
    assert not (tmp_path / "images" / "seed-000000.png").exists() and (tmp_path / "images" / "seed-000006.png").exists()


@pytest.mark.parametrize("name", ["images/seed-000001.png", "grid.png", "samples.npz", "denoising.gif"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_pictures_of_others_in_the_places_of_new_ones_are_refused(name, overwrite, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_bytes(b"mine")
    words = "was not written by sample.py" if overwrite else "holds pictures already"
    with pytest.raises(UserError, match=words):
        OutputFolder(str(tmp_path), overwrite)
    assert [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()] == [b"mine"]


def test_a_picture_that_is_a_link_now_is_not_followed(tmp_path):
    drawn(tmp_path / "out")
    (tmp_path / "holiday.png").write_bytes(b"mine")
    (tmp_path / "out" / "grid.png").unlink()
    (tmp_path / "out" / "grid.png").symlink_to(tmp_path / "holiday.png")
    with pytest.raises(UserError, match=r"grid.png was not written by sample.py"):
        OutputFolder(str(tmp_path / "out"), overwrite=True)
    assert (tmp_path / "holiday.png").read_bytes() == b"mine"


def test_overwrite_in_the_folder_of_a_run_deletes_only_pictures(tmp_path):
    run = Manifest(tmp_path)
    for name in ("config.yaml", "samples/step-0000001.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        run.own(tmp_path / name).write_text("of the run")
    drawn(tmp_path)
    drawn(tmp_path, overwrite=True)
    assert (tmp_path / "samples" / "step-0000001.png").exists() and (tmp_path / "config.yaml").exists()
    assert run.foreign() == []


def test_pictures_below_a_run_are_of_the_run(tmp_path):
    run = Manifest(tmp_path / "run")
    (tmp_path / "run").mkdir()
    run.own(tmp_path / "run" / "config.yaml").write_text("x")
    drawn(tmp_path / "run" / "pictures" / "ddim")
    assert run.foreign() == []


def test_two_programs_do_not_draw_into_one_folder(tmp_path):
    first, second = OutputFolder(str(tmp_path), False), OutputFolder(str(tmp_path), False)
    with first:
        with pytest.raises(UserError, match=r"another program writes to .*: choose another output_dir"), second:
            pass
        first.add(images(1, 16), first=0)
    with pytest.raises(UserError, match="holds pictures already"), second:  # the first has ended since the second looked
        pass
