"""The layout of the source tree: imports run downwards, files are short, tests mirror the folders."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import house

ROOT = Path(__file__).parents[1]
SOUND = {
    "train.py": "def main():\n    from tinyldm.training import loop\n",  # scripts may import late
    "tinyldm/__init__.py": "__version__ = '1'",
    "tinyldm/errors.py": "import os\n",
    "tinyldm/files.py": "from tinyldm.errors import UserError\n",
    "tinyldm/config/schema.py": "from tinyldm import __version__, errors\nfield = x.config.prediction_type\n",
    "tinyldm/training/hub.py": "def ask():\n    from huggingface_hub import get_token\n",
    "tinyldm/training/loop.py": "from . import hub\nfrom ..config import schema\n",
    "tinyldm/diffusion/process.py": "import tinyldm.config.schema\nfrom tinyldm.training.loop import run\na = s.betas\n",
    "zsl/__init__.py": "",
    "zsl/__main__.py": "import importlib\ndef main(name):\n    importlib.import_module(f'zsl.{name}')\n",
    "zsl/data.py": "from tinyldm.training import loop\n",
    "tests/test_files.py": "",
    "tests/zsl/test_data.py": "",
    **{f"tests/{room}/test_it.py": "" for room in ("config", "training", "diffusion")},
}
BODY = "    pass\n"
# Check, changed files, violations. The rest of the tree is sound.
UNSOUND = [
    (
        house.upward_imports,
        {
            "tinyldm/errors.py": "def f():\n    from tinyldm.files import g\n",
            "tinyldm/config/schema.py": "import tinyldm.diffusion.process\n",
            "tinyldm/training/hub.py": "from zsl.data import load\n",
            "tinyldm/diffusion/process.py": "from tinyldm.training import loop\n",
            "tinyldm/cellar.py": "from tinyldm import errors\n",
        },
        [
            "tinyldm/cellar.py:1: cellar is missing in the order of layers",
            "tinyldm/config/schema.py:1: config imports tinyldm.diffusion.process, which is above it",
            "tinyldm/errors.py:2: errors imports tinyldm.files, which is above it",
            "tinyldm/training/hub.py:1: tinyldm imports zsl.data",
        ],
    ),
    (
        house.circles,
        {
            "tinyldm/training/hub.py": "try:\n    from tinyldm.training import loop\nexcept ImportError:\n    pass\n",
            "zsl/data.py": "from zsl.a import f\n",
            "zsl/a.py": "from zsl import b\n",
            "zsl/b.py": "import zsl.data\ndef late():\n    from zsl import __main__\n",
        },
        [{"tinyldm.training.hub", "tinyldm.training.loop"}, {"zsl.a", "zsl.b", "zsl.data"}],
    ),
    (
        house.hidden_imports,
        {
            "tinyldm/training/loop.py": "import typing\nif typing.TYPE_CHECKING:\n    from tinyldm.config import schema\n",
            "zsl/data.py": "class A:\n    async def f(self):\n        from zsl import __main__\n",
            "zsl/a.py": "from importlib import import_module\ndef f(x):\n    import_module(f'zsl.{x}')\n    __import__(x)\n",
        },
        [
            "tinyldm/training/loop.py:3: tinyldm.config.schema is imported in a function or under TYPE_CHECKING",
            "zsl/a.py:3: zsl.{x} is imported in a function or under TYPE_CHECKING",
            "zsl/data.py:3: zsl.__main__ is imported in a function or under TYPE_CHECKING",
        ],
    ),
    (
        house.too_long,
        {
            "train.py": "#\n" * 401,
            "tinyldm/files.py": "#\n" * 400,
            "zsl/data.py": "class A:\n  def f():\n" + BODY * 80 + "  def g():\n" + BODY * 79,
        },
        ["train.py:1: 401 lines, more than 400", "zsl/data.py:2: f has 81 lines, more than 80"],
    ),
    (
        house.unmirrored,
        {"tinyldm/metrics/lpips.py": "", "tests/metrics/__init__.py": "", "tests/attic/test_it.py": ""},
        ["tests/attic: tinyldm has no such folder", "tests/metrics: no tests of tinyldm/metrics"],
    ),
    (
        house.scheduler_fields,
        {
            "train.py": "a = config['betas']\nwords = {'betas': 1}\n",
            "tinyldm/training/loop.py": "a = s.betas\nb = model.scheduler.config.prediction_type\nc = s.config\n",
            "zsl/data.py": "a = getattr(s, 'alphas_cumprod')\nb = s.config.get('variance_type', None)\n",
        },
        [
            "tinyldm/training/loop.py:1: reads the scheduler's betas",
            "tinyldm/training/loop.py:2: reads the scheduler's prediction_type",
            "train.py:1: reads the scheduler's betas",
            "zsl/data.py:1: reads the scheduler's alphas_cumprod",
            "zsl/data.py:2: reads the scheduler's variance_type",
        ],
    ),
]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("check", house.CHECKS, ids=lambda check: check.__name__)
def test_the_tree_has_no_violations(check):
    violations = check(ROOT)
    assert not violations, f"{len(violations)} violations. {check.__doc__}\n" + "\n".join(violations)


@pytest.mark.parametrize("check", house.CHECKS, ids=lambda check: check.__name__)
def test_a_valid_example_tree_has_no_violations(check, tmp_path):
    assert check(write(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("check", "changed", "expected"), UNSOUND, ids=lambda value: getattr(value, "__name__", ""))
def test_every_violation_is_found(check, changed, expected, tmp_path):
    violations = check(write(tmp_path, SOUND | changed))
    if check is house.circles:
        edges = [circle.split(" -> ") for circle in violations]
        assert all(circle[0] == circle[-1] for circle in edges)
        assert [set(circle) for circle in edges] == expected
        assert ("zsl.data", "zsl.a") in [edge for circle in edges for edge in pairwise(circle)]  # the importer comes first
    else:
        assert violations == expected


def test_every_check_has_an_example_violation():
    assert [case[0] for case in UNSOUND] == house.CHECKS
