"""What a model does with an image that is already there: variations of it, filling a part of it, noise and back.

x_0 here is (B, C, S, S): images in [-1, 1], or scaled latents. `to_x0` makes it from images, model.to_images leads back.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

from tinyldm.config.schema import SamplerSettings
from tinyldm.data.batch import UNCONDITIONAL, Condition
from tinyldm.data.images import to_float
from tinyldm.drawing import likelihood
from tinyldm.drawing.sampling import Watch, normals, predictor, slerp
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.models.model import Model, encoded, finite, to_images
from tinyldm.portable.pipeline import ROUNDING
from tinyldm.process.solvers import IMAGE, Level, Solver, make_solver, towards

TOLERANCE = 1e-4  # of the ODE between an image and its noise


def to_x0(model: Model, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (B, 3, H, W) -> x_0, encoded if the model has a first stage."""
    return encoded(model, to_float(images.to(model.device)))


def continuous_solver(model: Model, settings: SamplerSettings) -> Solver:
    """A solver of solvers.py for any process: it can start at any level."""
    return make_solver(model.process, replace(settings, process=settings.process or model.process.kind))


@torch.no_grad()
def vary(
    model: Model,
    x0: torch.Tensor,
    strength: float,
    settings: SamplerSettings,
    random: list[torch.Generator],
    condition: Condition = UNCONDITIONAL,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Noise images up to a part of the way and draw them again (SDEdit: Meng et al. 2022).

    Args:
        x0: (B, C, S, S).
        strength: that part, above 0 to 1: 1 keeps nothing of the image.
        random: a generator per image, for its noise.
        watch: see sampling.predictor.
    """
    solver = continuous_solver(model, settings)
    ways = [float(model.process.fraction(torch.tensor([level.time]))) for level in solver.path.levels[:-1]]
    kept = [level for level, way in zip(solver.path.levels, ways, strict=False) if way <= strength + ROUNDING]
    solver.path.levels = [*(kept or solver.path.levels[-2:-1]), IMAGE]
    normal, first = normals(x0, random), solver.path.levels[0]
    x = first.alpha * x0 + first.sigma * normal()
    return finite(solver(predictor(model, solver, settings, condition, watch), x, normal))


@torch.no_grad()
def inpaint(
    model: Model,
    x0: torch.Tensor,
    mask: torch.Tensor,
    settings: SamplerSettings,
    random: list[torch.Generator],
    condition: Condition = UNCONDITIONAL,
    jump: int = 5,
    repeats: int = 5,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Draw a part of images anew, to fit the rest (RePaint: Lugmayr et al. 2022, algorithm 1).

    At each level the known part is the image with new noise, and only the other part is drawn. Going back to more noise and
    down again brings the two into harmony.

    Args:
        x0: (B, C, S, S).
        mask: (B, 1, S, S), 1 where the image is drawn, 0 where it is known.
        jump: levels that one repeat goes back.
        repeats: how often each part of the way is gone. 1: once.
        watch: see sampling.predictor.
    """
    solver, normal = continuous_solver(model, settings), normals(x0, random)
    predict, levels = predictor(model, solver, settings, condition, watch), solver.path.levels
    end = len(levels) - 1
    jump, x, here = min(jump, end), solver.start(normal()), 0
    left = dict.fromkeys([*range(jump, end, jump), end], repeats - 1)  # at these levels, so many times back by `jump`
    while here < end:
        now, after = levels[here], levels[here + 1]
        drawn = towards(*predict(x, now), now, after, 1.0, normal)
        known = after.alpha * x0 + after.sigma * normal()
        x, here = mask * drawn + (1 - mask) * known, here + 1
        if left.get(here):
            left[here] -= 1
            x, here = _noisier(x, levels[here], levels[here - jump], normal()), here - jump
    return finite(x)


def _noisier(x: torch.Tensor, now: Level, before: Level, noise: torch.Tensor) -> torch.Tensor:
    """x at a level of more noise: the forward process from one to the other."""
    kept = before.alpha / now.alpha
    return kept * x + max(before.sigma**2 - (kept * now.sigma) ** 2, 0.0) ** 0.5 * noise


def mask_of_latents(mask: torch.Tensor, side: int) -> torch.Tensor:
    """The mask (B, 1, h, h) of latents: 1 where any pixel of the patch is drawn, of a mask (B, 1, H, H)."""
    return F.adaptive_max_pool2d(mask, side)


def paste(images: torch.Tensor, drawn: torch.Tensor, mask: torch.Tensor, feather: int) -> torch.Tensor:
    """uint8 images with the drawn part of others: (B, 3, H, W).

    Args:
        mask: (B, 1, H, W), 1 where `drawn` shows.
        feather: half the pixels over which one passes into the other, outside the mask. 0: the other pixels stay to the bit.
    """
    soft = mask
    if feather:
        grown = F.max_pool2d(mask, 2 * feather + 1, 1, feather)
        soft = torch.maximum(gaussian_blur(grown, [2 * feather + 1] * 2), mask)
    mixed = soft * drawn.float() + (1 - soft) * images.float()
    return torch.where(soft > 0, mixed.round(), images.float()).to(torch.uint8)


def fill(
    model: Model,
    images: torch.Tensor,
    mask: torch.Tensor,
    settings: SamplerSettings,
    random: list[torch.Generator],
    condition: Condition = UNCONDITIONAL,
    jump: int = 5,
    repeats: int = 5,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Inpainting of uint8 images (B, 3, H, W): in pixels, the known ones stay to the bit; over a first stage, up to a
    feathered edge of the width of two latents. The arguments are those of inpaint."""
    x0, feather = to_x0(model, images), 0
    inner = mask.to(x0)
    if model.first_stage is not None:
        inner, feather = mask_of_latents(inner, x0.shape[-1]), FirstStage(model.first_stage).downscale
    drawn = to_images(model, inpaint(model, x0, inner, settings, random, condition, jump, repeats, watch))
    return paste(images, drawn.cpu().expand(-1, 3, -1, -1), mask.float().cpu(), feather)


def invert(model: Model, images: torch.Tensor, condition: Condition = UNCONDITIONAL) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise (B, C, S, S) of uint8 images (B, 3, H, W), and the images that the same ODE makes of it."""
    noise = likelihood.encode(model, to_x0(model, images), TOLERANCE, condition.to(model.device))
    return noise, redraw(model, noise, condition)


def redraw(model: Model, noise: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
    """uint8 images (B, 3, H, W) of the noise that `invert` gives."""
    x0 = likelihood.decode(model, noise, TOLERANCE, condition.to(model.device))
    return to_images(model, x0.to(model.device, model.dtype)).cpu().expand(-1, 3, -1, -1)


def between(model: Model, noise: torch.Tensor, frames: int, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
    """uint8 images (frames, 3, H, W) on the way from one real image to another.

    Args:
        noise: (2, C, S, S), theirs.
        condition: of all frames.
    """
    return redraw(model, slerp(noise[0], noise[1], torch.linspace(0, 1, frames, dtype=noise.dtype)), condition)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of two uint8 batches in dB."""
    return float(-10 * ((a.float() - b.float()) / 255).square().mean().log10())


def box_mask(box: Sequence[int], side: int) -> torch.Tensor:
    """(1, 1, side, side), 1 inside the box (left, top, right, bottom) in pixels.

    Raises:
        UserError: for a box without pixels, or outside the image.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= side and 0 <= top < bottom <= side):
        raise UserError(f"mask is the box {list(box)}; give left, top, right, bottom in pixels, from 0 to {side}")
    mask = torch.zeros(1, 1, side, side)
    mask[:, :, top:bottom, left:right] = 1
    return mask
