"""Averages of the weights whose length is chosen after the training (Karras et al. 2024, section 3 and appendix C).

A power-function average at step t weighs the weights of step s by s^gamma, for s up to t. Its relative width is the standard
deviation of that profile divided by t. A training keeps two averages beside the classic EMA, and snapshots of both:

    RUN/ema/step-N.safetensors     float16, each weight twice: `0.05/NAME` and `0.10/NAME`

The average of any other width is a sum of snapshots, whose profiles add up to its profile as nearly as they can.
"""

import contextlib
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from tinyldm.config.ranges import WIDEST_EMA
from tinyldm.errors import UserError, boundary
from tinyldm.files import open_to_others, refuse_links
from tinyldm.limits import check_finite
from tinyldm.manifest import Manifest

FOLDER = "ema"  # in a run
WIDTHS = {"0.05": 0.05, "0.10": 0.10}  # relative widths of the averages that a training keeps, by name
NEGLIGIBLE = 1e-8  # weights of snapshots below it are rounding errors
Weights = list[torch.nn.Parameter]
Numbers = np.ndarray | float


def exponent(width: float) -> float:
    """The gamma of a relative width: the largest root of gamma^3 + 7 gamma^2 + (16 - width^-2) gamma + 12 - width^-2.

    The width is (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) (Karras et al. 2024, section 3.1).

    Raises:
        UserError: for a width that is not in (0, WIDEST_EMA].
    """
    if not 0 < width <= WIDEST_EMA:
        raise UserError(f"ema is {width:g}; give the relative width of an average, above 0 and at most {WIDEST_EMA}")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


class PowerAverages:
    """The averages of WIDTHS, updated after each step.

    Attributes:
        averages: float32 tensors by the name of their width, in the order of the weights.
    """

    def __init__(self, weights: Weights):
        self.averages = {name: [weight.detach().clone() for weight in weights] for name in WIDTHS}
        self.exponents = {name: exponent(width) for name, width in WIDTHS.items()}

    @torch.no_grad()
    def update(self, weights: Weights, step: int) -> None:
        """average <- beta average + (1 - beta) weights, beta = (1 - 1 / step)^(gamma + 1); the first step is number 1.

        Step s then has the weight (s^(gamma + 1) - (s - 1)^(gamma + 1)) / t^(gamma + 1) at step t: exactly the profile's
        integral from s - 1 to s.
        """
        for name, average in self.averages.items():
            torch._foreach_lerp_(average, list(weights), 1 - (1 - 1 / step) ** (self.exponents[name] + 1))

    def named(self, names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
        """For a checkpoint: ema-0.05 and ema-0.10, each with its tensors by the names of the weights."""
        return {f"ema-{width}": dict(zip(names, tensors, strict=True)) for width, tensors in self.averages.items()}

    def restore(self, names: list[str], saved: dict[str, dict[str, torch.Tensor]]) -> None:
        """Take the averages from a checkpoint.

        Raises:
            UserError: for one of a run that did not keep them: they begin with the first step.
        """
        if not saved.keys() >= self.named(names).keys():
            raise UserError(
                "train.ema_snapshot_steps: this checkpoint has no power-function averages, which begin with a training: "
                "set it to null"
            )
        for group, tensors in self.named(names).items():
            for name, tensor in tensors.items():
                tensor.copy_(saved[group][name])

    def save_snapshot(self, run: Path, step: int, names: list[str]) -> None:
        """Write ema/step-N.safetensors of a run; a kill at any moment leaves either the whole file or none."""
        final = run / FOLDER / f"step-{step}.safetensors"
        refuse_links(final.parent, final)
        final.parent.mkdir(exist_ok=True)
        tensors = {
            f"{width}/{name}": tensor.half().contiguous()
            for width, averages in self.averages.items()
            for name, tensor in zip(names, averages, strict=True)
        }
        aside = Manifest(run).own(final).with_name(f".{final.name}")
        save_file(tensors, aside)
        open_to_others(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, final)


def snapshots(run: Path) -> dict[int, Path]:
    """The snapshots of a run by their steps, ascending."""
    found = {}
    for file in (run / FOLDER).glob("step-*.safetensors"):
        with contextlib.suppress(ValueError):
            found[int(file.stem.removeprefix("step-"))] = file
    return dict(sorted(found.items()))


def forget_after(run: Path, step: int) -> None:
    """Delete the snapshots after `step`: a run that continues from there writes them again."""
    for later, file in snapshots(run).items():
        if later > step:
            file.unlink()
    for leftover in (run / FOLDER).glob(".step-*.safetensors"):  # from a run that was killed
        leftover.unlink()


# -------------------------------------------------------------------------------------------------------- reconstruction


def inner_products(steps: Numbers, gammas: Numbers, steps2: Numbers, gammas2: Numbers) -> np.ndarray:
    """The integrals of p_i p_j over s, for profiles p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t].

    With m = min(t, t2) they are (g + 1) (g2 + 1) / (g + g2 + 1) m^(g + g2 + 1) / (t^(g + 1) t2^(g2 + 1)), broadcast (Karras et
    al. 2024, appendix C.2).
    """
    least = np.minimum(steps, steps2)
    powers = (least / steps) ** gammas * (least / steps2) ** gammas2 * least / (steps * steps2)
    return (gammas + 1) * (gammas2 + 1) / (gammas + gammas2 + 1) * powers


def mixture(steps: np.ndarray, gammas: np.ndarray, step: float, gamma: float) -> np.ndarray:
    """The weights (N,) of the snapshots whose profiles come nearest to that of `gamma` at `step`, in least squares.

    Their sum is 1 by a Lagrange multiplier: a weight that never changed keeps its value. Without it, wide averages
    of few snapshots are several percent too small.

    Args:
        steps, gammas: (N,) those of the snapshots, in float64.
    """
    scale = inner_products(steps, gammas, steps, gammas) ** -0.5
    matrix = inner_products(steps[:, None], gammas[:, None], steps, gammas) * scale[:, None] * scale
    wanted = inner_products(steps, gammas, step, gamma) * scale
    free, ones = np.linalg.lstsq(matrix, np.stack([wanted, scale], 1), rcond=None)[0].T
    return scale * (free + ones * (1 - scale @ free) / (scale @ ones))


def misfit(steps: np.ndarray, gammas: np.ndarray, weights: np.ndarray, step: float, gamma: float) -> float:
    """The root of the integral of (sum of profiles - wanted profile)^2, as a share of that of the wanted one squared."""
    products = inner_products(steps[:, None], gammas[:, None], steps, gammas)
    wanted = inner_products(steps, gammas, step, gamma)
    whole = inner_products(step, gamma, step, gamma)
    return float(np.sqrt(max(0.0, weights @ products @ weights - 2 * weights @ wanted + whole) / whole))


def run_with_snapshots(model: str) -> Path:
    """The folder of a run that has snapshots.

    Raises:
        UserError: for anything else.
    """
    run = Path(model).expanduser()
    if not (run / "config.yaml").is_file():
        raise UserError(f"{model} is not a run folder, and only a run has snapshots of its averages: give a run")
    if not snapshots(run):
        raise UserError(f"{run} has no snapshots in {FOLDER}/: train one with train.ema_snapshot_steps")
    return run


def weights_of_snapshots(run: Path, width: float) -> tuple[int, list[tuple[Path, str, float]], float]:
    """How to make an average of this width at the last snapshot of a run.

    Returns:
        Its step; (file, name of the width, weight) for each part; and the misfit of its profile.
    """
    files = snapshots(run)
    last, kinds = max(files), [(step, name) for step in files for name in WIDTHS]
    steps = np.array([step for step, _ in kinds], np.float64)
    gammas = np.array([exponent(WIDTHS[name]) for _, name in kinds])
    weights = mixture(steps, gammas, last, exponent(width))
    parts = [(files[step], name, weight) for (step, name), weight in zip(kinds, weights, strict=True)]
    return last, [part for part in parts if abs(part[2]) > NEGLIGIBLE], misfit(steps, gammas, weights, last, exponent(width))


def reconstruct(model: str, width: float) -> dict[str, torch.Tensor]:
    """The average of this relative width at the last snapshot of a run: float32 tensors by the names of the weights.

    Raises:
        UserError: see run_with_snapshots and `exponent`; also for a snapshot that is damaged or of another network.
    """
    run = run_with_snapshots(model)
    _, parts, _ = weights_of_snapshots(run, width)
    total: dict[str, torch.Tensor] = {}
    for file, kind, weight in tqdm(parts, desc=f"average of width {width:g}", unit="part", leave=False, dynamic_ncols=True):
        with boundary(f"the snapshot {file} is damaged or of another network", "remove --ema, or resume the run before it"):
            with safe_open(file, "pt") as opened:
                stored = [name for name in opened.offset_keys() if name.startswith(f"{kind}/")]
                tensors = {name.removeprefix(f"{kind}/"): opened.get_tensor(name).double() for name in stored}
            check_finite(tensors)
            if not tensors or (total and total.keys() != tensors.keys()):
                raise ValueError("its weights have other names")
            total = {name: tensor * weight + total.get(name, 0) for name, tensor in tensors.items()}
    return {name: tensor.float() for name, tensor in total.items()}
