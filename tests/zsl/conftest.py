import pytest

from tests.support import zsl as support
from zsl import pictures
from zsl.__main__ import main

METHODS = "gazsl,cizsl,cizsl-kl,cizslv2"


@pytest.fixture(scope="session")
def birds(tmp_path_factory):
    """A folder with features.npz and articles.jsonl."""
    return support.folder(tmp_path_factory.mktemp("data") / "birds")


@pytest.fixture(scope="session")
def tiny_run(birds, tmp_path_factory):
    """A run of four methods with two seeds and a search for the weight."""
    path = tmp_path_factory.mktemp("zsl") / "run"
    args = ["--data.path", birds, "--output_dir", path, *support.TINY, "--method", METHODS]
    main(["train", *map(str, args), "--train.creativity_weights", "[0.1, 1.0]"])
    return path


@pytest.fixture
def no_feature_plots(monkeypatch):
    """Write empty files instead of t-SNE plots, which take half the time of a tiny run. `tiny_run` draws real ones."""
    monkeypatch.setattr(pictures, "features", lambda file, *args: file.touch())
