"""What the steps of benchmarks.gpu share: where things are, the recipes at full or tiny size, and clocks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.latents import SMALL
from benchmarks.measure import ROOT
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM
from tinyldm.first_stage.autoencoder import FirstStage, load_first_stage

# As FirstStage.encode leaves it, and as it is by default but for its name. That name is part of the key of compiled kernels: a
# training that finds stored latents would compile anew what one that encodes them has compiled.
torch.backends.cuda.matmul.allow_tf32 = False


@dataclass(frozen=True)
class Setting:
    """Where a step reads and writes, and how large it is.

    Attributes:
        argument: what the step is given: a variant, or seconds.
        out: what comes back from the machine.
        work: data, runs and compiled kernels, which later steps use.
        packed: what benchmarks.gpu_pack wrote; cartoon faces stand in for what is not there.
        tiny: small networks and few images, for a CPU.
    """

    argument: str
    out: Path
    work: Path
    packed: Path
    tiny: bool

    @property
    def small_images(self) -> Path:
        """A data set of faces at 64 px."""
        return self.packed / "faces" if (self.packed / "faces").exists() else self.work / "faces"

    @property
    def small_stage(self) -> Path:
        """A first stage of them, with its folder vqvae."""
        return self.packed / "vq" if (self.packed / "vq").exists() else self.work / "faces-vq"

    @property
    def large_images(self) -> Path:
        """The same faces enlarged to the side of configs/celebahq256.yaml."""
        return self.work / "large"

    @property
    def large_stage(self) -> Path:
        """The VQ-f4 of that recipe with random weights."""
        return self.work / "large-vq"

    @property
    def large_latents(self) -> Path:
        """The latents of the large images."""
        return self.work / "large-latents"

    @property
    def side(self) -> int:
        """Side of the large images in pixels."""
        return 32 if self.tiny else 256

    def sized(self, full: int, tiny: int) -> int:
        """A number at this size."""
        return tiny if self.tiny else full

    def celebahq256(self, run: str, *more: object) -> list[str]:
        """Arguments of train_ldm.py: the recipe over the large images."""
        args = "--data.cache_dir", self.large_latents
        return self._arguments("celebahq256", run, self.large_images, self.large_stage, *args, *more)

    def faces64(self, run: str, *more: object) -> list[str]:
        """Arguments of train_ldm.py: the recipe over the small images."""
        args = "--data.cache_dir", self.work / "latents"
        return self._arguments("faces64", run, self.small_images, self.small_stage, *args, *more)

    def _arguments(self, recipe: str, run: str, images: Path, stage: Path, *more: object) -> list[str]:
        # The scale of guidance is given, since choosing one would need Inception's weights from the network.
        args = ["--config", ROOT / f"configs/{recipe}.yaml", "--output_dir", self.work / run, "--guidance.scale", "2"]
        args += ["--data.name", images, "--first_stage.path", stage, "--first_stage.subfolder", "vqvae"]
        args += ["--data.num_workers", self.sized(16, 2), "--train.log_with", "none"]
        if self.tiny:
            args += [*SMALL, "--data.resolution", self.side, "--train.mixed_precision", "no", "--train.compile", "false"]
        return [str(arg) for arg in (*args, *more)]

    def recipe(self) -> TrainLDM:
        """configs/celebahq256.yaml, for its networks and its process."""
        return parse(TrainLDM, "", self.celebahq256("unused"))

    def load_large_stage(self, device: torch.device) -> FirstStage:
        """The VQ-f4 with random weights, which the step `faces` has made, on a device."""
        stage = load_first_stage(self.recipe().first_stage)
        stage.model.to(device)
        return stage


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Wait until the device has done all that it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], times: int, warm_up: int = 3) -> tuple[float, float]:
    """Median times of some work by itself: on the device, and until the host has launched it.

    On a CPU both are the same.
    """
    for _ in range(warm_up):
        work()
    on_device, on_host = [], []
    for _ in range(times):
        wait()
        marks = [torch.cuda.Event(enable_timing=True) for _ in "ab"] if torch.cuda.is_available() else []
        began = time.perf_counter()
        for mark in marks[:1]:
            mark.record()
        work()
        for mark in marks[1:]:
            mark.record()
        on_host.append(1000 * (time.perf_counter() - began))
        wait()
        on_device.append(marks[0].elapsed_time(marks[1]) if marks else on_host[-1])
    return median(on_device), median(on_host)


def in_a_row(work: Callable[[], object], times: int) -> float:
    """Mean milliseconds of some work done again and again, as in a loop: the host need not wait for the device."""
    wait()
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return 1000 * (time.perf_counter() - began) / times


def gib() -> float:
    """The most memory that tensors have taken on the GPU since `reset`."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def reset() -> None:
    """Forget the most memory so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def flops(work: Callable[[], object]) -> float:
    """FLOPs of the matrix products and convolutions of some work; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """|one - other| / |other|, in float64."""
    one, other = one.double(), other.double()
    return float((one - other).norm() / other.norm())
