"""The command line: help, keys and what is refused before anything is read."""

import os
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


def shell(*args, **options):
    return subprocess.run([sys.executable, "-m", "zsl", *map(str, args)], capture_output=True, text=True, cwd=ROOT, **options)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_and_explains_every_key(command):
    """It imports neither torch nor scikit-learn; the processor time counts, as the machine may be busy."""
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

    def explained(schema, prefix):
        for key in schema.__dataclass_fields__.values():
            if hasattr(key.type, "__dataclass_fields__"):
                explained(key.type, f"{prefix}{key.name}.")
            else:
                assert f"--{prefix}{key.name} " in text, prefix + key.name

    explained(COMMANDS[command], "")
    assert "(type: " in text and "ERROR" not in text


def test_every_key_has_a_docstring():
    import ast
    import inspect

    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef) and node.decorator_list:
            for one, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(one, ast.AnnAssign) and not ast.unparse(one.annotation).endswith("Config"):  # a section has one
                    assert isinstance(following, ast.Expr), f"{node.name}.{one.target.id}"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fly"], "'fly' is no command of zsl; take train, evaluate, text, features, convert"),
        (["train", "--data.path", "x"], "output_dir"),
        (["train", "--output_dir", "x"], "data.path"),
        (["train", "--output_dir", "x", "--data.path", "x", "--trian.iterations", "3"], "did you mean train.iterations"),
        (["train", "--output_dir", "x", "--data.path", "nothing"], "data.path nothing does not exist"),
        (["evaluate", "--run", "nothing"], "nothing is not a run folder"),
        (["text", "--articles", "nothing.jsonl", "--out", "x.npz"], "nothing.jsonl cannot be read"),
        (["features", "--images", "nothing", "--out", "x.npz"], "images nothing is no folder"),
        (["convert", "--from", "nothing", "--out", "x.npz"], "nothing is no original folder"),
        (["convert", "--from=nothing", "--out", "x.npz"], "nothing is no original folder"),
    ],
)
def test_mistakes_are_one_line(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        main(args)


def test_a_mistake_ends_with_code_2_and_one_line(tmp_path):
    done = shell("train", "--output_dir", tmp_path / "run", "--data.path", tmp_path / "nothing")
    assert done.returncode == 2 and done.stderr == f"error: data.path {tmp_path / 'nothing'} does not exist\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("method gan", "method 'gan' is none; take gazsl, cizsl or cizslv2"),
        ("method gazsl-kl", "method 'gazsl-kl' is none"),
        ("method cizsl-hellinger", "method 'cizsl-hellinger' is none"),
        ("method cizslv2-k+1", "take cizsl-k\\+1"),
        ("method gazsl,gazsl", "name each once"),
        ("seeds 0", "seeds 0"),
        ("seed -1", "seed is -1"),
        ("train.batch_size 0", "train.batch_size is 0; give a number above 0"),
        ("train.learning_rate 0", "train.learning_rate is 0"),
        ("train.weight_decay -1", "train.weight_decay is -1.0; give a number above 0 or 0"),
        ("train.creativity_weights []", "train.creativity_weights"),
        ("train.creativity_weights [-1]", "train.creativity_weights"),
        ("train.eval_steps 9999", "train.eval_steps 9999 is more than train.iterations"),
        ("model.hidden_size -3", "model.hidden_size"),
        ("model.text_size 0", "model.text_size"),
        ("evaluate.neighbours 61", "evaluate.neighbours must not be more than"),
        ("data.held_out_images 1", "data.held_out_images is 1.0"),
        ("data.held_out_classes 0", "data.held_out_classes is 0"),
        ("text.components 0", "text.components is 0"),
        ("hub.push true", "hub.repo_id is missing"),
    ],
)
def test_values_that_make_no_sense(change, words):
    key, value = change.split()
    with pytest.raises(UserError, match=words):
        parse(config.Train, "", ["--output_dir", "x", "--data.path", "x", f"--{key}", value])


def test_resume_and_overwrite_contradict():
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
    """Images of two classes, and a network without weights: 12 numbers of the pixels."""
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


def test_features_of_a_folder_can_be_trained_on(pictures):
    out = pictures / "birds" / "features.npz"
    main(["features", "--images", str(pictures / "images"), "--out", str(out), "--unseen", "rose", "--batch_size", "4"])
    with np.load(out) as found:
        assert found["features"].shape == (6, 12) and found["labels"].tolist() == [1, 1, 1, 2, 2, 2]
        assert found["class_names"].tolist() == ["iris", "rose"] and found["unseen_classes"].tolist() == [2]
        assert found["image_ids"][0] == "iris/0.png"
        assert found["features"][0].tolist() == [0] * 8 + [200] * 4


def test_unreadable_images_are_left_out_and_named_but_not_many(pictures, capsys):
    for i in range(30):
        Image.new("RGB", (8, 8)).save(pictures / "images" / "iris" / f"more{i}.png")
    (pictures / "images" / "iris" / "0.png").write_bytes(b"no image")
    args = ["features", "--images", str(pictures / "images"), "--out", str(pictures / "f.npz")]
    main(args)
    captured = capsys.readouterr()
    assert "not readable, left out: " in captured.err and "0.png" in captured.err and "no class is unseen yet" in captured.out
    with np.load(pictures / "f.npz") as found:
        assert len(found["labels"]) == 35 and "iris/0.png" not in found["image_ids"]
    for i in range(5):
        (pictures / "images" / "iris" / f"more{i}.png").write_bytes(b"")
    (pictures / "f.npz").unlink()
    with pytest.raises(UserError, match=r"6 of 36 images .* are not readable; nothing is written"):
        main(args)
    assert not (pictures / "f.npz").exists()


def test_folders_without_images_or_classes(pictures):
    with pytest.raises(UserError, match="holds no images in folders"):
        main(["features", "--images", str(pictures / "images" / "rose"), "--out", "x.npz"])
    with pytest.raises(UserError, match="unseen names 'tulip', which is no folder"):
        main(["features", "--images", str(pictures / "images"), "--out", "x.npz", "--unseen", "rose,tulip"])


def test_images_are_found_below_and_in_order(tmp_path):
    for name in ("b/2.JPG", "a.png", "notes.txt", "b/1.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in features.images_in(tmp_path)] == ["a.png", "1.webp", "2.JPG"]


def test_articles_become_texts(tmp_path):
    done = shell("text", "--articles", support.articles(tmp_path / "a.jsonl"), "--out", tmp_path / "t.npz", env=os.environ)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 't.npz'}: 10 classes, 13 columns\n"
