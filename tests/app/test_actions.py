"""The page draws exactly what sample.py draws, picture by picture; denoising is shown step by step."""

import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from tests.support.app import SIDE, save_run
from tinyldm.app.actions import ACTIONS, FRAMES, arguments, play, read
from tinyldm.drawing.sampling import interpolate
from tinyldm.errors import UserError
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model
from tinyldm.pictures import MIN_SIDE, grid

OTHER = {"seed": 5, "scheduler": "ddpm", "num_inference_steps": 3, "guidance_scale": 1.5, "labels": "hair=long"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[str, Model]]:
    """Models that draw, and a stage that enlarges what the small one draws: their folders, and loaded."""
    folder = tmp_path_factory.mktemp("runs")
    saved = {name: str(save_run(folder / name, name == "stage")) for name in ("faces", "stage")}
    saved["small"] = str(save_run(folder / "small", side=SIDE // 2))
    return {name: (path, load_model(path)) for name, path in saved.items()}


def photograph(side: int) -> Image.Image:
    pixels = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def by_sample(monkeypatch, folder, keys, picture: str) -> np.ndarray:
    monkeypatch.setattr(sys, "argv", ["sample.py", *arguments(keys), "--output_dir", str(folder / "out"), "--device", "cpu"])
    sample.main()
    return np.asarray(Image.open(folder / "out" / picture))


@pytest.mark.parametrize(
    ("name", "title", "values", "settings", "picture"),
    [
        ("faces", "Draw", [3], OTHER, "grid.png"),
        ("faces", "Draw", [4], {"seed": 0, "num_inference_steps": 2}, "grid.png"),
        ("faces", "Edit", [photograph(40), "", 0.7, 2], OTHER, "edited.png"),
        ("faces", "Edit", [photograph(40), "4,4,12,10", 0.7, 2], OTHER, "edited.png"),
        ("stage", "Enlarge", [photograph(8)], {"seed": 3, "num_inference_steps": 2}, "edited.png"),
    ],
)
def test_the_last_picture_is_that_of_sample(name, title, values, settings, picture, runs, tmp_path, monkeypatch):
    path, model = runs[name]
    keys = {"model": path, **settings, **ACTIONS[title].keys(tmp_path, *values)}
    *_, last = play(model, read(keys))
    assert np.array_equal(np.asarray(last), by_sample(monkeypatch, tmp_path, keys, picture))


def test_an_interpolation_has_the_images_of_sample(runs, tmp_path):
    path, model = runs["faces"]
    config = read({"model": path, "num_inference_steps": 2, **ACTIONS["Interpolate"].keys(tmp_path, 3, 8)})
    assert config.interpolate == (3, 8)
    *_, picture = play(model, config)
    assert np.array_equal(np.asarray(picture), np.asarray(grid(interpolate(model, 3, 8, config), 4)))


def test_denoising_is_shown_from_noise_to_image(runs):
    path, model = runs["faces"]
    first, *_, last = made = list(play(model, read({"model": path, "num_images": 1, "num_inference_steps": 2 * FRAMES})))
    assert len(made) == FRAMES + 1  # every second step, and the image
    noise = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected = grid(((noise / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)[None])
    assert np.array_equal(np.asarray(first), np.asarray(expected)) and first.tobytes() != last.tobytes()


@pytest.mark.parametrize(
    ("title", "values", "steps"),
    [
        ("Interpolate", [3, 8], 4),
        ("Edit", [photograph(40), "", 0.5, 2], 2),  # half of the way
        ("Edit", [photograph(40), "4,4,12,10", 0.5, 2], 4),  # repeats are not shown
    ],
)
def test_every_action_shows_the_denoising_beside_what_was_given(title, values, steps, runs, tmp_path):
    path, model = runs["faces"]
    made = list(play(model, read({"model": path, "num_inference_steps": 4, **ACTIONS[title].keys(tmp_path, *values)})))
    assert len(made) == steps + 1 and len({picture.tobytes() for picture in made}) == steps + 1
    assert {picture.size for picture in made} == {made[-1].size}
    if title == "Edit":
        given = (0, 0, MIN_SIDE, MIN_SIDE)
        assert made[0].crop(given).tobytes() == made[-1].crop(given).tobytes()


def test_a_cascade_shows_each_model(runs, tmp_path, monkeypatch):
    path, model = runs["small"]
    keys = {"model": path, "then": runs["stage"][0], "num_inference_steps": 2, **ACTIONS["Draw"].keys(tmp_path, 2)}
    *shown, last = play(model, read(keys))
    sides = [SIDE // 2, SIDE // 2, SIDE, SIDE]  # all are enlarged to MIN_SIDE, with the grid's border of 2 pixels
    assert [picture.width for picture in shown] == [(side + 4) * MIN_SIDE // side for side in sides]
    assert np.array_equal(np.asarray(last), by_sample(monkeypatch, tmp_path, keys, "grid.png"))


def test_drawing_ends_where_nobody_looks(runs, monkeypatch):
    path, model = runs["faces"]
    calls, forward = [], model.denoiser.forward
    monkeypatch.setattr(model.denoiser, "forward", lambda *args: calls.append(1) or forward(*args))
    pictures = play(model, read({"model": path, "num_images": 1, "num_inference_steps": 500, "guidance_scale": 1}))
    next(pictures)
    pictures.close()
    for thread in threading.enumerate():
        if thread.name == "drawing":
            thread.join()
    assert 0 < len(calls) < 500


def test_only_what_a_model_can_do_is_offered(runs):
    offered = {name: [title for title, action in ACTIONS.items() if action.fits(model)] for name, (_, model) in runs.items()}
    drawing = ["Draw", "Interpolate", "Edit"]
    assert offered == {"faces": drawing, "stage": ["Enlarge"], "small": drawing}


def test_errors_come_to_who_looks(runs, tmp_path):
    path, model = runs["faces"]
    with pytest.raises(UserError, match="has no value 'red'"):
        list(play(model, read({"model": path, "labels": "hair=red"})))
    with pytest.raises(UserError, match="num_images is 0; give"):
        read({"model": path, "num_images": 0})
    for title, values in {"Edit": [None, "", 0.5, 1], "Enlarge": [None]}.items():
        with pytest.raises(UserError, match="there is no image"):
            ACTIONS[title].keys(tmp_path, *values)
    with pytest.raises(UserError, match="the box is '/etc/passwd'"):
        ACTIONS["Edit"].keys(tmp_path, photograph(8), "/etc/passwd", 0.5, 1)
