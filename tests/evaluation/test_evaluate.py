import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from huggingface_hub import ModelCard
from PIL import Image

import evaluate
import train_vq
from tests.support.evaluations import FakeNetwork, pictures
from tests.support.runs import DIGITS, EVERY_STEP, VQ, files, rows, run
from tinyldm.config import evaluate as evaluate_config
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing import sampling
from tinyldm.errors import UserError
from tinyldm.evaluation import first_stage
from tinyldm.evaluation.workspace import Workspace
from tinyldm.metrics import chunks, features
from tinyldm.metrics.features import FeatureNetwork
from tinyldm.models import model as diffusion_model
from tinyldm.models.loading import load_model

pytestmark = pytest.mark.slow


@pytest.fixture
def network(monkeypatch):
    torch.set_num_threads(1)  # trainings set it to all cores, but tiny networks are slower with more
    fake = FakeNetwork()
    monkeypatch.setattr(features, "NETWORKS", {"inception": fake.load, "dinov2": fake.load})
    monkeypatch.setattr(first_stage, "load_lpips", fake.no_lpips)
    return fake


@pytest.fixture
def data(small_faces, tmp_path) -> list[str]:
    """60 faces, about half of them held out."""
    data = ["--data.name", small_faces, "--data.resolution", 16, "--data.eval_fraction", 0.5]
    return [*map(str, data), "--data.cache_dir", str(tmp_path / "cache")]


@pytest.fixture
def model(ldm_run, tmp_path, data) -> list[str]:
    """A copy of the run to write into, the data, and cheap sampling."""
    copy = shutil.copytree(ldm_run, tmp_path / "run")
    return ["--model", str(copy), "--num_inference_steps", "2", "--num_images", "24", "--batch_size", "8", *data]


@pytest.fixture
def go(monkeypatch, tmp_path, capsys):
    """Run evaluate.py; returns evaluation.json and what was printed."""

    def go(*args, output: Path | None = None) -> tuple[dict, str]:
        output = output or tmp_path / "evaluation"
        run(monkeypatch, evaluate, *args, "--output_dir", output)
        return json.loads((output / "evaluation.json").read_text()), capsys.readouterr().out

    return go


# ------------------------------------------------------------------------------------------------------------- end to end


def test_a_run_is_sampled_compared_and_reported(network, model, go, tmp_path):
    every = "fid,kid,prdc,is,memorisation"
    result, printed = go(*model, "--metrics", every)
    found = result["results"][0]
    assert list(found["figures"]) == ["FID", "KID", "precision", "recall", "density", "coverage", "Inception score"]
    for name, columns in found["figures"].items():
        assert list(columns) == ["samples", "real images", "reconstructions"], name
        for figure in columns.values():
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["images"] == 24
    distances = {column: figure["value"] for column, figure in found["figures"]["FID"].items()}
    assert distances["real images"] < distances["reconstructions"] and distances["real images"] < distances["samples"]
    images = result["images"]
    assert (images["count"], images["sampler"], images["num_inference_steps"], images["seed"]) == (24, "DDIMScheduler", 2, 0)
    assert images["weights"].startswith("EMA, decay") and re.fullmatch(r"[0-9a-f]{16}", images["weights_hash"])
    assert found["reference"]["part"] == "held_out" and found["reference"]["revision"] is None
    assert found["memorisation"]["train_images"] + found["memorisation"]["held_out_images"] == 60

    assert re.search(
        r"24 samples of .*run \(DDIMScheduler, 2 steps, guidance scale 2 \(weaker model\), seeds 0 to 23; weights: EMA", printed
    )
    assert (
        re.search(r"\nFID ↓ +[\d.]+ \[[\d.]+, [\d.]+\] +[\d.]+ \[", printed) and "Memorisation: a sample is nearer" in printed
    )
    assert files(tmp_path / "evaluation") >= {"samples.png", "neighbours-inception.png", "reference-inception-held_out.npz"}

    folder = tmp_path / "run"
    assert json.loads((folder / "evaluation.json").read_text()) == result
    last = rows(folder)[-1]
    assert float(last["evaluation_fid"]) == pytest.approx(distances["samples"]) and last["step"] == "6"
    assert last["evaluation_precision_inception"] and all(row.get("evaluation_fid", "") == "" for row in rows(folder)[:-1])
    card = ModelCard.load(folder / "README.md")
    fid = next(entry for entry in card.data.eval_results if entry.metric_type == "fid")
    assert fid.metric_name == "FID, 24 images" and fid.metric_args["num_inference_steps"] == 2
    assert "loss" in [entry.metric_type for entry in card.data.eval_results]
    assert card.text.index("## Evaluation") < card.text.index("| FID ↓ |") < card.text.index("## Limits and licence")


def test_repeating_an_evaluation_gives_the_same_result_from_saved_chunks(network, model, go, tmp_path):
    first, _ = go(*model)
    card = (tmp_path / "run/README.md").read_text()
    network.seen = 0
    second, _ = go(*model, "--batch_size", 5)
    assert network.seen == 0 and second == first and (tmp_path / "run/README.md").read_text() == card
    other, _ = go(*model, "--batch_size", 5, output=tmp_path / "other")  # sampled and embedded in other batches
    assert network.seen == 2 * 24  # samples and reconstructions: the features of the data are kept
    assert other["results"][0]["figures"]["FID"]["samples"]["value"] == pytest.approx(
        first["results"][0]["figures"]["FID"]["samples"]["value"], rel=1e-2
    )


def test_more_samples_are_added_to_the_existing_ones(network, model, go):
    go(*model, "--metrics", "fid")
    network.seen = 0
    result, _ = go(*model, "--metrics", "fid", "--num_images", 29)
    assert result["results"][0]["figures"]["FID"]["samples"]["images"] == 29 and network.seen <= 3 * 5
    fewer, _ = go(*model, "--metrics", "fid")
    assert fewer["results"][0]["figures"]["FID"]["samples"]["images"] == 24


def test_results_of_other_features_stay_and_those_of_other_images_are_removed(network, model, go, tmp_path):
    go(*model, "--metrics", "fid")
    path = tmp_path / "evaluation/evaluation.json"
    path.write_text(path.read_text().replace('"name": "inception"', '"name": "dinov2"'))
    both, _ = go(*model, "--metrics", "fid")
    assert [found["features"]["name"] for found in both["results"]] == ["dinov2", "inception"]
    path.write_text(path.read_text().replace('"dinov2"', '"inception"').replace('"seed": 0', '"seed": 1'))
    assert len(go(*model, "--metrics", "fid")[0]["results"]) == 1


def test_other_settings_in_the_same_folder_are_refused_until_overwritten(network, model, go, tmp_path):
    go(*model, "--metrics", "fid")
    with pytest.raises(UserError, match=r"num_inference_steps: 2 there, 3 now.*--overwrite true"):
        go(*model, "--metrics", "fid", "--num_inference_steps", 3)
    (tmp_path / "evaluation" / "mine.txt").write_text("stays")
    result, _ = go(*model, "--metrics", "fid", "--num_inference_steps", 3, "--overwrite", "true")
    assert result["images"]["num_inference_steps"] == 3 and (tmp_path / "evaluation" / "mine.txt").exists()


# ----------------------------------------------------------------------------------------------------------- after a kill


@pytest.mark.parametrize("after", [9, 45, 75])  # during features of the reference, the samples, the reconstructions
def test_features_resume_after_a_kill(network, model, go, tmp_path, monkeypatch, after):
    whole, _ = go(*model, output=tmp_path / "whole")
    total, network.seen = network.seen, 0
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(chunks, "SECONDS", 0.0)
    network.fail = after
    with pytest.raises(KeyboardInterrupt):
        go(*model)
    network.fail, network.seen = None, 0
    assert go(*model)[0] == whole
    assert total - after <= network.seen < total - after + 8 + 1  # less than a batch was lost, which is a chunk here


def test_sampling_resumes_after_a_kill(network, model, go, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "SECONDS", 0.0)
    denoise, seeds = sampling.denoise, []

    def dies(model, noise, settings, random, *others):
        if len(seeds) == 2:
            seeds.append(None)
            raise KeyboardInterrupt
        seeds.append([generator.initial_seed() for generator in random])
        return denoise(model, noise, settings, random, *others)

    monkeypatch.setattr(sampling, "denoise", dies)
    with pytest.raises(KeyboardInterrupt):
        go(*model, "--metrics", "fid")
    go(*model, "--metrics", "fid")
    seeds.remove(None)
    assert seeds[:3] == [list(range(first, first + 8)) for first in (0, 8, 16)]  # each seed once; a sheet may follow
    expected = next(sampling.sample(load_model(model[1]), 24, 8, 0, SamplerSettings(num_inference_steps=2)))
    drawn = chunks.Chunks(
        tmp_path / "evaluation/drawn", json.loads((tmp_path / "evaluation/drawn/made_of.json").read_text()), ""
    )
    np.testing.assert_array_equal(drawn.read(8)["images"], expected)


def test_a_half_written_chunk_and_a_damaged_one(network, model, go, tmp_path):
    go(*model, "--metrics", "fid")
    drawn = tmp_path / "evaluation/drawn"
    (drawn / ".00000001.npz").write_bytes(b"half")
    go(*model, "--metrics", "fid")
    (drawn / "00000000.npz").write_bytes((drawn / "00000000.npz").read_bytes()[:100])
    with pytest.raises(UserError, match=r"00000000.npz is damaged .*: delete the folder"):
        go(*model, "--metrics", "fid")


def test_several_runs_may_read_existing_chunks(tmp_path):
    def images(position, limit):
        yield torch.zeros(3, 3, 8, 8), 3

    def fill(limit):
        return chunks.fill(chunks.Chunks(tmp_path, {}, ""), limit, images, lambda batch: {"x": batch.numpy()}, "")

    assert fill(3) == 3
    with FileLock(tmp_path / ".lock"):
        assert (fill(2), fill(3)) == (2, 3)


def test_a_second_run_waits_and_repeats_nothing(tmp_path, capsys):
    first = chunks.Chunks(tmp_path, {}, "")
    with ThreadPoolExecutor(1) as pool:
        with first.locked():
            second = chunks.Chunks(tmp_path, {}, "")
            waiting = pool.submit(chunks.fill, second, 3, lambda *_: pytest.fail("made again"), None, "")
            while "waiting for another run, which makes the same chunks" not in capsys.readouterr().err:
                assert not waiting.done()
                time.sleep(0.01)
            first.add({"x": np.ones((3, 2))}, 3)
        assert waiting.result() == 3 and second.read(3)["x"].shape == (3, 2)


def test_a_run_in_training_is_not_changed(network, model, go, tmp_path):
    card = (tmp_path / "run/README.md").read_text()
    with FileLock(tmp_path / "run/.lock"):
        result, printed = go(*model, "--metrics", "fid")
    assert "where a training is running" in printed and result["results"]
    assert (tmp_path / "run/README.md").read_text() == card and not (tmp_path / "run/evaluation.json").exists()


# ------------------------------------------------------------------------------------------------------------ first stage


def test_a_first_stage_is_evaluated_by_its_reconstructions(network, vq_run, go, tmp_path):
    copy = shutil.copytree(vq_run, tmp_path / "vq")
    cache = ["--data.cache_dir", tmp_path / "cache"]
    result, printed = go("--model", copy, "--num_images", 24, "--batch_size", 10, *cache)
    found = result["results"][0]
    assert list(found["figures"]) == ["rFID", "rKID", "PSNR", "SSIM"] and "no LPIPS" in printed
    assert all(list(columns) == ["reconstructions"] for columns in found["figures"].values())
    assert found["figures"]["PSNR"]["reconstructions"]["images"] == 24 == found["reference"]["images"]
    assert found["codebook"]["codes"] == 32 and 1 <= found["codebook"]["perplexity"] <= 32 * found["codebook"]["used"] + 1e-6
    assert "Codebook: " in printed and (tmp_path / "evaluation/reconstructions.png").exists()
    card = ModelCard.load(copy / "README.md")
    assert {"rfid", "psnr"} <= {entry.metric_type for entry in card.data.eval_results}
    assert float(rows(copy)[-1]["evaluation_rfid"]) == found["figures"]["rFID"]["reconstructions"]["value"]
    with pytest.raises(UserError, match="held-out part: remove --reference"):
        go("--model", copy, "--reference", "train", *cache)
    with pytest.raises(UserError, match="a first stage draws none: remove it"):
        go("--model", copy, "--sweep", "eta=0,1", *cache)


def test_psnr_and_ssim_equal_those_of_the_training(network, vq_run, go, tmp_path, monkeypatch):
    """A training with 12 held-out images and the same weights writes the same values into metrics.csv. Here the first stage
    gets batches of three."""
    monkeypatch.setattr(diffusion_model, "DECODED_AT_ONCE", 3 * 4 * 4)
    trained = {key: float(value) for key, value in rows(vq_run)[-1].items() if key.startswith("eval_")}
    result, _ = go("--model", vq_run / "vqvae", "--num_images", 20, "--data.resolution", 16, "--data.eval_split", "validation",
                   "--data.cache_dir", tmp_path / "cache")  # fmt: skip
    found = chunks.Chunks(folder := tmp_path / "evaluation/features/inception-reconstructions",
                          json.loads((folder / "made_of.json").read_text()), "").read(12)  # fmt: skip
    assert found["PSNR"].mean() == pytest.approx(trained["eval_psnr"], abs=0.02)
    assert found["SSIM"].mean() == pytest.approx(trained["eval_ssim"], abs=1e-3)
    uses = np.bincount(found["codes"].ravel(), minlength=32)
    assert (uses > 0).mean() == pytest.approx(trained["eval_codes_used"], abs=1 / 32)
    assert result["images"]["weights"] == "as published"


def test_a_first_stage_of_grey_images(network, go, tmp_path, monkeypatch):
    grey = [*DIGITS, *EVERY_STEP, *VQ, "--train.max_steps", 4]
    run(monkeypatch, train_vq, "--output_dir", tmp_path / "run", *grey, "--data.cache_dir", tmp_path / "cache")
    assert float(rows(tmp_path / "run")[-1]["discriminator"]) > 0
    result, _ = go("--model", tmp_path / "run", "--num_images", 24)
    found = result["results"][0]["figures"]["PSNR"]["reconstructions"]["value"]
    assert found == pytest.approx(float(rows(tmp_path / "run")[-1]["eval_psnr"]), abs=2)  # from 12 of them


# -------------------------------------------------------------------------------------------------- folders, npz, references


def test_a_folder_and_an_npz_of_the_same_images(network, data, go, tmp_path):
    folder = pictures(tmp_path / "pictures")
    arrays = np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])
    np.savez(tmp_path / "samples.npz", arrays)
    one, printed = go("--images", folder, *data, "--reference", "train")
    two, _ = go("--images", tmp_path / "samples.npz", *data, "--reference", "train", output=tmp_path / "npz")
    assert one["results"][0]["figures"] == two["results"][0]["figures"]
    assert list(one["results"][0]["figures"]["FID"]) == ["samples", "real images"]
    assert one["images"]["format"] == "24 PNG" and two["images"]["format"] == "npz"
    assert re.search(r"24 images of .*pictures \(24 PNG\) against \d\d images of the train part of .*, 16 px", printed)
    assert "JPEG" not in printed
    jpeg = pictures(tmp_path / "jpeg", ending="jpg")
    assert "JPEG files: the compression itself" in go("--images", jpeg, *data, output=tmp_path / "j")[1]
    pictures(folder, 30)
    with pytest.raises(UserError, match=r"made with other settings \(images .*--overwrite true"):
        go("--images", folder, *data, "--reference", "train")


def test_copies_of_training_images_are_detected(network, data, go, tmp_path):
    np.savez(tmp_path / "black.npz", np.arange(24 * 16 * 16 * 3, dtype=np.uint8).reshape(24, 16, 16, 3) % 8)
    result, printed = go("--images", tmp_path / "black.npz", *data)
    assert result["results"][0]["memorisation"]["nearer"]["value"] < 0.05
    source = Workspace(evaluate_config.read("", ["--images", "x", *data])).parts["train"]
    batches = torch.cat([batch for batch, _ in source.batches(0, None)])
    np.savez(tmp_path / "copies.npz", batches.permute(0, 2, 3, 1).numpy())
    result, printed = go("--images", tmp_path / "copies.npz", *data, output=tmp_path / "copied")
    memorisation = result["results"][0]["memorisation"]
    assert memorisation["nearer"]["low"] > 0.99 and memorisation["as_near_as_1_percent"]["value"] == 1
    assert memorisation["smallest_distance"]["samples"] < 1e-3 < memorisation["smallest_distance"]["held-out images"]
    assert "100.0% [" in printed
    # Each row of the picture has two samples, each with its three nearest training images. A copy equals its nearest.
    picture = np.asarray(Image.open(tmp_path / "copied/neighbours-inception.png"))
    assert picture.shape == (1168, 1168, 3)  # 8 x 8 tiles of 16 px, 2 px apart, enlarged 8 times
    tiles = picture[16:, 16:].reshape(8, 144, 8, 144, 3).swapaxes(1, 2)[:, :, :128, :128]
    assert (tiles[:, 0] == tiles[:, 1]).all() and (tiles[:, 4] == tiles[:, 5]).all() and (tiles[:, 1] != tiles[:, 2]).any()


def test_a_saved_reference_is_used_and_a_wrong_one_refused(network, data, go, tmp_path):
    folder = pictures(tmp_path / "pictures")
    first, _ = go("--images", folder, *data)
    saved = tmp_path / "evaluation/reference-inception-held_out.npz"
    shutil.rmtree(tmp_path / "cache")
    again, _ = go("--images", folder, *data, "--reference", saved, output=tmp_path / "again")
    assert again["results"] == first["results"]
    for change, words in {
        "--data.resolution=8": r"images resolution: 16 there, 8 now",
        "--data.revision=abc": r"images revision: null there, \"abc\" now",
        "--split_seed=3": r"images held out: \[0.5, 0, null\] there, \[0.5, 3, null\] now",
        "--num_reference=21": r"images images: \d\d there, 21 now",
    }.items():
        images = pictures(tmp_path / "small", side=8) if "resolution" in change else folder
        with pytest.raises(UserError, match=rf"is not that of this evaluation \({words}\): remove --reference"):
            go("--images", images, *data, change, "--reference", saved, output=tmp_path / change)
    network.load = lambda device: FeatureNetwork("inception", "FID", "KID", {"network": "new", "resize": ""}, network.embed)
    features.NETWORKS["inception"] = network.load
    with pytest.raises(UserError, match=r"features network: \"fake\" there, \"new\" now"):
        go("--images", folder, *data, "--reference", saved, output=tmp_path / "new")
    for nonsense in (b"", b"PK", saved.read_bytes()[:500]):
        (tmp_path / "nonsense.npz").write_bytes(nonsense)
        with pytest.raises(UserError, match=r"nonsense.npz is not a reference that evaluate.py has written"):
            go("--images", folder, *data, "--reference", tmp_path / "nonsense.npz", output=tmp_path / "n")
    with pytest.raises(UserError, match=r"reference is 'validation'; it must be held_out, train, or"):
        go("--images", folder, *data, "--reference", "validation", output=tmp_path / "n")


def test_unreadable_images_are_skipped_also_after_a_kill(network, go, tmp_path, monkeypatch):
    folder = pictures(tmp_path / "data/train", 130)
    pictures(tmp_path / "data/test", 22, seed=1)
    (folder / "003.png").write_bytes(b"no image")
    (folder / "077.png").write_bytes(b"neither")
    data = ["--data.name", tmp_path / "data", "--data.eval_split", "test", "--data.resolution", 16, "--metrics", "fid"]
    data += ["--images", pictures(tmp_path / "pictures"), "--reference", "train", "--batch_size", 8]
    monkeypatch.setattr(chunks, "SECONDS", 0.0)
    whole, _ = go(*data, "--data.cache_dir", tmp_path / "one", output=tmp_path / "whole")
    assert whole["results"][0]["reference"]["images"] == 128
    network.seen, network.fail = 0, 90
    with pytest.raises(KeyboardInterrupt):
        go(*data, "--data.cache_dir", tmp_path / "two")
    network.fail = None
    assert go(*data, "--data.cache_dir", tmp_path / "two")[0]["results"] == whole["results"]


# -------------------------------------------------------------------------------------------------------------- bad input


def test_a_held_out_part_that_is_too_small(network, data, go, tmp_path):
    folder = pictures(tmp_path / "pictures")
    small = [*data, "--data.eval_fraction", "0.1"]
    with pytest.raises(UserError, match=r"images \(the reference\) are too few"):
        go("--images", folder, *small)
    _, printed = go("--images", folder, *small, "--reference", "train", output=tmp_path / "two")
    assert re.search(r"no anchors: the held_out part has only \d images; see data.eval_fraction", printed)
    with pytest.raises(UserError, match=r"1 images \(the reference\) are too few"):  # at least one is held out
        go("--images", folder, *data, "--data.eval_fraction", "0.000001", output=tmp_path / "three")


def test_features_that_are_not_finite(network, data, go, tmp_path, monkeypatch):
    embed = network.embed
    monkeypatch.setattr(network, "embed", lambda images: {"features": embed(images)["features"] * np.float32("nan")})
    with pytest.raises(UserError, match="features of the held-out part: not finite"):
        go("--images", pictures(tmp_path / "pictures"), *data)


def test_too_few_images_and_a_folder_that_cannot_be_written(network, model, data, go, tmp_path):
    with pytest.raises(UserError, match=r"5 images \(samples\) are too few"):
        go("--images", pictures(tmp_path / "few", 5), *data)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output_dir .* cannot be written"):
        go(*model, output=tmp_path / "file/evaluation")
