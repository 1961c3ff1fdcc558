"""Each entry point sets the spin count of OpenMP's threads before it imports torch, which reads it only then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START = """
import importlib.abc, os, runpy, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("spin count:", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.path.insert(0, os.getcwd())
sys.argv = sys.argv[1:]
{}
"""
SCRIPT, MODULE = "runpy.run_path(sys.argv[0], run_name='__main__')", "runpy.run_module(sys.argv[0], run_name='__main__')"
ENTRIES = {
    **{
        name: (SCRIPT, f"{name}.py", "--output_dir", "x", "--train.max_steps", "1")
        for name in ("train_vq", "train_ldm", "train_ddpm")
    },
    "train_classifier": (SCRIPT, "train_classifier.py", "--config", "configs/digits-classifier.yaml"),
    "sample": (SCRIPT, "sample.py", "--model", "x"),
    "evaluate": (SCRIPT, "evaluate.py", "--model", "x"),
    "describe": (MODULE, "tinyldm.describe", "configs/demo.yaml"),
    "ema": (MODULE, "tinyldm.ema", "x"),
    "zsl": (MODULE, "zsl", "evaluate", "--run", "x"),
    "benchmark": (MODULE, "benchmarks.loop"),
    "test worker": (MODULE, "tests.support.preload"),
}


def spin_count(entry: str, **environment: str) -> str:
    start, *args = ENTRIES[entry]
    unset = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", START.format(start), *args]
    done = subprocess.run(command, cwd=ROOT, env={**unset, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.partition("spin count: ")[2].strip()


@pytest.mark.parametrize("entry", ENTRIES)
def test_set_before_torch_is_imported(entry):
    assert spin_count(entry) == "10000"


def test_a_users_own_setting_wins():
    assert spin_count("sample", GOMP_SPINCOUNT="7") == "7"
    assert spin_count("sample", OMP_WAIT_POLICY="PASSIVE") == "None"
