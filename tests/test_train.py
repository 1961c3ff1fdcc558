"""The whole chain at a tiny size: what it leaves, what it refuses, what it repeats."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, LDMPipeline, UNet2DModel, VQModel
from PIL import Image
from safetensors.torch import load_file

import sample
import train_ldm
import train_vq
from tinyldm.errors import UserError

ROOT = Path(__file__).parent.parent
DATA = ["--data.name", "toyfaces", "--data.eval_split", "validation", "--data.resolution", "16", "--data.shuffle_buffer", "64"]
EVERY_STEP = ["--train.logging_steps", "1", "--train.num_eval_images", "12", "--train.log_with", "none"]
VQ = [
    *("--vq.block_out_channels", "[8,8,16]", "--vq.layers_per_block", "1", "--vq.norm_num_groups", "4"),
    *("--vq.num_vq_embeddings", "32", "--loss.perceptual", "none", "--loss.gradient_weight", "1"),
    *("--loss.discriminator_start", "2", "--loss.discriminator_channels", "8", "--loss.discriminator_layers", "1"),
    *("--loss.feature_matching_weight", "1", "--loss.revive_steps", "3", "--train.batch_size", "4"),
    *("--data.random_flip", "true", "--train.learning_rate", "1e-3"),
]
LDM = [
    *("--unet.block_out_channels", "[8,16]", "--unet.down_block_types", "[DownBlock2D,AttnDownBlock2D]"),
    *("--unet.up_block_types", "[AttnUpBlock2D,UpBlock2D]", "--unet.norm_num_groups", "4", "--unet.attention_head_dim", "8"),
    *("--diffusion.preview_images", "4", "--diffusion.preview_steps", "2", "--train.batch_size", "8"),
    *("--train.learning_rate", "1e-3", "--data.random_flip", "true"),
]


def run(monkeypatch, script, *args: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
    script.main()


@pytest.fixture(scope="session")
def small_faces(tmp_path_factory) -> Path:
    """60 drawn faces in a folder: a data set that is encoded in a second."""
    from tinyldm import toyfaces

    folder = tmp_path_factory.mktemp("faces")
    for index in range(60):
        toyfaces.draw(0, index, 24).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def vq_run(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("vq") / "run"
        run(patch, train_vq, "--output_dir", path, *DATA, *EVERY_STEP, *VQ, "--train.max_steps", 4)
    return path


@pytest.fixture(scope="session")
def ldm_args(vq_run, small_faces, tmp_path_factory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    data = ["--data.name", small_faces, "--data.eval_fraction", "0.2", "--data.resolution", "16", "--data.cache_dir", cache]
    return [*map(str, data), *EVERY_STEP, *LDM, "--first_stage.path", str(vq_run)]


@pytest.fixture(scope="session")
def ldm_run(ldm_args, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("ldm") / "run"
        run(patch, train_ldm, "--output_dir", path, *ldm_args, "--train.max_steps", 6, "--train.checkpointing_steps", 2)
    return path


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------- what a run leaves


def test_a_first_stage_run_leaves_exactly_this(vq_run):
    assert files(vq_run) == {
        ".lock",
        "README.md",
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
    assert not rows(vq_run)[1]["discriminator"]  # it sets in after two steps
    assert float(rows(vq_run)[2]["discriminator"]) > 0


def test_a_first_stage_run_is_a_diffusers_model_with_a_measured_scale(vq_run):
    vq = VQModel.from_pretrained(vq_run, subfolder="vqvae")
    from tinyldm import toyfaces

    held_out = [np.asarray(toyfaces.draw(0, 10**9 + i, 16)) for i in range(12)]
    images = torch.from_numpy(np.stack(held_out)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        std = vq.encode(images).latents.std(correction=0)
    assert vq.config.scaling_factor == pytest.approx(1 / std.item(), rel=1e-3)


def test_a_diffusion_run_leaves_exactly_this(ldm_run):
    assert files(ldm_run) == {
        ".lock",
        "README.md",
        "config.yaml",
        "metrics.csv",
        "loss.png",
        "samples/step-0000006.png",
        "pipeline/model_index.json",
        "pipeline/scheduler/scheduler_config.json",
        *(f"pipeline/{part}/config.json" for part in ("unet", "vqvae")),
        *(f"pipeline/{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vqvae")),
        *(f"checkpoints/step-{n}/{name}.safetensors" for n in (4, 6) for name in ("unet", "ema")),
        *(f"checkpoints/step-{n}/{name}" for n in (4, 6) for name in ("optimizers.pt", "state.json", "checksums.json")),
    }


def test_the_report_says_what_the_run_says(ldm_run):
    text = (ldm_run / "README.md").read_text()
    pipeline = LDMPipeline.from_pretrained(ldm_run / "pipeline")
    parameters = sum(weight.numel() for weight in pipeline.unet.parameters())
    assert f"{parameters:,} parameters" in text
    assert "6 of 8 images: 48 images seen" in text
    held_out = float(rows(ldm_run)[-1]["eval_loss"])
    assert f"| held-out loss | {held_out:.4g} |" in text
    assert f"value: {round(held_out, 5)}" in text  # the model-index of its card


def test_the_shipped_weights_are_the_averaged_ones(ldm_run):
    shipped = UNet2DModel.from_pretrained(ldm_run / "pipeline", subfolder="unet").state_dict()
    averaged = load_file(ldm_run / "checkpoints/step-6/ema.safetensors")
    raw = load_file(ldm_run / "checkpoints/step-6/unet.safetensors")
    assert all(torch.equal(shipped[name], averaged[name]) for name in averaged)
    assert any(not torch.equal(raw[name], averaged[name]) for name in averaged)


def test_the_pipeline_draws_what_sample_draws(ldm_run, tmp_path, monkeypatch):
    """Also without any code of ours in the process that loads it."""
    run(monkeypatch, sample, "--model", ldm_run, "--num_images", 3, "--num_inference_steps", 4, "--output_dir", tmp_path / "a")
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


def test_sample_leaves_every_kind_of_picture(ldm_run, tmp_path, monkeypatch):
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
    assert files(out) == expected | {f"images/seed-{seed:06d}.png" for seed in range(5)}
    images = np.load(out / "samples.npz")["arr_0"]
    assert images.shape == (5, 16, 16, 3)
    assert images.dtype == np.uint8
    with pytest.raises(UserError, match="holds pictures already"):
        run(monkeypatch, sample, *args)


# ------------------------------------------------------------------------------------------------------- it is exact


def same_weights(a: Path, b: Path) -> bool:
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["vq", "ldm"])
def test_a_resumed_run_equals_an_unbroken_one(kind, request, tmp_path, monkeypatch):
    """Bit for bit: weights, averaged weights, optimizers (by the weights after them) and metrics, with flips, accumulation
    and, for the first stage, both optimizers and the revival of codes."""
    if kind == "vq":
        script, network, args = train_vq, "autoencoder", [*DATA, *EVERY_STEP, *VQ]
    else:
        script, network, args = train_ldm, "unet", request.getfixturevalue("ldm_args")
    args = [*args, "--train.gradient_accumulation_steps", 2, "--train.checkpointing_steps", 4, "--train.eval_steps", 3]
    run(monkeypatch, script, "--output_dir", tmp_path / "whole", *args, "--train.max_steps", 7)
    run(monkeypatch, script, "--output_dir", tmp_path / "broken", *args, "--train.max_steps", 7)
    # What a kill after the checkpoint of step 4 leaves: rows that go further than the checkpoint.
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
    file = "checkpoints/step-5/unet.safetensors"
    assert same_weights(tmp_path / "often" / file, tmp_path / "seldom" / file)
    assert rows(tmp_path / "often")[-1]["eval_loss"] == rows(tmp_path / "seldom")[-1]["eval_loss"]


def test_it_learns(ldm_args, tmp_path, monkeypatch):
    """Latents of unit variance make v one of unit variance: predicting nothing costs 1."""
    steps = ["--train.max_steps", 100, "--train.eval_steps", 50, "--train.ema_decay", "0.9", "--train.sample_steps", 1000]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "run", *ldm_args, *steps, "--train.learning_rate", "3e-3")
    halfway, end = (float(row["eval_loss"]) for row in rows(tmp_path / "run") if row["eval_loss"])
    assert end < halfway < 0.8


@pytest.mark.parametrize("kind", ["vq", "ldm"])
def test_two_processes_train_like_one(kind, request, tmp_path):
    """At the same global batch: the same images, noise, timesteps and revived codes, gradients exchanged, sums reduced."""
    if kind == "vq":
        name, args = "train_vq.py", [*DATA, *EVERY_STEP, *VQ, "--loss.quantize_start", "1"]
    else:
        name, args = "train_ldm.py", request.getfixturevalue("ldm_args")
    args = [*args, "--train.max_steps", "6", "--train.eval_steps", "3", "--train.gradient_accumulation_steps", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for processes in (1, 2):
        command = [*launch, processes, name, "--output_dir", tmp_path / str(processes), *args]
        command += ["--train.batch_size", 8 // processes]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT, capture_output=True, timeout=300)
    one, two = rows(tmp_path / "1"), rows(tmp_path / "2")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        for key in a:
            if a[key]:
                assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-3), (a["step"], key)


# ------------------------------------------------------------------------------------------------- one line, exit code 2


def script(name: str, *args: str | Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / name, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)


def test_what_a_user_can_mend_is_one_line_and_exit_code_2(vq_run, tmp_path):
    done = script("train_vq.py", "--output_dir", vq_run, *DATA, *VQ, "--train.max_steps", 1)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "is in use already; continue with --resume latest, or --overwrite true" in errors[0]
    assert "Traceback" not in done.stderr


def test_a_diverging_loss_stops_and_names_the_last_good_checkpoint(ldm_args, tmp_path, monkeypatch):
    args = ["--output_dir", tmp_path / "run", *ldm_args, "--train.checkpointing_steps", 1]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 2)
    diverge = ["--train.learning_rate", "1e30", "--train.max_grad_norm", "null"]
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+: the last good checkpoint is step-\d"):
        run(monkeypatch, train_ldm, *args, *diverge, "--train.max_steps", 9, "--resume", "latest")
    from tinyldm import checkpoint

    good = checkpoint.find(tmp_path / "run", "latest")
    assert all(torch.isfinite(tensor).all() for tensor in load_file(good / "ema.safetensors").values())


def test_resuming_with_another_model_is_refused_and_names_the_key(ldm_run, ldm_args, monkeypatch):
    with pytest.raises(UserError, match=r"unet.layers_per_block changed"):
        args = ["--output_dir", ldm_run, *ldm_args, "--train.max_steps", 9, "--resume", "latest"]
        run(monkeypatch, train_ldm, *args, "--unet.layers_per_block", 2)


def test_a_first_stage_that_does_not_fit_is_refused(ldm_args, vq_run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="18 is not a multiple of the first stage's factor 4"):
        run(monkeypatch, train_ldm, "--output_dir", tmp_path / "a", *ldm_args, "--train.max_steps", 1, "--data.resolution", 18)
    with pytest.raises(UserError, match=r"unet.in_channels is 4, but the data and first stage give 3"):
        run(monkeypatch, train_ldm, "--output_dir", tmp_path / "b", *ldm_args, "--train.max_steps", 1, "--unet.in_channels", 4)


def test_a_missing_logger_or_gpu_is_refused(ldm_args, tmp_path, monkeypatch):
    base = ["--output_dir", tmp_path / "a", *ldm_args, "--train.max_steps", 1]
    with pytest.raises(UserError, match="pip install trackio"):
        run(monkeypatch, train_ldm, *base, "--train.log_with", "trackio")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="xformers needs CUDA"):
            run(monkeypatch, train_ldm, *base, "--train.xformers", "true")
        with pytest.raises(UserError, match="fp16 needs a GPU"):
            run(monkeypatch, train_ldm, *base, "--train.mixed_precision", "fp16")


def test_a_full_disk_while_saving_loses_nothing(ldm_args, tmp_path, monkeypatch):
    """Files may not grow beyond 100 kB: the second checkpoint fails, the first one is whole, exit code 2 and one line."""
    args = ["--output_dir", tmp_path / "run", *ldm_args, "--train.checkpointing_steps", 1]
    run(monkeypatch, train_ldm, *args, "--train.max_steps", 1)
    code = (
        "import resource, signal, runpy, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, "train_ldm.py", *map(str, args), "--train.max_steps", "2", "--resume", "latest"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: no space left")]
    from tinyldm import checkpoint

    assert checkpoint.find(tmp_path / "run", "latest").name == "step-1"
    assert not list((tmp_path / "run" / "checkpoints").glob(".saving*"))


def test_loaded_by_diffusers_alone(ldm_run):
    pipeline = DiffusionPipeline.from_pretrained(ldm_run / "pipeline")
    assert type(pipeline) is LDMPipeline
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert not pipeline.scheduler.config.clip_sample


def test_mixed_precision_keeps_losses_and_weights_in_full_precision(ldm_args, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the precision of the runs before
    args = ["--train.mixed_precision", "bf16", "--train.max_steps", 1, "--train.batch_size", 2]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "run", *ldm_args, *args)
    assert 0 < float(rows(tmp_path / "run")[0]["loss"]) < 10
    weights = load_file(tmp_path / "run/checkpoints/step-1/unet.safetensors").values()
    assert all(weight.dtype == torch.float32 for weight in weights)
