"""Guidance: away from the prediction of a weaker model, the guide.

    guided = y + (w - 1) (y - y_guide)

All predictions y of process.py are a x_0 + b eps with the same x_t, so it does not matter which of them is extrapolated. The
guide is the network itself without its labels (classifier-free guidance, Ho & Salimans 2022), or an earlier or smaller one
(autoguidance, Karras et al. 2024, equation 3). w is the guidance scale; 1 changes nothing.

Or towards what a classifier calls by the wanted labels (Dhariwal & Nichol 2021, equation 14), with g = grad log p(labels | x_t)
and the guidance scale s. The score moves by s g, so eps by -sigma s g, x_0 by sigma^2 / alpha s g, and y = a x_0 + b eps by

    guided = y + s sigma (a sigma / alpha - b) g

With s = 1 this is Bayes' rule: an unconditional model draws from p(x | labels). Larger scales do not draw from
p(x) p(labels | x)^s, as is often said, but from something narrower (docs/theory/4-guidance.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tinyldm.data.batch import Condition
from tinyldm.models.conditioning import without_labels
from tinyldm.models.denoiser import Denoiser
from tinyldm.portable.pipeline import extrapolate
from tinyldm.process.process import Process

FAINT = 1e-4  # the SNR below which x_t shows no labels; the formula would multiply errors of the classifier by over 100


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
        """The guided prediction.

        Args:
            x_t: (B, C, H, W).
            times: of the process, one for all: ().
            condition: see Denoiser.forward.
        """
        if self.scale == 1 or not _inside(self.interval, self.process, times):
            return self.denoiser(*self.process.inputs(x_t, times), condition)
        inputs, time = self.process.inputs(x_t, times)
        if self.guide is not None:
            predicted = self.denoiser(inputs, time, condition)
            weaker = self.guide(inputs, time, condition)
        else:
            both = condition.join(without_labels(condition))
            predicted, weaker = self.denoiser(torch.cat([inputs, inputs]), time, both).chunk(2)
        channels = x_t.shape[1]
        guided = extrapolate(predicted[:, :channels], weaker[:, :channels], self.scale, self.rescale)
        return _finished(self.process, x_t, times, guided, predicted)


@dataclass
class ClassifierGuidance:
    """What a sampler calls in place of a denoiser. The gradient goes through the classifier only, in float32.

    Attributes:
        denoiser, process, interval: see Guidance.
        classifier: (x_t, times) -> for each label the logits (B, number of values).
        wanted: for each label that is asked for the number of its value. Labels count as independent of each other, given x_t.
        scale: s.
    """

    denoiser: Denoiser
    process: Process
    classifier: Callable[..., Mapping[str, torch.Tensor]]
    wanted: Mapping[str, int]
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __call__(self, x_t: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See Guidance.__call__."""
        predicted = self.denoiser(*self.process.inputs(x_t, times), condition)
        alpha, sigma = self.process.levels(times.reshape(1))
        if not _inside(self.interval, self.process, times) or (alpha / sigma).square() < FAINT:
            return predicted
        a, b = self.process.prediction_of(alpha, sigma)
        moved = self.scale * sigma * (a * sigma / alpha - b) * self.gradient(x_t, times)
        guided = predicted[:, : x_t.shape[1]] + moved.to(predicted.dtype)
        return _finished(self.process, x_t, times, guided, predicted)

    @torch.enable_grad()
    def gradient(self, x_t: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """grad log p(wanted labels | x_t), (B, C, H, W)."""
        x_t = x_t.detach().float().requires_grad_()
        logits = self.classifier(*self.process.inputs(x_t, times))
        chances = torch.stack([logits[name].float().log_softmax(1)[:, number] for name, number in self.wanted.items()])
        return torch.autograd.grad(chances.sum(), x_t)[0]


def _inside(interval: tuple[float, float], process: Process, times: torch.Tensor) -> bool:
    """Whether a time lies in this part of the way from noise to image."""
    start, stop = interval
    if (start, stop) == (0.0, 1.0):  # does not wait for the device
        return True
    return start <= 1 - float(process.fraction(times)) <= stop


def _finished(
    process: Process, x_t: torch.Tensor, times: torch.Tensor, guided: torch.Tensor, predicted: torch.Tensor
) -> torch.Tensor:
    """A guided prediction, clipped as the process clips, and a learned variance as predicted: it is not guided."""
    return torch.cat([process.clipped(x_t, guided, times.reshape(1)), predicted[:, x_t.shape[1] :]], 1)
