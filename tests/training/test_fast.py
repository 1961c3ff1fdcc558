"""What makes a training fast on a GPU: compiled, in mixed precision, with the latents on the device."""

import os
import shutil

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

import train_ldm
from tests.support.runs import rows, run, same_weights
from tinyldm.errors import UserError

pytestmark = pytest.mark.slow


def test_a_missing_logger_compiler_or_gpu_is_refused(ldm_args, tmp_path, monkeypatch):
    base = ["--output_dir", tmp_path / "a", *ldm_args, "--train.max_steps", 1]
    with pytest.raises(UserError, match="pip install trackio"):
        run(monkeypatch, train_ldm, *base, "--train.log_with", "trackio")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="compile needs a C compiler"):
        patch.setattr(shutil, "which", lambda name: None)
        run(patch, train_ldm, *base, "--train.compile", "true")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="xformers needs CUDA"):
            run(monkeypatch, train_ldm, *base, "--train.xformers", "true")
        with pytest.raises(UserError, match="fp16 needs a GPU"):
            run(monkeypatch, train_ldm, *base, "--train.mixed_precision", "fp16")


def test_what_only_a_gpu_gains_from_changes_no_weight(ldm_args, tmp_path, monkeypatch, capsys, traced, request):
    """The latents on the device, CUDA graphs, deterministic kernels; and the first stage of the first export, linked."""
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    args = [*ldm_args, "--data.random_flip", "true", "--train.max_steps", 3, "--train.checkpointing_steps", 1]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "a", *args, "--train.compile", "true")
    more = ["--first_stage.store_on_device", "true", "--train.compile", "reduce-overhead", "--train.deterministic", "true"]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "b", *args, *more)
    assert same_weights(*(tmp_path / name / "checkpoints/step-3/denoiser.safetensors" for name in "ab"))
    assert "MB) stay on cpu" in capsys.readouterr().out
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    stage = tmp_path / "b/pipeline/vqvae/diffusion_pytorch_model.safetensors"
    assert stage.read_bytes() == (tmp_path / "a/pipeline/vqvae/diffusion_pytorch_model.safetensors").read_bytes()
    written = []
    monkeypatch.setattr("diffusers.VQModel.save_pretrained", lambda *args: written.append(args))
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "b", *args, "--resume", "latest", "--train.max_steps", 3)
    assert len(written) == 1


def test_only_dropout_needs_the_global_generators(ldm_args, tmp_path, monkeypatch):
    seeds, counts = [], []
    monkeypatch.setattr("tinyldm.training.trainer.torch.manual_seed", seeds.append)
    for dropout in (0.0, 0.1):
        args = [*ldm_args, "--unet.dropout", dropout, "--train.max_steps", 2]
        run(monkeypatch, train_ldm, "--output_dir", tmp_path / f"{dropout}", *args)
        counts.append(len(seeds))
    assert counts[1] - counts[0] == counts[0] + 2  # one for each step


@pytest.mark.usefixtures("forgetful", "traced")
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_mixed_precision_keeps_losses_and_weights_in_full_precision(compiled, ldm_args, tmp_path, monkeypatch):
    """As in configs/celebahq256.yaml on a GPU: compiled, with a held-out batch that is not full."""
    args = ["--train.mixed_precision", "bf16", "--train.compile", compiled, "--train.max_steps", 2]
    small = ["--train.batch_size", 2, "--train.num_eval_images", 3, "--unet.layers_per_block", 1]
    small += ["--unet.block_out_channels", "[8]", "--unet.down_block_types", "[AttnDownBlock2D]"]
    small += ["--unet.up_block_types", "[AttnUpBlock2D]"]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "run", *ldm_args, *args, *small)
    assert all(0 < float(row["loss"]) < 10 for row in rows(tmp_path / "run"))
    assert 0 < float(rows(tmp_path / "run")[-1]["eval_loss"]) < 100
    weights = load_file(tmp_path / "run/checkpoints/step-2/denoiser.safetensors")
    unet = UNet2DModel.from_config(UNet2DModel.load_config(tmp_path / "run/pipeline/unet"))
    assert weights.keys() == {f"unet.{name}" for name in unet.state_dict()}  # not those of a compiled module
    assert all(weight.dtype == torch.float32 for weight in weights.values())
