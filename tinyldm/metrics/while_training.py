"""A cheap Frechet distance during training: generated images from fixed seeds against the held-out part.

It uses few images, so it is larger than the distance that evaluate.py reports. Compare it only between runs with the same
`train.num_metrics_images`.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from accelerate import Accelerator

from tinyldm.config.schema import DiffusionTraining, Training
from tinyldm.data.sources import Source, open_sources
from tinyldm.metrics import features
from tinyldm.metrics.distances import check_features, frechet_distance, nearer_shares, nearest, root
from tinyldm.metrics.image_sets import data_part, embed_part

KNOWN_BY_HEART = 0.65
FEW = 2000  # training images; of more of them, a short training does not learn any by heart


class Quality:
    """The feature network and the reference's mean and covariance. For few training images also their features.

    Raises:
        UserError: if the network's weights cannot be loaded, or the held-out part is too small.
    """

    def __init__(self, config: Training, accelerator: Accelerator):
        self.device = accelerator.device
        self.network = features.load(config.train.metrics_features, str(self.device))
        side = config.data.resolution
        self.network.embed(torch.zeros(1, 3, side, side, dtype=torch.uint8))  # once now: the reference may be kept features
        with accelerator.main_process_first():  # the other ranks read the features that it saved
            train, held_out = open_sources(config.data, config.seed)
            reference = self._embed(config, held_out, "held_out")
            watched = isinstance(config, DiffusionTraining) and config.train.metrics_steps is not None
            few = watched and (train.known_length() or math.inf) <= FEW
            self.train = self._embed(config, train, "train") if few else None
        reference = check_features(reference, "the held-out part")
        self.fresh = None if self.train is None else nearest(reference, self.train, 1)[0][:, 0]
        self.mean, self.root = reference.mean(0), root(np.cov(reference, rowvar=False))

    def _embed(self, config: Training, source: Source, part: str) -> np.ndarray:
        images = data_part(source, config.data, part, config.seed, config.train.batch_size)
        return embed_part(images, part, config.data, self.network)["features"]

    def sums(self, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sums over the uint8 batches (B, 3, H, W) of this rank.

        Returns:
            The number of images, and the sums of their features and of the features' products, minus the reference's mean; for
            few training images also the sum of how often each image is nearer to them than a held-out one.
        """
        count, total, products, near = 0, np.zeros_like(self.mean), np.zeros_like(self.root), 0.0
        for batch in batches:
            features = self.network.embed(batch)["features"]
            centred = features - self.mean
            if self.train is not None and self.fresh is not None:
                near += nearer_shares(nearest(features, self.train, 1)[0][:, 0], self.fresh).sum()
            count, total, products = count + len(batch), total + centred.sum(0), products + centred.T @ centred
        sums = {"count": np.array(count), "total": total, "products": products}
        sums |= {} if self.train is None else {"near": np.array(near)}
        return {key: torch.from_numpy(np.asarray(value, np.float32)).to(self.device) for key, value in sums.items()}

    def figures(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """`eval_fd`, and for few training images `eval_nearer`: see distances.nearer."""
        found = {"eval_fd": self.distance(sums)}
        return found | ({"eval_nearer": float(sums["near"] / sums["count"])} if "near" in sums else {})

    def distance(self, sums: dict[str, torch.Tensor]) -> float:
        """The Frechet distance, from the sums over all ranks; nan if a feature is not finite."""
        count, total, products = (sums[key].cpu().double().numpy() for key in ("count", "total", "products"))
        if not np.isfinite(products).all():
            return float("nan")
        mean = total / count
        covariance = (products - count * np.outer(mean, mean)) / (count - 1)
        return frechet_distance(self.mean + mean, covariance, self.mean, self.root)


def memorises(figures: dict[str, float]) -> str | None:
    """A warning if samples are clearly nearer to the training images than new images are."""
    share = figures.get("eval_nearer", 0.5)
    if share <= KNOWN_BY_HEART:
        return None
    return (
        f"warning: a sample is nearer to the training images than a held-out image is in {share:.0%} of comparisons (new "
        "images: 50%), so the model learns them by heart: use more images, data.augment, unet.dropout or train.patience"
    )
