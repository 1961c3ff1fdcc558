"""The command line: help, keys, and errors before anything is read."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import zsl as support
from tests.support.runs import ROOT
from tinyldm.config.parsing import parse
from tinyldm.errors import UserError
from tinyldm.metrics import features as networks
from zsl import config, features
from zsl.__main__ import COMMANDS, main
from zsl.config import parse_method


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_fast_and_explains_every_key(command):
    """It imports neither torch nor scikit-learn. CPU time counts too, since the machine may be busy."""
    script = (
        "import sys, time\nfrom zsl.__main__ import main\n"
        f"try:\n    main({([command, '--help', 'all'] if command else ['--help'])!r})\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'sklearn', 'scipy', 'nltk'} & set(sys.modules)\nprint(time.process_time(), file=sys.stderr)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert min(float(done.stderr), time.monotonic() - started) < 1
    if not command:
        assert all(f"python -m zsl {name}" in done.stdout for name in COMMANDS)
        return
    assert f"usage: python -m zsl {command}" in done.stdout
    text = " ".join(done.stdout.split())

    def check_explained(schema, prefix):
        for key in schema.__dataclass_fields__.values():
            if hasattr(key.type, "__dataclass_fields__"):
                check_explained(key.type, f"{prefix}{key.name}.")
            else:
                assert f"--{prefix}{key.name} " in text, prefix + key.name

    check_explained(COMMANDS[command], "")
    assert "(type: " in text and "ERROR" not in text


def test_every_key_has_a_docstring():
    import ast
    import inspect

    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef) and node.decorator_list:
            for one, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(one, ast.AnnAssign) and not ast.unparse(one.annotation).endswith("Config"):
                    assert isinstance(following, ast.Expr), f"{node.name}.{one.target.id}"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fly"], "unknown command 'fly': use one of train, evaluate, text, features, convert"),
        (["train", "--data.path", "x"], "output_dir"),
        (["train", "--output_dir", "x"], "data.path"),
        (["train", "--output_dir", "x", "--data.path", "x", "--trian.iterations", "3"], "did you mean train.iterations"),
        (["train", "--output_dir", "x", "--data.path", "nothing"], "data.path nothing does not exist"),
        (["evaluate", "--run", "nothing"], "nothing is not a run folder"),
        (["text", "--articles", "nothing.jsonl", "--out", "x.npz"], "nothing.jsonl cannot be read"),
        (["features", "--images", "nothing", "--out", "x.npz"], "images nothing is not a folder"),
        (["convert", "--from", "nothing", "--out", "x.npz"], "nothing is not an original folder"),
        (["convert", "--from=nothing", "--out", "x.npz"], "nothing is not an original folder"),
    ],
)
def test_user_errors_are_raised_before_anything_is_written(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        main(args)
    assert not list(tmp_path.iterdir())


def test_a_user_error_prints_one_line_and_exits_with_code_2(tmp_path):
    args = ["text", "--articles", tmp_path / "texts.npz", "--out", tmp_path / "out.npz"]
    done = subprocess.run([sys.executable, "-m", "zsl", *map(str, args)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'texts.npz'} does not exist\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("method gan", "unknown method 'gan': use gazsl, cizsl or cizslv2"),
        ("method gazsl-kl", "unknown method 'gazsl-kl'"),
        ("method cizsl-hellinger", "unknown method 'cizsl-hellinger'"),
        ("method cizslv2-k+1", "use cizsl-k\\+1"),
        ("method gazsl,gazsl", "name each method once"),
        ("seeds 0", "seeds is 0"),
        ("seed -1", "seed is -1"),
        ("train.batch_size 0", "train.batch_size is 0; use a number above 0"),
        ("train.learning_rate 0", "train.learning_rate is 0"),
        ("train.weight_decay -1", "train.weight_decay is -1.0; use a number above 0 or 0"),
        ("train.creativity_weights []", "train.creativity_weights"),
        ("train.creativity_weights [-1]", "train.creativity_weights"),
        ("train.eval_steps 9999", "train.eval_steps 9999 is more than train.iterations"),
        ("model.hidden_size -3", "model.hidden_size"),
        ("model.text_size 0", "model.text_size"),
        ("evaluate.neighbours 61", "evaluate.neighbours must not exceed"),
        ("data.held_out_images 1", "data.held_out_images is 1.0"),
        ("data.held_out_classes 0", "data.held_out_classes is 0"),
        ("text.components 0", "text.components is 0"),
        ("hub.push true", "hub.repo_id is missing"),
    ],
)
def test_invalid_values(change, words):
    key, value = change.split()
    with pytest.raises(UserError, match=words):
        parse(config.Train, "", ["--output_dir", "x", "--data.path", "x", f"--{key}", value])


def test_resume_and_overwrite_contradict_each_other():
    with pytest.raises(UserError, match="contradict each other"):
        parse(config.Train, "", ["--output_dir", "x", "--data.path", "x", "--resume", "latest", "--overwrite", "true"])


def test_method_names():
    assert parse_method("cizsl") == ("cizsl", "cizsl", "sharma-mittal")
    assert parse_method("cizslv2-renyi") == ("cizslv2-renyi", "cizslv2", "renyi")
    assert parse_method("gazsl").divergence is None


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "zsl").glob("*.yaml")), ids=lambda file: file.name)
def test_the_recipes_are_valid(file):
    parse(config.Train, "", ["--config", str(file)])


# --------------------------------------------------------------------------------------------------------------- features


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Images of two classes, and a feature network without weights that averages pixels to 12 numbers."""
    for name, colour in (("rose", (200, 0, 0)), ("iris", (0, 0, 200))):
        for i, mode in enumerate(("RGB", "L", "RGBA")):
            path = tmp_path / "images" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + i, 30), colour).convert(mode).save(path)

    def load(name, device):
        def embed(images):
            return {"features": torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1).numpy()}

        return networks.FeatureNetwork(name, "", "", {}, embed)

    monkeypatch.setattr(networks, "load", load)
    return tmp_path


def test_features_of_a_folder(pictures):
    out = pictures / "birds" / "features.npz"
    main(["features", "--images", str(pictures / "images"), "--out", str(out), "--unseen", "rose", "--batch_size", "4"])
    with np.load(out) as file:
        assert file["features"].shape == (6, 12) and file["labels"].tolist() == [1, 1, 1, 2, 2, 2]
        assert file["class_names"].tolist() == ["iris", "rose"] and file["unseen_classes"].tolist() == [2]
        assert file["image_ids"][0] == "iris/0.png"
        assert file["features"][0].tolist() == [0] * 8 + [200] * 4


def test_a_few_unreadable_images_are_skipped_and_named(pictures, capsys):
    for i in range(30):
        Image.new("RGB", (8, 8)).save(pictures / "images" / "iris" / f"more{i}.png")
    (pictures / "images" / "iris" / "0.png").write_bytes(b"no image")
    args = ["features", "--images", str(pictures / "images"), "--out", str(pictures / "f.npz")]
    main(args)
    captured = capsys.readouterr()
    assert "skipped, cannot be read: " in captured.err and "0.png" in captured.err and "no class is unseen yet" in captured.out
    with np.load(pictures / "f.npz") as file:
        assert len(file["labels"]) == 35 and "iris/0.png" not in file["image_ids"]
    for i in range(5):
        (pictures / "images" / "iris" / f"more{i}.png").write_bytes(b"")
    (pictures / "f.npz").unlink()
    with pytest.raises(UserError, match=r"6 of 36 images .* cannot be read; remove them. Nothing is written"):
        main(args)
    assert not (pictures / "f.npz").exists()


def test_folders_without_images_or_classes(pictures):
    with pytest.raises(UserError, match="holds no images in subfolders"):
        main(["features", "--images", str(pictures / "images" / "rose"), "--out", "x.npz"])
    with pytest.raises(UserError, match="unseen names 'tulip', which is not a subfolder"):
        main(["features", "--images", str(pictures / "images"), "--out", "x.npz", "--unseen", "rose,tulip"])


def test_images_in_subfolders_are_found_in_order(tmp_path):
    for name in ("b/2.JPG", "a.png", "notes.txt", "b/1.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in features.images_in(tmp_path)] == ["a.png", "1.webp", "2.JPG"]


def test_articles_become_texts(tmp_path, capsys):
    main(["text", "--articles", str(support.articles(tmp_path / "a.jsonl")), "--out", str(tmp_path / "t.npz")])
    assert capsys.readouterr().out == f"{tmp_path / 't.npz'}: 10 classes, 13 columns\n"


def test_hidden_and_empty_folders_are_no_classes(pictures, capsys):
    for name in (".ipynb_checkpoints", "empty", "10", "9"):
        (pictures / "images" / name).mkdir()
    for name in (".ipynb_checkpoints", "10", "9"):
        Image.new("RGB", (8, 8)).save(pictures / "images" / name / "a.png")
    main(["features", "--images", str(pictures / "images"), "--out", str(pictures / "f.npz")])
    with np.load(pictures / "f.npz") as file:
        assert file["class_names"].tolist() == ["9", "10", "iris", "rose"]
    assert "empty" in capsys.readouterr().err
