"""Devices and precisions that this machine or GPU cannot use."""

import pytest
import torch

from tinyldm.config.schema import TrainConfig
from tinyldm.errors import UserError
from tinyldm.training.accelerator import default_device, make_accelerator


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:77", "cpu:x", "privateuseone", "xla"])
def test_devices_that_cannot_compute(name):
    with pytest.raises(UserError, match=f"device '{name}' cannot be used") as caught:
        default_device(name)
    assert "\n" not in str(caught.value)


def test_a_device_that_can():
    assert default_device("cpu") == "cpu" and default_device() in ("cpu", "cuda")


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((6, 1), True), ((8, 0), False), ((9, 0), False)])
def test_a_precision_that_the_gpu_would_emulate(capability, refused, monkeypatch, tmp_path):
    """bf16 before Ampere is many times slower than fp16."""

    class Stop(Exception):
        pass

    def accelerator(**options):
        raise Stop

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    monkeypatch.setattr("tinyldm.training.accelerator.Accelerator", accelerator)
    with pytest.raises(UserError if refused else Stop) as caught:
        make_accelerator(TrainConfig(max_steps=1, mixed_precision="bf16"), str(tmp_path))
    assert not refused or "set it to fp16" in str(caught.value)
