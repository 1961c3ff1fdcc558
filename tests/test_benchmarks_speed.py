"""benchmarks/: each one runs at a small size, and the page only has measured numbers.

`startup` and `processes` start programs for tens of seconds, so only the tables of their results are tested.
"""

import json
import math
import time
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import (
    busy,
    costs,
    data,
    decoding,
    forward_processes,
    latents,
    loop,
    measure,
    memory,
    page,
    page_speed,
    power_ema,
    same_image,
    samplers,
    sampling,
    sweep,
    sweep_unet,
    sweep_vq,
    training,
)
from benchmarks.sweep import BASE, Variant
from tests.support.runs import quicken
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM, TrainVQ
from tinyldm.data.batch import Batch
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.models.denoiser import make_denoiser
from tinyldm.randomness import Draw
from tinyldm.training import accelerator as processes

SLOW = 0.2  # CPU seconds
MACHINE = dict.fromkeys(("processor", "python", *measure.LIBRARIES), "1") | {"cores": 2, "load": 2.0, "gpus": []}
FROM = {"command": "python -m benchmarks.x", "commit": "abc", "date": "2026-01-01", "small": False, "machine": MACHINE}
PAIR = {"median": 1.5, "min": 1.0, "max": 2.0, "pairs": 3, "ours": 3.0, "other": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Results of all benchmarks at a small size."""
    output = tmp_path_factory.mktemp("performance")
    with pytest.MonkeyPatch.context() as patch:
        for module in (memory, decoding):
            patch.setattr(module, "in_new_process", lambda function, *args: function(*args))
        patch.setattr(decoding.model_module, "DECODED_AT_ONCE", decoding.model_module.DECODED_AT_ONCE)  # it is changed
        patch.setattr(processes, "cores", lambda: 1)  # tiny networks: one thread is faster
        patch.setattr(measure, "cores", lambda: 1)
        loop.main(small=True, output=str(output), pairs=1, steps=2)  # it times drawing the curves
        quicken(patch)
        with pytest.MonkeyPatch.context() as slow:  # make encoding much slower than a training step
            encode = FirstStage.encode
            slow.setattr(FirstStage, "encode", lambda self, images: work(SLOW) or encode(self, images))
            latents.main(small=True, output=str(output), pairs=1, images=4, batch_size=2)
        for module, args in (
            (decoding, {"images": 2}),
            (sampling, {"pairs": 1, "images": 2, "steps": 2}),
            (training, {"minutes": 0.001}),
            (same_image, {}),
            (sweep_unet, {"seeds": 1, "seconds": 0.1}),
            (sweep_vq, {"seeds": 1, "seconds": 0.1}),
            (costs, {}),
            (data, {"pairs": 1, "images": 16}),
            (memory, {}),
            (power_ema, {}),
        ):
            module.main(small=True, output=str(output), **args)
    return output


def work(seconds: float) -> None:
    """Keeps the CPU busy: with one thread, the benchmarks count CPU seconds."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def result(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_power_averages_take_two_copies_of_the_weights_and_half_of_it_on_the_disk(folder):
    found = result(folder, "power_ema")
    assert found["memory"] == 2 * 4 * 4_948_867  # faces64's parameters
    assert found["memory"] / 2 < found["file"] < 1.01 * found["memory"] / 2
    assert 0 < found["seconds"]["averages"] < found["seconds"]["step"]


def test_pairs_are_measured_in_turns():
    calls = []
    ours, other = (lambda name=name, speed=speed: calls.append(name) or speed for name, speed in (("a", 6.0), ("b", 2.0)))
    speeds = measure.in_turns(ours, other, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert speeds == [(6.0, 2.0)] * 3
    assert measure.ratio([(1, 2), (3, 2), (8, 2)]) == {"median": 1.5, "min": 0.5, "max": 4, "pairs": 3, "ours": 3, "other": 2}


@pytest.mark.slow
def test_each_result_records_its_command_and_machine(folder):
    names = {file.stem for file in folder.glob("*.json")}
    quick = {"latents", "same_image", "loop", "data", "memory", "sampling", "decoding", "training", "costs"}
    assert names == {*quick, "power_ema", "sweep_unet", "sweep_vq"}
    for name in names:
        figures = result(folder, name)
        assert (
            figures["command"].startswith(f"python -m benchmarks.{name}") and figures["machine"]["torch"] and figures["small"]
        )


@pytest.mark.slow
def test_kept_latents_are_faster_than_encoding(folder):
    """Encoding takes SLOW seconds per batch of 2. Only a training without stored latents needs this time in each step."""
    figures = result(folder, "latents")["kept"]
    assert figures["other"] < 1.1 * 2 / SLOW < figures["ours"]  # the first batch may be read before the clock starts


@pytest.mark.slow
def test_the_loop_counts_periodic_work(folder):
    figures = result(folder, "loop")
    keys = {"logging_steps", "eval_steps", "eval_steps, its row", "eval_steps, its curves", "sample_steps"}
    keys |= {"checkpointing_steps", "checkpointing_steps, its model"}
    assert figures["now_and_then"].keys() == keys
    assert 0 < figures["shares"]["faces64"] < figures["shares"]["defaults"] < figures["steps"]["median"]
    assert figures["seconds_a_step"]["defaults"]["eval_steps"] == pytest.approx(figures["now_and_then"]["eval_steps"] / 1000)


@pytest.mark.slow
def test_sampling_draws_the_pictures_of_diffusers(folder):
    assert result(folder, "sampling")["speed"]["same_pictures"] == 1


def test_each_sampler_has_its_steps_and_the_seeds_of_each_set(ldm_run, monkeypatch):
    seen = []

    class Counting:
        def __init__(self, config, accelerator):
            assert (config.train.metrics_features, config.train.num_metrics_images) == ("inception", 3)

        def sums(self, batches):
            seen.append(torch.cat(batches))
            return {"count": len(seen[-1])}

        def distance(self, sums):
            return float(sums["count"])

    monkeypatch.setattr(samplers, "Quality", Counting)
    monkeypatch.setattr(samplers, "TABLE", [("ddim", 2), ("heun", 3)])
    rows, left_out = samplers.samplers(str(ldm_run), None, 1.0, 3, 2, "inception")
    assert [(row["sampler"], row["steps"], row["evaluations"], row["fds"]) for row in rows] == [
        ("ddim", 2, 2, [3.0, 3.0]),
        ("heun", 3, 5, [3.0, 3.0]),
    ]
    assert not left_out and len(seen) == 4 and all(images.dtype == torch.uint8 for images in seen)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_processes_are_compared_on_the_same_questions(ldm_run, tmp_path, monkeypatch):
    class Counting:
        def __init__(self, config, accelerator):
            pass

        def sums(self, batches):
            return torch.cat(list(batches))

        def distance(self, images):
            return float(images.float().std())

    monkeypatch.setattr(forward_processes, "Quality", Counting)
    monkeypatch.setattr(forward_processes, "EVALUATIONS", (4, 6))
    stage = yaml.safe_load((ldm_run / "config.yaml").read_text())["first_stage"]["path"]
    where = {"runs": str(tmp_path / "runs"), "output": str(tmp_path / "out"), "recipe": str(ldm_run / "config.yaml")}
    for _ in range(2):  # the second call trains nothing again
        forward_processes.main(**where, first_stage=stage, minutes=0.01, kinds=["flow", "vp"], images=4, sets=2)
    found = json.loads((tmp_path / "out/forward_processes.json").read_text())
    assert list(found["rows"]) == ["vp", "flow"] and found["small"]
    for row in found["rows"].values():
        assert len(row["distances"]) == 5 and all(len(each["fds"]) == 2 for each in row["distances"])
        known = [error for error in row["errors"] if not math.isnan(error)]
        assert len(known) > 6 and known == sorted(known)  # more noise, more error
    assert (tmp_path / "out/forward_processes.png").exists()


def test_speed_counts_images():
    images = torch.zeros(5, 3, 2, 2)
    for batch in (Batch(images), images):
        batches = iter([batch] * 3)
        data.speed(batches, 10)
        assert len(list(batches)) == 1


@pytest.mark.slow
def test_code_indices_and_the_latents_themselves_decode_to_the_same_image(folder):
    forms = result(folder, "same_image")["forms"]
    assert forms["float32"]["values"] == forms["code indices"]["codes"] == forms["code indices"]["images"] == 0
    assert forms["code indices"]["values"] < 1e-3 and forms["code indices"]["most"] <= 1  # rounding only
    kept = "float16 of the same codes (what is kept)"
    half = 2 * 3 * 64
    size = {"float32": 2 * half, "float16": half, kept: half, "bfloat16": half, "code indices": 64}
    assert {name: form["bytes"] for name, form in forms.items()} == size
    assert forms[kept]["codes"] == 0 and forms[kept]["most"] <= 1


@pytest.mark.slow
def test_both_loops_are_evaluated_on_the_same_images(folder):
    runs = result(folder, "training")["trainings"]
    assert set(runs) == {f"{space}, {who}" for space in ("pixels", "latents") for who in ("ours", "example")}
    for run in runs.values():
        seconds, losses = zip(*run["curve"], strict=True)
        assert len(losses) >= training.MARKS and list(seconds) == sorted(seconds)
        assert all(0 < loss < 2 for loss in losses)  # predicting zero noise would give 1


# ---------------------------------------------------------------------------------------------------------------- sweeps


@pytest.mark.slow
def test_every_variant_is_a_recipe_of_about_5_million_parameters():
    for variant in sweep_unet.VARIANTS:
        args = ["--config", str(page.ROOT / "configs/faces64.yaml"), "--output_dir", "x", *sweep_unet.BASE_ARGS, *variant.args]
        with torch.device("meta"):
            unet = make_denoiser(parse(TrainLDM, "", args).unet, 16, 3)
        assert 4.5e6 <= sum(weight.numel() for weight in unet.parameters()) <= 5.5e6, variant
    for variant in sweep_vq.VARIANTS:
        args = ["--config", str(page.ROOT / "configs/faces64-vq.yaml"), "--output_dir", "x", *sweep_vq.BASE_ARGS, *variant.args]
        config = parse(TrainVQ, "", args)
        # Events that are counted in steps start after the same number of images at any batch size.
        assert config.loss.quantize_start * config.train.batch_size == 800
        assert config.loss.revive_steps * config.train.batch_size == 800


@pytest.mark.slow
def test_a_sweep_resumes_where_it_stopped(folder, monkeypatch):
    table, trained = folder / "sweep_unet.csv", []
    monkeypatch.setattr(sweep, "train_steps", lambda *args: trained.append(args))
    variants = [sweep_unet.VARIANTS[0], Variant("timesteps", "logit-normal")]
    rows = sweep.run_all(variants, None, None, 0.1, 1, table, sweep_unet.LOSS, 1)
    assert not trained and [row["variant"] for row in rows] == ["64-128-128, 1 layer", "logit-normal"]
    assert all(row["eval_loss"] > 0 and row["eval_eps"] > 0 and row["eval_bits"] > 0 for row in rows)
    assert (folder / "sweep_unet.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match=r"trainings of 0.1 s"):
        sweep.run_all(variants, None, None, 2.0, 1, table, sweep_unet.LOSS, 1)


def test_logit_normal_times_are_those_of_the_training(tmp_path, monkeypatch):
    images, stage, cache, small = latents.small_trial(tmp_path)
    args = [
        *latents.faces64_over(images, stage, cache),
        *small,
        "--output_dir",
        str(tmp_path / "run"),
        "--train.log_with",
        "none",
    ]
    config, drawn = parse(TrainLDM, "", args), []
    original = sweep_unet.LogitNormalVP.draw_times
    monkeypatch.setattr(sweep_unet.LogitNormalVP, "draw_times", lambda *args: drawn.append(original(*args)) or drawn[-1])
    trainer = measure.train_steps(config, sweep_unet.LogitNormal, 2)
    assert [len(times) for times in drawn] == [4, 4]
    process = trainer.task.process
    times = original(process, 10_000, Draw(0, 0, 0)) / process.steps
    borders = torch.tensor([0.25, 0.5, 0.75])
    shares = [(times < border).float().mean().item() for border in borders]
    assert shares == pytest.approx(torch.special.ndtr(borders.logit()).tolist(), abs=0.002)


@pytest.mark.parametrize(("figure", "second"), [("eval_loss", ["b", "x"]), ("eval_psnr", ["b", "z"])])
def test_only_the_best_are_trained_with_another_seed(figure, second):
    variants = [Variant(BASE, "b"), *(Variant("f", name) for name in "xyz")]
    values = {"b": 2.0, "x": 1.0, "y": 3.0, "z": 4.0, "of another sweep": 0.5}
    rows = [
        {"factor": BASE if name == "b" else "f", "variant": name, "seed": 0, figure: value, "images_a_second": 1.0}
        for name, value in values.items()
    ]
    figure = sweep.Figure(figure, "", higher_is_better=figure == "eval_psnr")
    assert sweep.going_on(variants, [], 0, figure, 1) == variants
    assert [variant.name for variant in sweep.going_on(variants, rows, 1, figure, 1)] == second


def test_differences_are_to_the_base_of_the_same_seed():
    rows = [
        {"factor": factor, "variant": name, "seed": seed, "eval_loss": value, "images_a_second": 100.0 + seed}
        for factor, name, values in ((BASE, "b", (1.0, 3.0)), ("f", "x", (2.0, 6.0)), ("f", "y", (0.0, 2.0)))
        for seed, value in enumerate(values)
    ]
    base, x, y = sweep.summary(rows, "eval_loss")
    assert (base["difference"], x["difference"], y["difference"]) == (0, 2, -1)
    # x differs by 1 and 3, y by -1 twice: sum of squares 2 with two degrees of freedom, halved for two seeds
    assert base["images_a_second"] == 100 and base["eval_loss"] == 2
    assert base["error"] is None and x["error"] == y["error"] == pytest.approx((1 / 2) ** 0.5)
    assert [row["error"] for row in sweep.summary(rows[::2], "eval_loss")] == [None] * 3


# ------------------------------------------------------------------------------------------------------------------ page


@pytest.mark.slow
def test_small_results_are_not_measurements(folder):
    filled = page.fill(page.SPEED.read_text(encoding="utf-8"), folder)
    assert filled.count(page.NOT_YET) == len(page.BLOCK.findall(filled))
    ratios = page.block("ratios", folder)
    assert ratios.count("*not measured yet*") == len(page_speed.ROWS)


@pytest.mark.slow
def test_the_page_with_all_measurements(folder, tmp_path):
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_text(json.dumps(json.loads(file.read_text()) | {"small": False}))
    stages = {"importing torch": 2.0, "the first step": 9.5}
    by_hand = {
        "startup": {"help": {"train_ldm.py": 0.4}, "recipes": {"faces64": {"images": 12000, "stages": stages}}},
        "processes": {"two": PAIR, "batch_size": 64, "steps": 2},
        "loop": result(folder, "loop") | {"shares": {"defaults": 0.95, "faces64": 0.94}},
        "costs": {"recipes": {"celebahq256": {"batch_size": 64, "notes": [], "parts": celebahq()}}},
    }
    for name, figures in by_hand.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(figures | FROM))
    filled = page.fill(page.SPEED.read_text(encoding="utf-8"), tmp_path)
    assert filled.count(page.NOT_YET) == 2  # the table of samplers and busy programs have no small form
    assert "| importing torch | 2.00 | 2.00 |\n| the first step | 7.50 | 9.50 |" in filled
    assert "The aim was at least 97%: missed by 2 points." in filled
    # 40e12 / 311e9 / 2 views = 64 images/s, slower than the network's 125e6 / 100e3 = 1250; all to one digit
    assert "| 1,000 | " in filled and "| 60 | 7 min, first stage |" in filled


def celebahq() -> dict:
    stage = {"parameters": 55_322_782, "forward": 311e9, "step": None, "bytes": 2.2e8, "images_a_second": 0.3}
    unet = {"parameters": 5_400_000, "forward": 4.9e9, "step": 14.7e9, "bytes": 2e9, "images_a_second": 8.0}
    return {"first stage, encoding": stage, "UNet2DModel": unet}


def test_training_steps_are_timed_one_by_one(monkeypatch):
    monkeypatch.setattr(busy, "make_denoiser", lambda *args: Tiny())
    taken = busy.steps(0.05)
    assert len(taken) >= 3 and all(0 < seconds < 10 for seconds in taken)


class Tiny(torch.nn.Conv2d):
    """A network that is called as a Denoiser is."""

    def __init__(self):
        super().__init__(4, 4, 1)

    def forward(self, x, time_steps):
        return super().forward(x)
