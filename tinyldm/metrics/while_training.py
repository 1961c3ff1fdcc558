"""A cheap Frechet distance during training: generated images from fixed seeds against the held-out part.

It uses few images, so it is larger than the distance that evaluate.py reports. Compare it only between runs with the same
`train.num_metrics_images`.
"""

from collections.abc import Iterable

import numpy as np
import torch
from accelerate import Accelerator

from tinyldm.config.schema import Training
from tinyldm.data.sources import open_sources
from tinyldm.metrics import features
from tinyldm.metrics.distances import check_features, frechet_distance, root
from tinyldm.metrics.image_sets import data_part, embed_part


class Quality:
    """The feature network and the reference's mean and covariance.

    Raises:
        UserError: if the network's weights cannot be loaded, or the held-out part is too small.
    """

    def __init__(self, config: Training, accelerator: Accelerator):
        self.device = accelerator.device
        self.network = features.load(config.train.metrics_features, str(self.device))
        side = config.data.resolution
        self.network.embed(torch.zeros(1, 3, side, side, dtype=torch.uint8))  # once now: the reference may be kept features
        with accelerator.main_process_first():  # the other ranks read the features that it saved
            held_out = open_sources(config.data, config.seed)[1]
            images = data_part(held_out, config.data, "held_out", config.seed, config.train.batch_size)
            reference = embed_part(images, "held_out", config.data, self.network)["features"]
        reference = check_features(reference, "the held-out part")
        self.mean, self.root = reference.mean(0), root(np.cov(reference, rowvar=False))

    def sums(self, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sums over the uint8 batches (B, 3, H, W) of this rank.

        Returns:
            The number of images, and the sums of their features and of the features' products, minus the reference's mean.
        """
        count, total, products = 0, np.zeros_like(self.mean), np.zeros_like(self.root)
        for batch in batches:
            centred = self.network.embed(batch)["features"] - self.mean
            count, total, products = count + len(batch), total + centred.sum(0), products + centred.T @ centred
        sums = {"count": np.array(count), "total": total, "products": products}
        return {key: torch.from_numpy(np.asarray(value, np.float32)).to(self.device) for key, value in sums.items()}

    def distance(self, sums: dict[str, torch.Tensor]) -> float:
        """The Frechet distance, from the sums over all ranks; nan if a feature is not finite."""
        count, total, products = (sums[key].double().cpu().numpy() for key in ("count", "total", "products"))
        if not np.isfinite(products).all():
            return float("nan")
        mean = total / count
        covariance = (products - count * np.outer(mean, mean)) / (count - 1)
        return frechet_distance(self.mean + mean, covariance, self.mean, self.root)
