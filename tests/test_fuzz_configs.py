"""Random values for every key: a command line is understood or refused in one line, and a run is sound or refused."""

import csv
import math
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import train_ddpm
import train_ldm
from tests.support.fuzz import bounded, one_line
from tests.support.runs import DDPM, DIGITS, EVERY_STEP, run
from tinyldm.config.evaluate import Evaluate
from tinyldm.config.keys import read_keys
from tinyldm.config.parsing import parse
from tinyldm.config.schema import Sample, TrainClassifier, TrainDDPM, TrainLDM, TrainVQ
from zsl import config as zsl

REQUIRED = {
    TrainVQ: ["--output_dir", "x"],
    TrainLDM: ["--output_dir", "x"],
    TrainDDPM: ["--output_dir", "x"],
    TrainClassifier: ["--output_dir", "x", "--data.label_columns", "label"],
    Sample: ["--model", "x"],
    Evaluate: ["--model", "x"],
    zsl.Train: ["--output_dir", "x", "--data.path", "x"],
    zsl.Features: ["--images", "x", "--out", "y"],
    zsl.Text: ["--articles", "x", "--out", "y"],
}
NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "1e-30",
    "1e30",
    "nan",
    "-inf",
    "1e400",
    "99999999999999999999999",
    "-0.0",
    "1_0",
]
WORDS = [
    "",
    "null",
    "true",
    "no",
    "[]",
    "{}",
    "[1,2]",
    "[null]",
    "{a: 1}",
    "../..",
    "/dev/null",
    "a b",
    "né",
    "'",
    "&a *a",
    "!!x 1",
    "\t",
]
values = st.sampled_from([*NUMBERS, *WORDS]) | st.text(max_size=8)


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda schema: schema.__name__)
def test_random_values_are_understood_or_refused_in_one_line(schema):
    keys = sorted(read_keys(schema))

    @bounded(40)
    @given(st.lists(st.tuples(st.sampled_from(keys), values), min_size=1, max_size=3))
    def run_it(chosen) -> None:
        arguments = [f"--{key}={value}" for key, value in chosen]
        result = one_line(lambda: parse(schema, "", [*REQUIRED[schema], *arguments]))
        assert isinstance(result, str | schema)

    run_it()


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda schema: schema.__name__)
def test_random_recipes_are_understood_or_refused_in_one_line(schema):
    keys = sorted(read_keys(schema))
    lines = st.tuples(st.sampled_from(keys).map(lambda key: key.replace(".", ":\n  ")), values).map(": ".join) | st.text(
        max_size=20
    )

    @bounded(15)
    @given(st.lists(lines, max_size=3).map("\n".join))
    def run_it(text) -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            (folder / "x.yaml").write_text(text)
            result = one_line(lambda: parse(schema, "", [*REQUIRED[schema], "--config", str(folder / "x.yaml")]))
            assert isinstance(result, str | schema)
        finally:
            shutil.rmtree(folder)

    run_it()


# Their values would only make the run longer or larger, or leave it to the machine.
LONG = {"train.max_steps", "train.num_epochs", "train.batch_size", "train.gradient_accumulation_steps", "data.resolution"}
LONG |= {"data.cache_dir", "output_dir", "hub.push", "train.compile", "train.log_with", "scheduler.num_train_timesteps"}
LONG |= {"diffusion.preview_images", "diffusion.preview_steps", "train.num_metrics_images", "train.metrics_steps", "resume"}


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_ddpm, train_ldm], ids=lambda script: script.__name__)
def test_random_runs_end_soundly_or_are_refused(script, ldm_args, forgetful):
    schema = TrainDDPM if script is train_ddpm else TrainLDM
    base = [*DIGITS, *DDPM, *EVERY_STEP] if script is train_ddpm else ldm_args
    keys = sorted(set(read_keys(schema)) - LONG)

    @bounded(30)
    @given(st.sampled_from(keys), st.sampled_from([*NUMBERS, *WORDS, "2", "4", "8", "16", "[4,4]", "false"]))
    def run_it(key, value) -> None:
        folder = Path(tempfile.mkdtemp())
        (folder / "mine.txt").write_text("mine")
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                args = ["--output_dir", folder / "run", *base, "--train.max_steps", 1, f"--{key}={value}"]
                refused = one_line(lambda: run(patch, script, *args))
            assert (folder / "mine.txt").read_text() == "mine"
            if refused is None:
                with (folder / "run/metrics.csv").open() as file:
                    assert all(math.isfinite(float(cell)) for row in csv.DictReader(file) for cell in row.values() if cell)
                assert (folder / "run/pipeline/model_index.json").exists()
        finally:
            shutil.rmtree(folder)

    run_it()
