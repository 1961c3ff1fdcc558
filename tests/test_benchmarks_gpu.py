"""benchmarks/gpu*.py on a CPU: the tables, the processes and their limits, what is packed, and each step but `resume`.

`resume` starts three processes, so only its comparison is tested here; `python -m benchmarks.gpu OUT --tiny true` runs it.
"""

import dataclasses
import io
import json
import re
import subprocess
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import gpu, gpu_pack, gpu_results, gpu_steps, gpu_trainings, latents, page
from benchmarks.gpu_results import FILE, Results
from benchmarks.gpu_setting import Setting, difference
from tests.support.runs import quicken
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainDDPM, Training, TrainLDM
from tinyldm.randomness import Draw

MACHINE = {"gpus": ["a GPU"], "cores": 2, "load": 1.0, "python": "3"} | dict.fromkeys(("torch", "diffusers"), "1")
MACHINE |= dict.fromkeys(("datasets", "pillow"), "1")
SILENT = {"date": "2026-01-01", "command": "python -m benchmarks.gpu OUT", "commit": "abc", "small": False}


# ------------------------------------------------------------------------------------------------------------- the tables


def test_tables_have_the_latest_figures_of_each_row(tmp_path):
    first, second = Results(tmp_path, "steps a"), Results(tmp_path, "steps b")
    first.tell("steps", "a", **{"images/s": 1.0, "GiB": 0.25})
    first.failed("kernels", "why")
    second.failed("steps", "too slow")
    first.began()  # again
    first.tell("steps", "a", **{"images/s": 12345.6})
    second.tell("steps", "b", kernels=1234, same=True)
    first.took(1.26)
    found = gpu_results.gathered(tmp_path / FILE)
    assert found["failed"] == ["steps b, steps: too slow"] and found["seconds"] == {"steps a": 1.3}
    assert gpu_results.text(found).splitlines() == [
        "| steps | images/s | GiB | kernels | same |",
        "| --- | --- | --- | --- | --- |",
        "| a | 12,346 | 0.25 |  |  |",
        "| b |  |  | 1,234 | yes |",
        "",
        "Failed:",
        "",
        "- steps b, steps: too slow",
    ]


def test_an_error_is_told_and_what_was_found_before_it_stays(tmp_path):
    results = Results(tmp_path, "units")
    with results.attempt("codes"):
        results.tell("codes", "float64", share=0.0)
        raise ValueError("two\nlines")
    found = gpu_results.gathered(tmp_path / FILE)
    assert found["failed"] == ["units, codes: ValueError: two lines"] and found["tables"]["codes"]


def test_the_page_has_the_tables_of_a_gpu_only(tmp_path):
    figures = {"tables": {"encoding": {"fp16": {"views/s": 700.0}}}, "failed": [], "seconds": {}}
    block = "<!-- gpu -->\n<!-- /gpu -->"
    assert gpu_results.NOT_RUN in page.fill(block, tmp_path)
    for machine, expected in ((MACHINE, "| fp16 | 700 |"), (MACHINE | {"gpus": [], "processor": "x"}, gpu_results.NOT_RUN)):
        (tmp_path / "gpu.json").write_text(json.dumps({**SILENT, **figures, "machine": machine}))
        assert expected in page.fill(block, tmp_path)


# ----------------------------------------------------------------------------------------------------------- the processes


def runner(folder: Path, seconds: float) -> gpu.Runner:
    return gpu.Runner(folder, folder, folder, True, time.monotonic() + seconds)


def test_a_step_ends_at_its_limit_with_all_that_it_started(tmp_path):
    process = subprocess.Popen(["bash", "-c", "sleep 100 & wait"], start_new_session=True)
    children: list[psutil.Process] = []
    while not children:
        children = psutil.Process(process.pid).children()
    runner(tmp_path, 100).wait(gpu.Step("units", 0.0), time.monotonic(), process)
    assert process.returncode == -9
    psutil.wait_procs(children, 10)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert "its time limit" in gpu_results.gathered(tmp_path / FILE)["failed"][0]


def test_steps_run_beside_each_other_only_if_nothing_in_them_is_timed(tmp_path, monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(gpu.Runner, "start", lambda self, step: events.append(f"+{step.name}{step.argument}"))
    monkeypatch.setattr(gpu.Runner, "wait", lambda self, step, *_: events.append(f"-{step.name}"))
    steps = [gpu.Step("a", 1, beside=True), gpu.Step("b", 1, beside=True), gpu.Step("c", 1), gpu.Step("d", 1, gpu.REST)]
    runner(tmp_path, 150).run(steps)
    assert events == ["+a", "+b", "-a", "-b", "+c", "-c", "+d50", "-d"]
    runner(tmp_path, gpu.LEAST - 1).run(steps[:1])
    assert gpu_results.gathered(tmp_path / FILE)["failed"] == ["a, a: no time was left"]


def test_every_step_of_the_plan_exists():
    for step in (*gpu.PLAN, *gpu.TINY):
        assert step.name in gpu_steps.STEPS
        assert step.name not in ("steps", "compile_ahead") or step.argument in gpu_steps.VARIANTS
    commands = gpu.__doc__.split("Then two calls")[1]
    asked = {name for names in re.findall(r"--only ([\w,]+)", commands) for name in names.split(",")}
    assert asked == {gpu.TABLE, *(step.asked or step.name for step in gpu.PLAN)}
    with pytest.raises(SystemExit, match="no step stpes"):
        gpu.main("unused", only="env,stpes")


# -------------------------------------------------------------------------------------------------------------- the packer


def test_what_is_packed_is_what_the_steps_read(vq_run, tmp_path, capsys):
    latents.drawn_faces(tmp_path / "images", 5, 3, 24)
    arguments = {"data": str(tmp_path / "images"), "first_stage": str(vq_run), "side": 16, "images": 4, "quality": 95}
    for _ in range(2):  # the second replaces the first
        gpu_pack.main(str(tmp_path / "packed"), **arguments)
    setting = Setting("", tmp_path, tmp_path / "work", tmp_path / "packed", True)
    for number, count in enumerate((4, 3)):
        packed = list(gpu_pack.squares_of(str(setting.small_images), number, 16))
        given = list(gpu_pack.squares_of(str(tmp_path / "images"), number, 16))[:count]
        assert len(packed) == count
        assert all(np.abs(a.astype(int) - b).mean() < 6 for a, b in zip(packed, given, strict=True))
    (row,) = pyarrow.parquet.read_table(setting.small_images / "train-0.parquet")["image"].to_pylist()[:1]
    assert Image.open(io.BytesIO(row["bytes"])).format == "JPEG"
    assert (setting.small_stage / "vqvae/config.json").exists()
    printed = capsys.readouterr().out
    assert all(f"{name}=={version(name)}" in printed for name in gpu_pack.LACKING) and "train: 4 images" in printed


def test_a_run_without_a_first_stage_is_refused_before_anything_is_packed(tmp_path):
    with pytest.raises(SystemExit, match="no vqvae"):
        gpu_pack.main(str(tmp_path / "packed"), first_stage=str(tmp_path))
    assert not (tmp_path / "packed").exists()


# --------------------------------------------------------------------------------------------------------------- the steps


def test_waits_are_counted_by_the_line_of_the_project(monkeypatch):
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: warnings.warn("called a synchronizing CUDA operation", stacklevel=1))
    found = Counter[str]()
    with gpu_steps.waits(found):
        for _ in range(2):
            Draw(0, 0, 0).common(1)
        warnings.warn("something else", stacklevel=1)
    with warnings.catch_warnings(record=True):
        Draw(0, 0, 0).common(1)  # no longer counted
    ((place, times),) = found.items()
    assert place.startswith("randomness.py:") and " common, in test_benchmarks_gpu.py:" in place
    assert times == 2 and modes == ["warn", "default"]


def test_steady_speed_leaves_out_spans_with_other_work():
    ended, now = [], 0.0
    for step in range(101):
        now += 60.0 if step in (2, 55) else 0.5  # compiling, evaluating
        ended.append(now)
    assert gpu_trainings.steady(ended, 8) == pytest.approx(16)
    assert gpu_trainings.steady([1.0, 3.0], 8) == pytest.approx(4)


def test_weights_are_compared_in_all_networks(tmp_path):
    for name, last in (("whole", 1.0), ("again", 1.0), ("resumed", 2.0)):
        folder = tmp_path / f"plain-{name}/checkpoints/step-4"
        folder.mkdir(parents=True)
        save_file({"a": torch.zeros(2)}, folder / "denoiser.safetensors")
        save_file({"a": torch.tensor([0.0, last])}, folder / "ema.safetensors")
    gpu_trainings.compare(tmp_path, "plain", ["whole", "again", "resumed"], 4, Results(tmp_path, "resume"))
    (rows,) = gpu_results.gathered(tmp_path / FILE)["tables"].values()
    assert rows["plain, again"] == {"bit for bit": True, "relative difference": 0.0}
    assert rows["plain, resumed"] == {"bit for bit": False, "relative difference": 1.0}


def test_relative_difference():
    assert difference(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)


def test_full_size_trainings_are_valid_recipes(tmp_path, monkeypatch):
    configs: dict[str, Training] = {}

    def trained(args: list[str], pixels: bool = False) -> dict[str, Any]:
        config = parse(TrainDDPM if pixels else TrainLDM, "", args)
        name = Path(config.output_dir).name
        assert (name in configs) == bool(config.resume)
        configs[name] = config
        figures = dict.fromkeys(("steps", "images/s", "s to the first step", "s in all", "GiB", "held-out loss"), 1000.0)
        return {**figures, "losses": {200: 0.5}, "encoded": {"train": 1.0}}

    for name, fake in (
        ("train", trained),
        ("in_new_process", lambda function, *args: gpu_trainings.train(*args)),
        ("draw", lambda *_: (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 1.0)),
        ("compare", lambda *_: None),
    ):
        monkeypatch.setattr(gpu_trainings, name, fake)
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained/loss.png").touch()
    (tmp_path / "pixels/samples").mkdir(parents=True)
    (tmp_path / "pixels/samples/step-1.png").touch()
    setting = Setting("100", tmp_path, tmp_path, tmp_path, False)
    for step in ("headline", "resume", "precision", "train_faces", "train_pixels"):
        gpu_steps.STEPS[step](setting, Results(tmp_path, step))
    assert gpu_results.gathered(tmp_path / FILE)["failed"] == []
    modes, names = ("plain", "deterministic", "compiled"), ("whole", "again", "resumed")
    faces = {"trained", "bf16,-compiled", "float32-(TF32)", "bf16", "fp16"}
    assert configs.keys() == {"headline", "pixels", *faces, *(f"{mode}-{name}" for mode in modes for name in names)}
    recipe = parse(TrainLDM, "", ["--config", str(page.ROOT / "configs/celebahq256.yaml")])
    assert (configs["headline"].unet, configs["headline"].scheduler) == (recipe.unet, recipe.scheduler)
    assert configs["headline"].unet == configs["pixels"].unet
    for config in configs.values():  # nothing that needs Inception's weights from the network
        assert config.guidance.scale == 2 and config.train.metrics_steps is None
    assert configs["trained"].train.max_steps == 100 * 1000 // 256  # as fast as the first training of `precision` was
    assert configs["compiled-again"].train.compile and not configs["plain-again"].train.compile
    assert [name for name in sorted(configs) if configs[name].train.deterministic] == [
        f"deterministic-{n}" for n in sorted(names)
    ]


@pytest.mark.slow
def test_all_steps_at_tiny_size(tmp_path, monkeypatch):
    """Two steps as the benchmark runs them, in processes; the others in this one."""
    out, work = tmp_path / "out", tmp_path / "work"
    gpu.main(str(out), 1000, "env,faces", str(tmp_path / "none"), str(work), True)
    quicken(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # the steps change it
    monkeypatch.setattr(gpu_trainings, "in_new_process", lambda function, *args: function(*args))
    setting = Setting("", out, work, tmp_path / "none", True)
    for step, argument in (
        *((name, "") for name in ("units", "encode", "headline", "precision")),
        *(("steps", "batch 64"), ("train_faces", "1"), ("train_pixels", "1")),
    ):
        gpu_steps.STEPS[step](dataclasses.replace(setting, argument=argument), Results(out, step))
    gpu.main(str(out), 1000, "table", str(tmp_path / "none"), str(work), True)
    found = json.loads((out / "gpu.json").read_text())
    assert found["small"] and found["failed"] == [] and set(found["seconds"]) == {"env", "faces"}
    tables = found["tables"]
    codes = tables["first stage: share of codes that differ"]
    for name in ("from float64", "from those of the decoder", "in stored latents (FirstStage.to_half)"):
        assert codes[name]["codes"] == 0
    assert (
        codes["encoded in bf16"]["latents, relative difference"] > codes["encoded in fp16"]["latents, relative difference"] > 0
    )
    assert tables["the same seeds drawn one by one"]["and 2 at once"]["largest difference of 255"] <= 1
    assert tables["configs/celebahq256.yaml"]["training"]["images/s of the first pass, each twice"] > 0
    assert {file.name for file in out.iterdir()} == {
        *("results.jsonl", "gpu.json", "log.txt", "faces.png", "loss.png", "pixels.png", "samples.npz")
    }
    assert np.load(out / "samples.npz")["arr_0"].shape == (4, 32, 32, 3)
