"""Power-function averages, and averages of other lengths made of their snapshots, against direct sums over all steps."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import train_ddpm
from tests.support.runs import DDPM, DIGITS, EVERY_STEP, files, run, same_weights
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainVQ
from tinyldm.errors import UserError
from tinyldm.manifest import Manifest
from tinyldm.training import power_ema
from tinyldm.training.power_ema import WIDTHS, PowerAverages, exponent, inner_products, mixture, reconstruct

STEPS, EACH = 600, 25  # 24 snapshots
RUN = [*DIGITS, *EVERY_STEP, *DDPM, "--train.ema_snapshot_steps", "2", "--train.checkpointing_steps", "3"]


def profile(gamma: float, step: int, steps: int) -> np.ndarray:
    """The weight of each of the steps 1 to `steps` in the average at `step`: differences of (s / step)^(gamma + 1)."""
    edges = (np.arange(steps + 1) / step).clip(max=1) ** (gamma + 1)
    return np.diff(edges)


def trajectory() -> torch.Tensor:
    """(STEPS, 50) in float64: a random walk that settles, as weights do, with noise of a tenth of its length."""
    random = torch.Generator().manual_seed(0)
    pace = torch.linspace(1, 0.05, STEPS)[:, None].double()
    walk = (torch.randn(STEPS, 50, generator=random).double() * pace).cumsum(0)
    return walk + torch.randn(STEPS, 50, generator=random).double()


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A run folder with the snapshots of the trajectory."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("train: {}\n")
    weight = nn.Parameter(torch.zeros(50))
    averages = PowerAverages([weight])
    for step, values in enumerate(trajectory(), 1):
        weight.data.copy_(values)
        averages.update([weight], step)
        if step % EACH == 0:
            averages.save_snapshot(folder, step, ["w"])
    return folder


# ------------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    gamma, s = exponent(width), (np.arange(1_000_000) + 0.5) / 1_000_000
    p = s**gamma / (s**gamma).sum()
    assert np.sqrt((p * s**2).sum() - (p * s).sum() ** 2) == pytest.approx(width, rel=1e-5)


def test_the_inner_products_match_numerical_integrals():
    t, gamma = np.array([1.0, 0.4, 0.8]), np.array([16.97, 6.94, 0.5])
    s = (np.arange(1_000_000) + 0.5) / 1_000_000
    profiles = np.where(s < t[:, None], (gamma + 1)[:, None] * s ** gamma[:, None] / t[:, None] ** (gamma + 1)[:, None], 0)
    expected = profiles @ profiles.T / len(s)
    assert np.allclose(inner_products(t[:, None], gamma[:, None], t, gamma), expected, rtol=1e-5)


def test_an_average_during_training_has_the_exact_profile():
    weight, values = nn.Parameter(torch.zeros(50, dtype=torch.float64)), trajectory()
    averages = PowerAverages([weight])
    for step, now in enumerate(values, 1):
        weight.data.copy_(now)
        averages.update([weight], step)
    for name, width in WIDTHS.items():
        expected = torch.from_numpy(profile(exponent(width), STEPS, STEPS)) @ values
        assert torch.allclose(averages.averages[name][0], expected, rtol=0, atol=1e-11)


# ---------------------------------------------------------------------------------------------------------- reconstruction


def grid(count: int) -> tuple[np.ndarray, np.ndarray]:
    steps = np.repeat(np.arange(1, count + 1) * 100.0, 2)
    return steps, np.tile([exponent(width) for width in WIDTHS.values()], count)


@pytest.mark.parametrize("count", [1, 3, 24, 200])
def test_a_stored_average_is_its_own_snapshot(count):
    steps, gammas = grid(count)
    for row in {0, count, 2 * count - 1}:
        weights = mixture(steps, gammas, steps[row], gammas[row])
        assert np.allclose(weights, np.arange(2 * count) == row, rtol=0, atol=1e-9)


def test_a_stored_length_is_read_bit_for_bit(toy):
    for name, width in WIDTHS.items():
        stored = load_file(toy / "ema" / f"step-{STEPS}.safetensors")[f"{name}/w"]
        assert torch.equal(reconstruct(str(toy), width)["w"], stored.float())


# Errors as shares of the weights. At 0.02 to 0.15 float16 makes most of them, at 0.2 and 0.25 the profile's misfit.
TOLERANCES = {0.02: 4e-3, 0.03: 2e-3, 0.075: 3e-4, 0.15: 3e-4, 0.2: 1e-3, 0.25: 1e-2}


@pytest.mark.parametrize("width", TOLERANCES)
def test_any_length_equals_the_direct_average(toy, width):
    direct = torch.from_numpy(profile(exponent(width), STEPS, STEPS)) @ trajectory()
    error = reconstruct(str(toy), width)["w"].double() - direct
    assert error.norm() / direct.norm() < TOLERANCES[width]


def test_more_snapshots_are_nearer():
    errors = []
    for count in (10, 20, 40):
        steps, gammas = grid(count)
        weights = mixture(steps, gammas, steps[-1], exponent(0.02))
        errors.append(power_ema.misfit(steps, gammas, weights, steps[-1], exponent(0.02)))
        total = int(steps[-1])
        combined = sum(w * profile(g, int(t), total) for w, g, t in zip(weights, gammas, steps, strict=True))
        wanted = profile(exponent(0.02), total, total)
        assert errors[-1] == pytest.approx(np.linalg.norm(combined - wanted) / np.linalg.norm(wanted), rel=0.05)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("width", [0.01, 0.1, 0.28])
def test_a_constant_weight_stays_what_it_is(width):
    steps, gammas = grid(20)
    assert mixture(steps, gammas, steps[-1], exponent(width)).sum() == pytest.approx(1, abs=1e-9)


# --------------------------------------------------------------------------------------------------------- bad input, files


@pytest.mark.parametrize("width", [0, -0.1, 0.2801, float("nan"), float("inf")])
def test_widths_out_of_range_are_refused(width):
    with pytest.raises(UserError, match=r"ema is .*at most 0\.28"):
        exponent(width)


def test_what_is_no_run_or_has_no_snapshots_is_refused(tmp_path):
    for other in (tmp_path, tmp_path / "none", "user/model"):
        with pytest.raises(UserError, match="is not a run folder"):
            reconstruct(str(other), 0.05)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"no snapshots in ema/: train one with train\.ema_snapshot_steps"):
        reconstruct(str(tmp_path), 0.05)


def test_damaged_snapshots_are_refused(toy, tmp_path):
    shutil.copytree(toy, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "ema" / f"step-{STEPS - EACH}.safetensors"
    sound = load_file(file)
    not_finite = {name: tensor.clone().fill_(float("inf")) for name, tensor in sound.items()}
    others = {name.replace("w", "v"): tensor for name, tensor in sound.items()}
    for content in (b"", b"nonsense", file.read_bytes()[:-1], not_finite, others, {"w": torch.ones(50)}):
        save_file(content, file) if isinstance(content, dict) else file.write_bytes(content)
        with pytest.raises(UserError, match=f"step-{STEPS - EACH}.*damaged or of another network"):
            reconstruct(str(tmp_path), 0.2)


def test_a_link_is_not_followed(toy, tmp_path):
    (tmp_path / "ema").symlink_to(toy / "ema")
    with pytest.raises(UserError, match="symbolic link"):
        PowerAverages([nn.Parameter(torch.zeros(2))]).save_snapshot(tmp_path, EACH, ["w"])


# ---------------------------------------------------------------------------------------------------------------- trainings


def trained(monkeypatch, folder: Path, steps: int, *more: str) -> Path:
    run(monkeypatch, train_ddpm, "--output_dir", folder, *RUN, "--train.max_steps", str(steps), *more)
    return folder


@pytest.mark.slow
def test_a_resumed_training_writes_the_same_snapshots(monkeypatch, tmp_path):
    """It stops after step 5, whose snapshot is its last, and continues from the checkpoint of step 3."""
    whole = trained(monkeypatch, tmp_path / "whole", 7)
    assert sorted(power_ema.snapshots(whole)) == [2, 4, 6, 7]
    assert not Manifest(whole).foreign()
    broken = trained(monkeypatch, tmp_path / "broken", 5)
    assert sorted(power_ema.snapshots(broken)) == [2, 4, 5]
    (broken / "ema" / ".step-6.safetensors").write_bytes(b"left by a kill")
    trained(monkeypatch, broken, 7, "--resume", str(broken / "checkpoints" / "step-3"))
    assert files(broken / "ema") == files(whole / "ema")
    for name in files(whole / "ema"):
        assert same_weights(whole / "ema" / name, broken / "ema" / name)
    for name in ("ema", "ema-0.05", "ema-0.10"):
        file = Path("checkpoints", "step-7", f"{name}.safetensors")
        assert same_weights(whole / file, broken / file)


@pytest.mark.slow
def test_snapshots_are_those_of_the_weights_names(monkeypatch, tmp_path):
    """At step 1 every average is the weights themselves, and one of another length is too."""
    folder = trained(monkeypatch, tmp_path / "run", 1)
    weights = load_file(folder / "checkpoints" / "step-1" / "denoiser.safetensors")
    made = reconstruct(str(folder), 0.15)
    assert made.keys() == weights.keys()
    assert all(torch.equal(made[name], weights[name].half().float()) for name in weights)


@pytest.mark.slow
def test_averages_begin_with_the_training(monkeypatch, tmp_path):
    folder = trained(monkeypatch, tmp_path / "run", 3, "--train.ema_snapshot_steps", "null")
    assert not (folder / "ema").exists()
    assert not (folder / "checkpoints" / "step-3" / "ema-0.05.safetensors").exists()
    with pytest.raises(UserError, match=r"train\.ema_snapshot_steps: .*set it to null"):
        trained(monkeypatch, folder, 5, "--resume", "latest")


def test_a_first_stage_keeps_none():
    with pytest.raises(UserError, match=r"ema_snapshot_steps is for diffusion"):
        parse(TrainVQ, "", ["--output_dir", "x", "--train.max_steps", "1", "--train.ema_snapshot_steps", "1"])
