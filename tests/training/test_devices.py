"""Devices and precisions that this machine or GPU cannot use."""

from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tinyldm.config.networks import Kind, ProcessConfig, SchedulerConfig
from tinyldm.config.schema import TrainConfig
from tinyldm.diffusion.objective import diffusion_loss, held_out_error
from tinyldm.errors import UserError
from tinyldm.process import process
from tinyldm.process.bound import prior_bits, step_bits
from tinyldm.process.processes import make_process
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


def test_apples_gpu_is_only_used_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("tinyldm.training.accelerator.Accelerator", lambda **options: pytest.fail(f"cpu: {options['cpu']}"))
    for device, cpu in (("auto", not torch.cuda.is_available()), ("mps", False)):
        with pytest.raises(pytest.fail.Exception, match=f"cpu: {cpu}"):
            make_accelerator(TrainConfig(max_steps=1, device=device), str(tmp_path))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="device mps needs Apple's GPU"):
        make_accelerator(TrainConfig(max_steps=1, device="mps"), str(tmp_path))


class Float64(TorchDispatchMode):
    """Notes the operations whose result on the device `meta` is float64."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "meta" and result.dtype == torch.float64:
            self.seen.add(str(function))
        return result


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_device_without_float64_gets_none(kind, monkeypatch):
    """meta stands in for Apple's GPU. On it, float64 is used where the device has it."""
    way = make_process(ProcessConfig(kind=kind), SchedulerConfig())
    x0, noise = torch.randn(2, 2, 3, 8, 8, device="meta")
    times = way.times(torch.tensor([0.2, 0.7])).to("meta")

    def losses() -> set[str]:
        with Float64() as found:
            diffusion_loss(lambda x, t, condition: x, way, x0, noise, times, 5.0)
            held_out_error(lambda x, t, condition: x, way, x0, noise, times)
            if kind == "vp":
                step_bits(way, noise, x0, noise, times)
                prior_bits(way, x0)
        return found.seen

    assert losses()
    monkeypatch.setattr(process, "WITHOUT_FLOAT64", {"meta"})
    assert not losses()
