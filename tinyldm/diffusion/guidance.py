"""Guidance: away from the prediction of a weaker model, the guide.

    guided = y + (w - 1) (y - y_guide)

All predictions y of process.py are a x_0 + b eps with the same x_t, so it does not matter which of them is extrapolated. The
guide is the network itself without its labels (classifier-free guidance, Ho & Salimans 2022), or an earlier or smaller one
(autoguidance, Karras et al. 2024, equation 3). w is the guidance scale; 1 changes nothing.
"""

from dataclasses import dataclass

import torch

from tinyldm.data.batch import Condition
from tinyldm.diffusion.conditioning import without_labels
from tinyldm.diffusion.denoiser import Denoiser
from tinyldm.diffusion.pipeline import extrapolate
from tinyldm.diffusion.process import Process


@dataclass
class Guidance:
    """What a sampler calls in place of a denoiser.

    Attributes:
        denoiser: the network that is guided.
        process: gives the part of the way from noise to image.
        scale: w.
        guide: the weaker network; None: the denoiser itself without labels.
        interval: where on the way from noise to image, both from 0 to 1.
        rescale: see `extrapolate`.
    """

    denoiser: Denoiser
    process: Process
    scale: float = 1.0
    guide: Denoiser | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __call__(self, x_t: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The guided prediction. For the arguments see Denoiser.forward; `times` is one for all."""
        start, stop = self.interval
        if self.scale == 1 or not start <= 1 - float(self.process.fraction(times)) <= stop:
            return self.denoiser(x_t, times, condition)
        if self.guide is not None:
            predicted = self.denoiser(x_t, times, condition)
            weaker = self.guide(x_t, times, condition)
        else:
            both = condition.join(without_labels(condition))
            predicted, weaker = self.denoiser(torch.cat([x_t, x_t]), times, both).chunk(2)
        channels = x_t.shape[1]  # a learned variance is not guided
        guided = extrapolate(predicted[:, :channels], weaker[:, :channels], self.scale, self.rescale)
        return torch.cat([guided, predicted[:, channels:]], 1)
