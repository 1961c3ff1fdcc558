"""Which formats of stored latents decode to the same image, and how large are they?

    python -m benchmarks.same_image --first_stage_run runs/faces64-vq --data ../shared/data/faces      # 2 minutes
    python -m benchmarks.same_image --small true

A VQ model's decoder uses the nearest codes of the latents, so rounding keeps the image as long as no code changes. float16 has
11 bits and moves some latents across the border between two codes; FirstStage.to_half moves them back. Code indices always
keep the image, up to rounding. But they only store quantised latents, and the denoiser learns the latents before quantisation
(Rombach et al. 2022, section 3.1: the quantisation belongs to the decoder).
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli

from benchmarks.latents import drawn_faces, first_stage
from benchmarks.measure import RESULTS, record, use_all_cores
from tinyldm.config.schema import DataConfig, FirstStageConfig
from tinyldm.data.images import Images, first_images, to_float, to_uint8
from tinyldm.data.sources import open_sources
from tinyldm.first_stage.autoencoder import FirstStage, load_first_stage

FORMS: dict[str, Callable[[FirstStage, torch.Tensor], torch.Tensor]] = {
    "float32": lambda stage, latents: latents,
    "float16": lambda stage, latents: latents.half(),
    "float16 of the same codes (what is kept)": lambda stage, latents: stage.to_half(latents),
    "bfloat16": lambda stage, latents: latents.bfloat16(),
}


def main(
    data: str = "../shared/data/faces",
    first_stage_run: str = "runs/faces64-vq",
    resolution: int = 64,
    images: int = 256,
    small: bool = False,
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        data: a folder with splits `train` and `validation`; uses the first images of `validation`.
        first_stage_run: a run of train_vq.py.
        resolution: side length of the images.
        images: number of images.
        small: a small first stage with random weights.
        output: folder for the JSON file.
    """
    use_all_cores()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if small:
            drawn_faces(folder / "images", 1, 8, 32)
            stage, data, resolution, images = first_stage(folder / "vq", small=True), str(folder / "images"), 32, 8
        else:
            stage = load_first_stage(FirstStageConfig(path=first_stage_run))
        source = open_sources(DataConfig(name=data, eval_split="validation"), 0)[1]
        pixels = first_images(Images(source, resolution, 2), images)
    results = compare(stage, pixels)
    for name, row in results.items():
        print(
            f"{name}: {row['bytes']:,.0f} bytes an image; other codes {row['codes']:.2e}, other images {row['images']:.1%}, "
            f"other pixel values {row['values']:.2e}, at most by {row['most']}"
        )
    record("same_image", {"images": len(pixels), "resolution": resolution, "forms": results}, output, small)


@torch.no_grad()
def compare(stage: FirstStage, pixels: torch.Tensor) -> dict[str, dict[str, float]]:
    """Compare each format with the encoder's own latents.

    bytes: per image. codes: share of changed codes. images: share with a value (0 to 255) that differs by more than 1. values:
    share that differ at all. most: the largest difference. A difference of 1 is rounding: VQModel passes its decoder
    z + (code - z), which is not exactly the code in float32."""
    rows = {name: {"codes": 0.0, "images": 0.0, "values": 0.0, "most": 0} for name in (*FORMS, "code indices")}
    for batch in to_float(pixels).split(16):
        latents = stage.encode(batch)
        right_codes, right = stage.codes(latents), to_uint8(stage.decode(latents))
        for name, row in rows.items():
            if name in FORMS:
                kept = FORMS[name](stage, latents)
                row["bytes"] = kept[0].numel() * kept.element_size()
                restored = kept.float()
            else:
                width = np.min_scalar_type(stage.model.config.num_vq_embeddings - 1).itemsize
                row["bytes"] = right_codes[0].numel() * width
                restored = stage.model.quantize.get_codebook_entry(
                    right_codes.flatten(), (*right_codes.shape, latents.shape[1])
                )
            image = to_uint8(stage.decode(restored))
            difference = (image.int() - right.int()).abs()
            row["codes"] += (stage.codes(restored) != right_codes).float().mean().item() * len(batch) / len(pixels)
            row["images"] += (difference.flatten(1).amax(1) > 1).sum().item() / len(pixels)
            row["values"] += (difference > 0).float().mean().item() * len(batch) / len(pixels)
            row["most"] = max(row["most"], int(difference.max()))
    return rows


if __name__ == "__main__":
    auto_cli(main)
