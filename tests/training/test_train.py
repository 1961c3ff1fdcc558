"""All scripts at a tiny size: their files, refused input, and repeatability."""

import hashlib
import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LDMPipeline, UNet2DModel, VQModel
from PIL import Image
from safetensors.torch import load_file

import sample
import train_ldm
import train_vq
from tests.support.processes import Training
from tests.support.runs import DATA, EVERY_STEP, VQ, files, rows, run, same_weights
from tinyldm.data.images import ImageBatches
from tinyldm.errors import UserError
from tinyldm.training import checkpoint

pytestmark = pytest.mark.slow


# ------------------------------------------------------------------------------------------------- what a run leaves


def test_the_files_of_a_first_stage_run(vq_run):
    assert files(vq_run) == {
        ".lock",
        ".manifest",
        "card.json",
        "README.md",
        "report.html",
        "data.json",
        "config.yaml",
        "metrics.csv",
        "loss.png",
        "samples/step-0000004.png",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
        *(f"checkpoints/step-4/{name}.safetensors" for name in ("autoencoder", "discriminator", "ema")),
        *(f"checkpoints/step-4/{name}" for name in ("optimizers.pt", "state.json", "checksums.json")),
    }
    assert [row["step"] for row in rows(vq_run)] == ["1", "2", "3", "4"]
    assert not rows(vq_run)[1]["discriminator"]  # it starts after two steps
    assert float(rows(vq_run)[2]["discriminator"]) > 0


def test_a_first_stage_run_is_a_diffusers_model_with_a_measured_scale(vq_run):
    vq = VQModel.from_pretrained(vq_run, subfolder="vqvae")
    from tinyldm.data import toyfaces

    held_out = [np.asarray(toyfaces.draw(0, 10**9 + i, 16)) for i in range(12)]
    images = torch.from_numpy(np.stack(held_out)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        std = vq.encode(images).latents.std(correction=0)
    assert vq.config.scaling_factor == pytest.approx(1 / std.item(), rel=1e-3)


def test_the_files_of_a_diffusion_run(ldm_run):
    assert files(ldm_run) == {
        ".lock",
        ".manifest",
        "card.json",
        "README.md",
        "report.html",
        "data.json",
        "config.yaml",
        "metrics.csv",
        "loss.png",
        "samples/step-0000006.png",
        "pipeline/model_index.json",
        "pipeline/scheduler/scheduler_config.json",
        "pipeline/guidance.json",
        "pipeline/pipeline.py",
        *(f"pipeline/{part}/config.json" for part in ("unet", "vqvae", "guide")),
        *(f"pipeline/{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vqvae", "guide")),
        *(f"checkpoints/step-{n}/{name}.safetensors" for n in (4, 6) for name in ("denoiser", "ema")),
        *(f"checkpoints/step-{n}/{name}" for n in (4, 6) for name in ("optimizers.pt", "state.json", "checksums.json")),
    }


def test_the_report_has_the_numbers_of_the_run(ldm_run):
    text = (ldm_run / "README.md").read_text()
    pipeline = LDMPipeline.from_pretrained(ldm_run / "pipeline")
    parameters = sum(weight.numel() for weight in pipeline.unet.parameters())
    assert f"{parameters:,} parameters" in text
    assert "6 of 8 images: 48 images seen" in text
    held_out = float(rows(ldm_run)[-1]["eval_loss"])
    assert f"| held-out loss | {held_out:.4g} |" in text
    assert f"value: {round(held_out, 5)}" in text  # in the model-index of its card


def test_the_exported_weights_are_the_averaged_ones(ldm_run):
    shipped = UNet2DModel.from_pretrained(ldm_run / "pipeline", subfolder="unet").state_dict()
    averaged = load_file(ldm_run / "checkpoints/step-6/ema.safetensors")
    raw = load_file(ldm_run / "checkpoints/step-6/denoiser.safetensors")
    assert all(torch.equal(shipped[name.removeprefix("unet.")], averaged[name]) for name in averaged)
    assert any(not torch.equal(raw[name], averaged[name]) for name in averaged)


def test_the_pipeline_draws_the_images_of_sample(ldm_run, tmp_path, monkeypatch):
    """Also in a program that imports none of our code."""
    run(
        monkeypatch,
        sample,
        "--model",
        ldm_run,
        "--num_images",
        3,
        "--num_inference_steps",
        4,
        "--guidance_scale",
        1,
        "--output_dir",
        tmp_path / "a",
    )
    code = (
        "import sys, torch\n"
        "from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "for seed in range(3):\n"
        "    image = pipe(generator=torch.Generator().manual_seed(seed), num_inference_steps=4).images[0]\n"
        "    image.save(f'{sys.argv[2]}/{seed}.png')\n"
        "assert not any(name.startswith('tinyldm') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, ldm_run / "pipeline", tmp_path], check=True, cwd=tmp_path, capture_output=True)
    for seed in range(3):
        ours = np.asarray(Image.open(tmp_path / "a" / "images" / f"seed-{seed:06d}.png")).astype(int)
        theirs = np.asarray(Image.open(tmp_path / f"{seed}.png")).astype(int)
        assert np.abs(ours - theirs).max() <= 1  # batches of 3 and of 1 may round differently


def test_sample_writes_every_kind_of_picture(ldm_run, tmp_path, monkeypatch):
    out = tmp_path / "pictures"
    args = [
        "--model",
        ldm_run / "pipeline",
        "--output_dir",
        out,
        "--num_images",
        5,
        "--batch_size",
        2,
        "--num_inference_steps",
        3,
    ]
    run(monkeypatch, sample, *args, "--scheduler", "dpm-solver++", "--strip", "true", "--interpolate", "[0,4]")
    expected = {"grid.png", "samples.npz", "denoising.png", "denoising.gif", "interpolation.png", "interpolation.gif"}
    assert files(out) == expected | {".manifest"} | {f"images/frame-{frame:06d}.png" for frame in range(12)}
    images = np.load(out / "samples.npz")["arr_0"]
    assert images.shape == (12, 16, 16, 3)
    assert images.dtype == np.uint8
    with pytest.raises(UserError, match="holds pictures already"):
        run(monkeypatch, sample, *args)


# ------------------------------------------------------------------------------------------------------- it is exact


@pytest.mark.parametrize("kind", ["vq", "ldm"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, request, tmp_path, monkeypatch):
    """Bit for bit: weights, averaged weights, optimizers (by the weights after them) and metrics.

    With flips, accumulation and dropout. The first stage has two optimizers and revives codes.
    """
    if kind == "vq":
        script, network, args = train_vq, "autoencoder", [*DATA, *EVERY_STEP, *VQ]
    else:
        script, network = train_ldm, "denoiser"
        args = [*request.getfixturevalue("ldm_args"), "--unet.dropout", 0.2]
    args = [*args, "--train.gradient_accumulation_steps", 2, "--train.checkpointing_steps", 4, "--train.eval_steps", 3]
    run(monkeypatch, script, "--output_dir", tmp_path / "whole", *args, "--train.max_steps", 7)
    run(monkeypatch, script, "--output_dir", tmp_path / "broken", *args, "--train.max_steps", 7)
    # After a kill, metrics.csv may have rows after the checkpoint of step 4.
    broken = tmp_path / "broken"
    for entry in (broken / "checkpoints" / "step-7").iterdir():
        entry.unlink()
    (broken / "checkpoints" / "step-7").rmdir()
    run(monkeypatch, script, "--output_dir", broken, *args, "--train.max_steps", 7, "--resume", "latest")
    for name in (network, "ema"):
        file = f"checkpoints/step-7/{name}.safetensors"
        assert same_weights(tmp_path / "whole" / file, broken / file), name
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes()


def test_previews_and_evaluations_do_not_change_the_training(ldm_args, tmp_path, monkeypatch):
    for name, every in (("often", 1), ("seldom", 5)):
        cadence = ["--train.sample_steps", every, "--train.eval_steps", every]
        run(monkeypatch, train_ldm, "--output_dir", tmp_path / name, *ldm_args, *cadence, "--train.max_steps", 5)
    file = "checkpoints/step-5/denoiser.safetensors"
    assert same_weights(tmp_path / "often" / file, tmp_path / "seldom" / file)
    assert rows(tmp_path / "often")[-1]["eval_loss"] == rows(tmp_path / "seldom")[-1]["eval_loss"]


def test_it_learns(ldm_args, tmp_path, monkeypatch):
    """With latents of unit variance, v has unit variance too, so predicting 0 has the loss 1."""
    steps = ["--train.max_steps", 100, "--train.eval_steps", 50, "--train.ema_decay", "0.9", "--train.sample_steps", 1000]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "run", *ldm_args, *steps, "--train.learning_rate", "3e-3")
    halfway, end = (float(row["eval_loss"]) for row in rows(tmp_path / "run") if row["eval_loss"])
    assert end < halfway < 0.8


# ------------------------------------------------------------------------------------------------- one line, exit code 2


def test_a_user_error_is_one_line_and_exit_code_2(vq_run, tmp_path):
    args = ["--output_dir", vq_run, *DATA, *VQ, "--train.max_steps", 1]
    training = Training("train_vq", args, tmp_path / "printed.txt")
    assert training.wait() == 2
    errors = [line for line in training.text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "holds a run already: resume it with --resume latest, replace it with --overwrite true" in errors[0]
    assert "Traceback" not in training.text()


def test_encoding_at_each_step_trains_and_resumes(ldm_args, tmp_path, monkeypatch):
    args = [*ldm_args, "--first_stage.keep_latents", "false", "--data.random_flip", "true", "--output_dir"]
    run(monkeypatch, train_ldm, *args, tmp_path / "whole", "--train.max_steps", 4)
    run(monkeypatch, train_ldm, *args, tmp_path / "run", "--train.max_steps", 2)
    run(monkeypatch, train_ldm, *args, tmp_path / "run", "--train.max_steps", 4, "--resume", "latest")
    file = "checkpoints/step-4/denoiser.safetensors"
    assert same_weights(tmp_path / "whole" / file, tmp_path / "run" / file)


def test_a_diverging_loss_stops_and_names_the_last_good_checkpoint(ldm_args, tmp_path, monkeypatch):
    args = ["--output_dir", tmp_path / "run", *ldm_args, "--train.checkpointing_steps", 1, "--train.checkpoints_total_limit", 1]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 2)
    diverge = ["--train.learning_rate", "1e30", "--train.max_grad_norm", "null"]
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+: the last checkpoint is step-\d, the best .* step-2;"):
        run(monkeypatch, train_ldm, *args, *diverge, "--train.max_steps", 9, "--resume", "latest")
    from tinyldm.training import checkpoint

    good = checkpoint.find(tmp_path / "run", str(tmp_path / "run/checkpoints/step-2"))
    assert all(torch.isfinite(tensor).all() for tensor in load_file(good / "ema.safetensors").values())


def test_resuming_with_another_model_is_refused_and_names_the_key(ldm_run, ldm_args, monkeypatch):
    with pytest.raises(UserError, match=r"unet.layers_per_block changed"):
        args = ["--output_dir", ldm_run, *ldm_args, "--train.max_steps", 9, "--resume", "latest"]
        run(monkeypatch, train_ldm, *args, "--unet.layers_per_block", 2)


def test_a_first_stage_may_move_but_not_change(ldm_args, vq_run, tmp_path, monkeypatch):
    """A run resumes when its first stage has another path, but not with another first stage."""
    args = ["--output_dir", tmp_path / "run", *ldm_args]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 1)
    moved = shutil.copytree(vq_run, tmp_path / "moved")
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 2, "--resume", "latest", "--first_stage.path", moved)
    run(monkeypatch, train_vq, "--output_dir", tmp_path / "vq", *DATA, *EVERY_STEP, *VQ, "--train.max_steps", 1)
    with pytest.raises(UserError, match="the first stage is not the one of"):
        run(monkeypatch, train_ldm, *args, "--train.max_steps", 3, "--resume", "latest", "--first_stage.path", tmp_path / "vq")


def test_a_checkpoint_edited_to_nonsense_is_refused_in_one_line(ldm_args, tmp_path, monkeypatch):
    """Even when its checksums fit."""
    args = ["--output_dir", tmp_path / "run", *ldm_args]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 1)
    folder = tmp_path / "run" / "checkpoints" / "step-1"
    sums = json.loads((folder / "checksums.json").read_text())
    for nonsense in ('{"step": 1}', "[]", "null", '{"config": 7, "step": "many"}'):
        (folder / "state.json").write_text(nonsense)
        sums["state.json"] = hashlib.sha256(nonsense.encode()).hexdigest()
        (folder / "checksums.json").write_text(json.dumps(sums))
        with pytest.raises(UserError, match=r"step-1 does not fit this config|step-1/state.json cannot be read"):
            run(monkeypatch, train_ldm, *args, "--train.max_steps", 2, "--resume", "latest")


def test_changed_keys_are_named_and_harmless_ones_accepted(ldm_args, tmp_path, monkeypatch, capsys):
    args = ["--output_dir", tmp_path / "run", *ldm_args]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 1)
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 2, "--train.batch_size", 4, "--resume", "latest")
    told = capsys.readouterr().err
    assert "changed since step-1: train.max_steps 1 -> 2, train.batch_size 8 -> 4\n" in told
    assert "images per step 8 -> 4: data continue at image" in told
    assert [row["images"] for row in rows(tmp_path / "run")] == ["8", "12"]
    assert "12 images seen" in (tmp_path / "run" / "README.md").read_text()
    adam = ["--train.adam_beta1", 0.8, "--train.adam_weight_decay", 0.5]
    run(monkeypatch, train_ldm, *args, *adam, "--train.max_steps", 3, "--resume", "latest")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "step-3" / "optimizers.pt", weights_only=True)
    assert [(group["betas"][0], group["weight_decay"]) for group in saved["denoiser"]["param_groups"]] == [(0.8, 0.5)]


def test_epochs_keep_their_meaning_in_batches_of_another_size(ldm_args, tmp_path, monkeypatch):
    args = ["--output_dir", tmp_path / "run", *ldm_args]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 2)
    run(monkeypatch, train_ldm, *args, "--train.num_epochs", 1, "--train.batch_size", 4, "--resume", "latest")
    last = checkpoint.steps(tmp_path / "run")[-1]
    state = json.loads((tmp_path / "run" / "checkpoints" / f"step-{last}" / "state.json").read_text())
    assert state["images"] == 16 + 4 * (last - 2) and abs(state["images"] - state["examples_per_epoch"]) <= 2


def test_a_first_stage_that_does_not_fit_is_refused(ldm_args, vq_run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="18 is not a multiple of the first stage's factor 4"):
        run(monkeypatch, train_ldm, "--output_dir", tmp_path / "a", *ldm_args, "--train.max_steps", 1, "--data.resolution", 18)
    with pytest.raises(UserError, match=r"unet.in_channels is derived from the data and the first stage"):
        run(monkeypatch, train_ldm, "--output_dir", tmp_path / "b", *ldm_args, "--train.max_steps", 1, "--unet.in_channels", 4)


def small_disk() -> None:
    """Limit files to 100 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_while_saving_loses_nothing(ldm_args, tmp_path, monkeypatch):
    """The second checkpoint fails, the first one is complete, and the error is one line with exit code 2."""
    args = ["--output_dir", tmp_path / "run", *ldm_args, "--train.checkpointing_steps", 1]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 1)
    args = [*args, "--train.max_steps", 2, "--resume", "latest"]
    training = Training("train_ldm", args, tmp_path / "printed.txt", before=small_disk)
    assert training.wait() == 2, training.text()
    assert [line for line in training.text().splitlines() if line.startswith("error: no space left")]
    from tinyldm.training import checkpoint

    assert checkpoint.find(tmp_path / "run", "latest").name == "step-1"
    assert not list((tmp_path / "run" / "checkpoints").glob(".saving*"))


def test_loaded_by_diffusers_alone(ldm_run):
    pipeline = DiffusionPipeline.from_pretrained(ldm_run / "pipeline")
    assert type(pipeline) is LDMPipeline
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert not pipeline.scheduler.config.clip_sample


def test_if_the_data_fail_the_last_step_is_saved_and_can_be_resumed(tmp_path, monkeypatch):
    """If a shard is lost during training, that is an error, but no step is lost."""
    args = [*DATA, *EVERY_STEP, *VQ, "--train.max_steps", 6, "--train.gradient_accumulation_steps", 2]
    run(monkeypatch, train_vq, "--output_dir", tmp_path / "whole", *args)
    with monkeypatch.context() as patch:
        whole = ImageBatches._batches

        def ends(self, start):
            yield from itertools.islice(whole(self, start), 7)
            raise UserError("a shard is lost")

        patch.setattr(ImageBatches, "_batches", ends)
        with pytest.raises(UserError, match=r"a shard is lost \(step 3 is saved: continue with --resume latest\)"):
            run(patch, train_vq, "--output_dir", tmp_path / "broken", *args)
    run(monkeypatch, train_vq, "--output_dir", tmp_path / "broken", *args, "--resume", "latest")
    file = "checkpoints/step-6/ema.safetensors"
    assert same_weights(tmp_path / "whole" / file, tmp_path / "broken" / file)
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken")


def test_a_finished_run_can_be_resumed_and_is_complete(ldm_args, tmp_path, monkeypatch, capsys):
    """For example one that was killed between its last checkpoint and its export."""
    args = ["--output_dir", tmp_path / "run", *ldm_args, "--train.max_steps", 2]
    run(monkeypatch, train_ldm, *args)
    left = {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run") if name.startswith("pipeline")}
    shutil.rmtree(tmp_path / "run" / "pipeline")
    run(monkeypatch, train_ldm, *args, "--resume", "latest")
    assert "all 2 steps are done; raise train.max_steps to train longer" in capsys.readouterr().err
    assert left and all((tmp_path / "run" / name).read_bytes() == content for name, content in left.items())
