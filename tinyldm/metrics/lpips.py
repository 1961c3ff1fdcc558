"""LPIPS: a loss and a metric."""

from urllib.error import URLError

from torch import nn

from tinyldm.errors import UserError


def load_lpips() -> nn.Module:
    """LPIPS with VGG16 (Zhang et al. 2018) as a loss.

    Raises:
        UserError: if the weights of VGG16 cannot be downloaded.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net.eval().requires_grad_(False)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of LPIPS's VGG16 cannot be loaded ({error}): check the network, or train without LPIPS: "
            "--loss.perceptual none --loss.gradient_weight 1"
        ) from error
