"""Weights from the network: their hash is known, and nothing in them is unpickled."""

import hashlib
import os

import pytest
import torch

from tinyldm.errors import UserError
from tinyldm.metrics import features, lpips
from tinyldm.metrics.weights import pinned_weights


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Writes a file to publish, and returns its address and hash."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def write(content) -> tuple[str, str]:
        file = tmp_path / "weights.pth"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        return file.as_uri(), hashlib.sha256(file.read_bytes()).hexdigest()

    return write


def test_weights_are_downloaded_once(publish, tmp_path):
    url, sha256 = publish({"a": torch.arange(3)})
    assert pinned_weights(url, sha256)["a"].tolist() == [0, 1, 2]
    (tmp_path / "weights.pth").unlink()
    assert pinned_weights(url, sha256)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("network", [lambda: features.load("inception"), lpips.load_lpips])
def test_other_weights_than_the_published_ones_are_refused(network, publish, tmp_path, monkeypatch):
    url, _ = publish({"a": Harmful()})
    for module, name in ((features, "INCEPTION"), (lpips, "VGG16")):
        monkeypatch.setattr(module, name, (url, getattr(module, name)[1]))
    with pytest.raises(UserError, match=r"weights.* cannot be loaded \(invalid hash value"):
        network()
    kept = tmp_path / "hub" / "checkpoints" / "weights.pth"
    assert not kept.exists()
    kept.write_bytes(b"from another program")
    with pytest.raises(UserError, match=r"has the SHA-256 .*; delete it"):
        network()


def test_nothing_is_unpickled_even_with_the_right_hash(publish, tmp_path):
    with pytest.raises(Exception, match="mkdir"):
        pinned_weights(*publish({"a": Harmful()}))
    assert not (tmp_path / "harm").exists()


@pytest.mark.slow
def test_lpips_is_torchmetrics_with_torchvisions_vgg16(publish, monkeypatch):
    import torchvision
    from torchmetrics.functional.image import lpips as theirs

    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None)
    monkeypatch.setattr(lpips, "VGG16", publish({k: v for k, v in vgg.state_dict().items() if k.startswith("features")}))
    images = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    state = torch.get_rng_state()
    ours = lpips.load_lpips()
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *args, **options: vgg.features)
    torch.testing.assert_close(ours(*images), theirs._NoTrainLpips(net="vgg")(*images))
