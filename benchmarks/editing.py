"""Inpainting and inversion on held-out images: do they fit, do they come back?

    python -m benchmarks.editing --model runs/faces64      # half an hour on two CPU cores

Each model has a row in editing.json.

The middle of held-out images is drawn anew, and compared with held-out images that were not edited:

- the Frechet distance beside those of the model's own samples and of the same images as they were;
- the seam: the mean step between neighbouring pixels across the mask's border, over that of the images as they were;
- the largest change outside the mask, in levels of 255. Over a first stage a border of two latents is blended.

Inversion: the peak signal-to-noise ratio of images that went to noise and back, beside that of the first stage alone.
"""

import numpy as np
import torch
from jsonargparse import auto_cli
from tqdm.auto import tqdm

from benchmarks.measure import RESULTS, data_of, held_out, record_model, use_all_cores
from tinyldm.config.schema import Features, SamplerSettings
from tinyldm.drawing import editing, likelihood, sampling
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.metrics import features as networks
from tinyldm.metrics.distances import frechet
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model, to_images

BATCH = 32


def main(
    model: str = "runs/faces64",
    images: int = 256,
    inverted: int = 32,
    steps: int = 50,
    features: Features = "efficientnet-lite0",
    data: str | None = None,
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        model: a run of train_ldm.py or train_ddpm.py.
        images: held-out images to fill; the others are the reference.
        inverted: images to turn into noise and back.
        steps: steps of DDIM for samples, and of RePaint for the new part.
        features: feature network of the distances; see evaluate.py.
        data: path of the run's data, if they have moved.
        output: folder for the JSON file.
    """
    use_all_cores()
    run, part, seed = data_of(model, data)
    real = held_out(part, seed, 1000)
    if len(real) < 2 * images:
        raise UserError(f"the held-out part has {len(real)} images; give at most half of them as --images")
    loaded = load_model(model)
    row = {"features": features, "images": images, "resolution": part.resolution}
    row |= fill(loaded, real, images, steps, networks.load(features)) | invert(loaded, real[:inverted])
    record_model("editing", run.name, row, output, small=images < 100)


def fill(model: Model, real: torch.Tensor, count: int, steps: int, network: networks.FeatureNetwork) -> dict:
    """Inpainting of the middle half (in each direction) of the first images."""
    settings, side = SamplerSettings(num_inference_steps=steps), real.shape[-1]
    mask = editing.box_mask([side // 4, side // 4, 3 * side // 4, 3 * side // 4], side)
    given, filled = real[:count], []
    for first in tqdm(range(0, count, BATCH), "filling", unit="batch"):
        batch = given[first : first + BATCH]
        masks, random = mask.expand(len(batch), -1, -1, -1), sampling.generators(first, len(batch))
        filled.append(editing.fill(model, batch, masks, settings, random, model.named_labels(len(batch))))
    drawn = torch.cat(list(sampling.sample(model, count, BATCH, 0, settings)))
    sets = {"filled": torch.cat(filled), "samples": drawn.expand(-1, 3, -1, -1), "as they were": given}

    def embed(some: torch.Tensor) -> np.ndarray:
        return np.concatenate([network.embed(batch)["features"] for batch in some.split(BATCH)])

    reference, box = embed(real[count:]), slice(side // 4, 3 * side // 4)
    outside = (sets["filled"].int() - given.int()).abs() * (1 - mask.int())
    far = outside.clone()
    edge = 0 if model.first_stage is None else 2 * FirstStage(model.first_stage).downscale
    wide = slice(side // 4 - edge, 3 * side // 4 + edge)
    far[..., wide, wide] = 0

    def seam(some: torch.Tensor) -> float:
        levels, after = some.float(), side // 4
        top, left = (at[..., after - 1, box] - at[..., after, box] for at in (levels, levels.mT))
        return float((top.abs() + left.abs()).mean())

    return {
        "fd": {name: frechet(embed(some), reference)._asdict() for name, some in sets.items()},
        "seam": seam(sets["filled"]) / seam(given),
        "changed_outside": int(outside.max()),
        "changed_beyond_the_edge": int(far.max()),
    }


@torch.no_grad()
def invert(model: Model, images: torch.Tensor) -> dict:
    """Peak signal-to-noise ratios in dB, of all images together, and evaluations of the network one way."""
    x0 = editing.to_x0(model, images)
    condition = model.named_labels(len(images))
    there = likelihood.to_noise(model, x0, editing.TOLERANCE, condition)
    found = {
        "inverted": len(images),
        "evaluations": there.evaluations,
        "psnr": editing.psnr(editing.redraw(model, there.z, condition), images),
    }
    if model.first_stage is not None:
        found["ceiling"] = editing.psnr(to_images(model, x0).cpu().expand(-1, 3, -1, -1), images)
    return found


if __name__ == "__main__":
    auto_cli(main)
