"""LPIPS: a loss and a metric."""

import torch
from torch import nn

from tinyldm.errors import boundary
from tinyldm.metrics.weights import pinned_weights

VGG16 = (
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)


def load_lpips() -> nn.Module:
    """LPIPS with VGG16 (Zhang et al. 2018) as a loss.

    Raises:
        UserError: if the weights of VGG16 cannot be downloaded, or are not those of torchvision.
    """
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    advice = "check the network, or train without LPIPS: --loss.perceptual none --loss.gradient_weight 1"
    with boundary("the weights of LPIPS's VGG16 cannot be loaded", advice), torch.random.fork_rng(devices=[]):
        weights = pinned_weights(*VGG16)
        network = _NoTrainLpips(net="vgg", pnet_rand=True)
        # slice2.5.weight here is features.5.weight there
        network.net.load_state_dict({name: weights[f"features.{name.partition('.')[2]}"] for name in network.net.state_dict()})
    return network.eval().requires_grad_(False)
