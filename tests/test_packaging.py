"""pyproject.toml and requirements.txt agree, and the installed packages find their files."""

import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from setuptools import find_namespace_packages

from tinyldm import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_lock_pins_every_dependency_within_its_bounds():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in map(Requirement, lines)}
    extras = [lines for name, lines in PROJECT["project"]["optional-dependencies"].items() if name != "app"]
    expected = [Requirement(line) for group in (PROJECT["project"]["dependencies"], *extras) for line in group]
    expected = {requirement.name.lower(): requirement for requirement in expected if requirement.name != "tinyldm"}
    assert expected.keys() == pins.keys()
    assert all(expected[name].specifier.contains(version) for name, version in pins.items())


def test_every_package_of_ours_is_installed():
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = set(find_namespace_packages(str(ROOT), include=include))
    folders = {file.parent.relative_to(ROOT) for name in ("tinyldm", "zsl") for file in (ROOT / name).rglob("*.py")}
    assert packages == {".".join(folder.parts) for folder in folders} | {"model_cards"}


def test_the_changes_and_the_citation_name_the_version():
    version, date = re.findall(r"^## (\S+) \(([\d-]+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    citation = (ROOT / "CITATION.cff").read_text()
    assert version == __version__ and f"version: {version}\ndate-released: {date}\n" in citation
    assert PROJECT["project"]["urls"]["Repository"] in citation


def test_make_clean_deletes_build_products_only():
    done = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "__pycache__" in done.stdout and not {"runs", "runs/", ".venv", "samples"} & set(done.stdout.split())
