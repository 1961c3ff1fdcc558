"""What is true on a GPU, and how fast: rounding, waits, encoding, training steps, the README's recipe, faces in two minutes.

    python -m benchmarks.gpu OUT                        # 15 minutes on an H100; cartoon faces where nothing is packed
    python -m benchmarks.gpu OUT --only env,units       # some steps; the table has all that OUT/results.jsonl holds
    python -m benchmarks.gpu OUT --only table           # the table again, e.g. of the joined results.jsonl of two calls
    python -m benchmarks.gpu OUT --tiny true            # small networks on a CPU, to check that it runs: 3 CPU minutes

Each step is a process of its own with a time limit and writes what it finds to OUT/results.jsonl at once. Seven files come
back: results.jsonl, gpu.json (for docs/performance/), log.txt, faces.png, loss.png, pixels.png and samples.npz.

On a lent machine without a network and with 15 minutes in all, where a command may take 10 minutes and 2,000 characters.
Before, in the project's folder:

    echo /.gpu/ >> .git/info/exclude
    python -m benchmarks.gpu_pack .gpu --data ../shared/data/faces --first_stage runs/faces64-vq

and the command that this prints. Then two calls, each with the folder .gpu carried along, the second while the machine is warm:

    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .gpu/wheels/*.whl &&
    export PYTHONPATH=/tmp/site || exit; python3 -m benchmarks.gpu $OUT --budget 270 --only env,faces,units,steps,encode

    (the same) python3 -m benchmarks.gpu $OUT --budget 530 --only headline,resume,precision,train_faces,train_pixels

with limits of 310 and 570 s. On a fresh machine the second call needs the step faces, too. Afterwards `cat` both results.jsonl
into one in a new folder, and run `--only table` there. Faces, and weights trained on photographs, go into no repository.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.gpu_results import FILE, Results, gathered, text
from benchmarks.measure import ROOT, record

LEAST = 25.0  # seconds left: no step starts with less
RESERVED = 15.0  # seconds for the table
TABLE = "table"


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of the plan.

    Attributes:
        limit: seconds after which it is ended.
        beside: it may run beside others, since nothing in it is timed.
        argument: see gpu_setting.Setting.
        asked: the name by which --only asks for it.
    """

    name: str
    limit: float
    argument: str = ""
    beside: bool = False
    asked: str = ""

    @property
    def title(self) -> str:
        """Its name and argument."""
        return f"{self.name} {self.argument}".strip()


ALONE = ("batch 64, contiguous", "batch 64")
COMPILED = ("batch 64, compiled", "batch 256, compiled", "batch 64, compiled, reduce-overhead")
NOT_TUNED = "batch 256, compiled, not tuned"
REST = "rest"  # an argument: the seconds that are left
PLAN = [
    Step("env", 90),
    Step("faces", 120),
    Step("units", 110, beside=True),
    *(Step("compile_ahead", 110, variant, beside=True, asked="steps") for variant in COMPILED),
    *(Step("steps", 60, variant) for variant in (*ALONE, *COMPILED, NOT_TUNED)),
    Step("encode", 90),
    Step("headline", 200),
    Step("resume", 120),
    Step("precision", 150),
    Step("train_faces", 190, "90"),
    Step("train_pixels", 240, REST),
]
TINY = [Step("env", 300), Step("faces", 300), Step("units", 300), Step("steps", 300, ALONE[1]), Step("encode", 300)]
TINY += [Step("headline", 300), Step("resume", 300), Step("precision", 300), Step("train_faces", 300, "1")]
TINY += [Step("train_pixels", 300, "1")]


def main(
    out: str, budget: float = 900.0, only: str = "", packed: str = ".gpu", work: str | None = None, tiny: bool = False
) -> None:
    """Run the benchmark.

    Args:
        out: folder for what comes back.
        budget: seconds for all of it.
        only: names of steps, separated by commas; `table` runs none. Empty: all.
        packed: what benchmarks.gpu_pack wrote. Cartoon faces and random weights stand in for what is not there.
        work: folder for data, runs and compiled kernels, which a second call finds again. null: tinyldm-gpu among the
            temporary files.
        tiny: small networks, few images and steps.
    """
    wanted = set(only.split(",")) - {""}
    if unknown := wanted - {TABLE} - {step.asked or step.name for step in PLAN}:
        raise SystemExit(f"there is no step {', '.join(sorted(unknown))}; steps: {', '.join(s.name for s in PLAN)}")
    folder = Path(out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(work or Path(tempfile.gettempdir()) / "tinyldm-gpu").absolute()
    place.mkdir(parents=True, exist_ok=True)
    steps = [step for step in (TINY if tiny else PLAN) if not wanted or (step.asked or step.name) in wanted]
    Runner(folder, place, Path(packed).absolute(), tiny, time.monotonic() + budget).run(steps)
    found = gathered(folder / FILE)
    print(text(found))
    record("gpu", found, str(folder), tiny)


@dataclasses.dataclass
class Runner:
    """Runs steps, those that allow it beside each other, until a moment of time.monotonic."""

    out: Path
    work: Path
    packed: Path
    tiny: bool
    until: float

    def run(self, steps: list[Step]) -> None:
        """Run the steps in their order."""
        beside: list[tuple[Step, float, subprocess.Popen]] = []
        for number, step in enumerate(steps):
            left = self.until - time.monotonic()
            if left < LEAST:
                Results(self.out, step.title).failed(step.name, "no time was left")
                continue
            if step.argument == REST:
                step = dataclasses.replace(step, argument=f"{max(20.0, left - 100):.0f}")
            beside.append((step, time.monotonic(), self.start(step)))
            if step.beside and number + 1 < len(steps) and steps[number + 1].beside:
                continue
            for started in beside:
                self.wait(*started)
            beside = []

    def start(self, step: Step) -> subprocess.Popen:
        """Start a step in a process group of its own."""
        Results(self.out, step.title).began()
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.work / "datasets"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "PYTHONUNBUFFERED": "1",
        }
        where = {"out": str(self.out), "work": str(self.work), "packed": str(self.packed), "tiny": self.tiny}
        asked = json.dumps({"step": step.name, "argument": step.argument, **where})
        command = [sys.executable, "-m", "benchmarks.gpu_steps", asked]
        with (self.out / "log.txt").open("a") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, step: Step, began: float, process: subprocess.Popen) -> None:
        """Wait until a step ends; at its limit, end it and the trainings that it has started."""
        results = Results(self.out, step.title)
        limit = min(began + step.limit, self.until - RESERVED) - time.monotonic()
        try:
            if code := process.wait(max(1.0, limit)):
                results.failed(step.name, f"exit code {code}: see log.txt")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            results.failed(step.name, f"ended after {time.monotonic() - began:.0f} s, its time limit")
        results.took(time.monotonic() - began)


if __name__ == "__main__":
    auto_cli(main)
