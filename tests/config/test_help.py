"""`--help` of each command: quick, short, and with `all` complete."""

import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

from tests.support.runs import ROOT
from tests.support.scripts import SCRIPTS
from tinyldm.config.help import docstrings, first_keys, help_text
from tinyldm.config.keys import read_keys
from tinyldm.config.schema import TrainDDPM


def keys(schema, prefix: str = "") -> list[str]:
    """Every key that a YAML file may have."""
    actual = []
    for item in fields(schema):
        actual += keys(item.type, f"{prefix}{item.name}.") if is_dataclass(item.type) else [prefix + item.name]
    return actual


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick_and_shows_about_fifteen_keys(script):
    # CPU seconds of the child only, since the machine may be busy.
    before = os.times()
    done = subprocess.run([sys.executable, "-X", "importtime", script, "--help"], capture_output=True, text=True, cwd=ROOT)
    seconds = (os.times().children_user - before.children_user) + (os.times().children_system - before.children_system)
    assert done.returncode == 0 and seconds < 1.5
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "jsonargparse" in imported and not imported & {"torch", "diffusers", "datasets", "numpy"}
    assert f"usage: python {script} [--config RECIPE] [--KEY VALUE ...]" in done.stdout
    examples = [line for line in (ROOT / script).read_text().split('"""')[1].splitlines() if script in line]
    assert len(examples) >= 2 and "\n".join(examples) in done.stdout  # not reflowed
    assert 13 <= len(re.findall(r"^  --\w", done.stdout, re.MULTILINE)) <= 18
    assert re.search(rf"python {script} --help all lists the other \d+ keys", done.stdout)


@pytest.mark.parametrize("schema", SCRIPTS.values())
def test_help_all_has_every_key_with_its_type_default_and_text(schema):
    text = " ".join(help_text(schema, "A test.", everything=True).split())
    for key in keys(schema):
        entry = re.search(rf"--{re.escape(key)} \(type: .*?; (default: .*?|required)\) [`\w]", text)
        assert entry and " --" not in entry[0], f"{key} is not explained"


@pytest.mark.parametrize("schema", SCRIPTS.values())
def test_every_key_has_a_docstring_of_sentences(schema):
    for key in read_keys(schema).values():
        text = docstrings(key.owner).get(key.leaf, "")
        assert text.rstrip().endswith("."), key.name


@pytest.mark.parametrize("schema", SCRIPTS.values())
def test_the_keys_shown_first_exist(schema):
    assert len(first_keys(schema, read_keys(schema))) >= 14


def test_defaults_are_those_of_the_script():
    assert "--scheduler.prediction_type (type: one of epsilon, v_prediction, sample; default: epsilon)" in " ".join(
        help_text(TrainDDPM, "", everything=True).split()
    )
    assert "--diffusion.snr_gamma (type: number above 0 or auto, or null; default: null)" in help_text(
        TrainDDPM, "", everything=True
    )
