"""evaluate.py --metrics likelihood, on a run of three steps."""

import json

import numpy as np
import pytest

import evaluate
import train_ddpm
from tests.support.runs import DDPM, DIGITS, EVERY_STEP, run
from tinyldm.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    with pytest.MonkeyPatch.context() as patch:
        more = ["--data.label_columns", "label", "--process.kind", "flow", "--train.max_steps", 3]
        run(patch, train_ddpm, "--output_dir", folder, *DIGITS, *DDPM, *EVERY_STEP, *more)
    return folder


def measure(monkeypatch, folder, output, *more) -> dict:
    arguments = ["--model", folder, "--metrics", "likelihood", "--num_images", 24, "--likelihood.tolerance", 1e-3]
    run(monkeypatch, evaluate, *arguments, "--output_dir", output, *more)
    return json.loads((output / "likelihood.json").read_text())


def test_an_untrained_model_gives_about_the_bits_of_normal_noise(digits, tmp_path, monkeypatch, capsys):
    found = measure(monkeypatch, digits, tmp_path / "out")
    bits = found["bits_per_dimension"]
    normal = 0.5 * np.log2(2 * np.pi) + np.log2(127.5)  # per dimension, of N(0, 1) at its mean
    assert normal - 3 < bits["value"] < normal + 3 and bits["low"] < bits["value"] < bits["high"] and bits["images"] == 24
    assert found["evaluations"] > 10 and 0 <= found["encoding_error"] < 5
    assert "bits per dimension, the mean of 24 held-out images" in capsys.readouterr().out


def test_the_estimate_and_the_exact_divergence_agree_and_batches_do_not_matter(digits, tmp_path, monkeypatch):
    exact = measure(monkeypatch, digits, tmp_path / "exact", "--likelihood.divergence", "exact", "--batch_size", 24)
    many = measure(monkeypatch, digits, tmp_path / "many", "--likelihood.probes", 20, "--batch_size", 7)
    assert many["bits_per_dimension"]["value"] == pytest.approx(exact["bits_per_dimension"]["value"], abs=0.05)


def test_what_has_no_likelihood_of_images_is_refused(ldm_run, vq_run, tmp_path, monkeypatch):
    for folder, words in ((ldm_run, "has a density of latents, not of images"), (vq_run, "a first stage has none")):
        with pytest.raises(UserError, match=words):
            measure(monkeypatch, folder, tmp_path / "out")
    with pytest.raises(UserError, match="likelihood is measured by itself"):
        run(monkeypatch, evaluate, "--model", ldm_run, "--metrics", "likelihood,fid", "--output_dir", tmp_path / "out")
