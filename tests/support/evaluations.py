"""Stand-ins for the networks that evaluate.py would download, and images for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tinyldm.errors import UserError
from tinyldm.metrics.features import FeatureNetwork


class FakeNetwork:
    """A network without weights: 12 numbers of the pixels. It counts the images, and dies at image number `fail`."""

    def __init__(self):
        self.seen, self.fail = 0, None

    def load(self, device: str) -> FeatureNetwork:
        return FeatureNetwork("inception", "FID", "KID", {"network": "fake", "resize": "to 2 px"}, self.embed)

    def embed(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        self.seen += len(images)
        if self.fail is not None and self.seen > self.fail:
            raise KeyboardInterrupt
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.cpu().float(), 2).flatten(1) / 50
        return {"features": pooled.numpy(), "logits": pooled.numpy()}

    def no_lpips(self) -> None:
        """Replaces load_lpips."""
        raise UserError("no network")


def pictures(folder: Path, count: int = 24, side: int = 16, ending: str = "png", seed: int = 0) -> Path:
    """A folder of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i:03d}.{ending}")
    return folder


def dark_and_bright(folder: Path) -> list[str]:
    """Arguments for 90 dark pictures, then 30 bright ones, in folders of their class; half of them are held out."""
    random = np.random.default_rng(0)
    for name, count, level in (("a-dark", 90, 40), ("b-bright", 30, 200)):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(count):
            pixels = (level + random.integers(-30, 30, (8, 8, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{i:03d}.png")
    data = ["--data.name", folder / "data", "--data.resolution", 8, "--data.eval_fraction", 0.5]
    return [*map(str, data), "--data.cache_dir", str(folder / "cache")]
