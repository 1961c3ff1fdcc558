"""Accelerate: devices, ranks and signals. How many cores a rank uses, and how all ranks stop together."""

import os
import platform
import shutil
import signal
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Self

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, set_seed

from tinyldm.config.schema import TrainConfig
from tinyldm.errors import UserError, boundary
from tinyldm.randomness import Rank

PATIENCE = timedelta(hours=12)  # how long ranks wait for one that waits for another run to encode the same images
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows has no USR1


def make_accelerator(train: TrainConfig, output_dir: str) -> Accelerator:
    """The Accelerator of a training.

    Raises:
        UserError: for what this loop does not support, or what the machine lacks.
    """
    for plan in ("FSDP", "DeepSpeed", "Megatron_LM"):
        if os.environ.get(f"ACCELERATE_USE_{plan.upper()}", "false").lower() in ("1", "true"):
            raise UserError(
                f"accelerate's config asks for {plan}: a network of 5M parameters fits on each GPU, so plain data "
                "parallelism (accelerate launch --multi_gpu) is both simpler and faster"
            )
    refuse_other_settings(train)
    if train.log_with not in ("none", "tensorboard"):
        try:
            __import__(train.log_with)
        except ImportError as error:
            raise UserError(f"train.log_with {train.log_with} needs the package: pip install {train.log_with}") from error
    if train.device == "mps" and not torch.backends.mps.is_available():
        raise UserError("train.device mps needs Apple's GPU and macOS; set it to auto")
    if train.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.mixed_precision fp16 needs a GPU; on a CPU set it to no")
    if train.mixed_precision == "bf16" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        raise UserError("train.mixed_precision bf16 needs an Ampere GPU or newer, this one would emulate it; set it to fp16")
    if train.compile and not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang", "cl"))):
        raise UserError(
            "train.compile needs a C compiler and Python's headers (Debian, Ubuntu: apt install build-essential python3-dev); "
            "or set it to false"
        )
    accelerator = Accelerator(
        # Without this, ranks on a CPU would not find each other, and Apple's GPU would be used without being named.
        cpu=not torch.cuda.is_available() and train.device != "mps",
        mixed_precision=train.mixed_precision,
        log_with=None if train.log_with == "none" else train.log_with,
        dynamo_backend="no",  # train.compile decides; accelerate's own way of compiling would rename the weights
        project_dir=str(Path(output_dir) / "logs"),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the loop divides the loss; so would the default
    )
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first use of cuBLAS
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not train.deterministic  # the shapes stay the same, so trying all kernels once pays
    if accelerator.device.type == "cpu":
        # accelerate launch sets OMP_NUM_THREADS to 1 by default: a laptop would train on one of its cores.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(max(1, cores() // local))
    set_seed(0)  # for libraries that use the global generators; our own are all explicit
    return accelerator


def refuse_other_settings(train: TrainConfig) -> None:
    """Raise UserError where the environment, or `accelerate launch` by it, asks for something else than the recipe.

    launch always sets its default, which therefore asks for nothing.
    """
    recipe: list[tuple[str, str, str]] = [
        ("mixed_precision", "no", train.mixed_precision),
        ("gradient_accumulation_steps", "1", str(train.gradient_accumulation_steps)),
    ]
    for option, default, ours in recipe:
        asked = os.environ.get(variable := f"ACCELERATE_{option.upper()}", default).lower()
        if asked not in (default, ours):
            raise UserError(
                f"accelerate asks for {option} {asked} ({variable}), the recipe for {ours}: set train.{option} to {asked}, "
                "or leave it out of accelerate's options and config"
            )


def rank_of(accelerator: Accelerator) -> Rank:
    """Which of the ranks this is."""
    return Rank(accelerator.process_index, accelerator.num_processes)


def default_device(named: str | None = None) -> str:
    """The named device, else the GPU if there is one.

    Raises:
        UserError: if the device is not there or cannot compute.
    """
    device = named or ("cuda" if torch.cuda.is_available() else "cpu")
    with boundary(f"device {device!r} cannot be used", "give cpu, or cuda if there is a GPU"):
        torch.zeros(1, device=device).item()
    return device


def hardware(device: torch.device, ranks: int = 1) -> str:
    """The device of a run, as text."""
    if device.type == "cuda":
        return f"{ranks} x {torch.cuda.get_device_name(device)}"
    return f"CPU, {ranks * torch.get_num_threads()} threads ({platform.machine()})"


def cores() -> int:
    """Processor cores that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StopRequest:
    """Inside `with`, a first Ctrl-C, SIGTERM or SIGUSR1 asks for a stop at the end of a step.

    Clusters send these before they take the machine away. A second signal acts as usual."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = 0
        self._exchanged: torch.Tensor | None = None
        self._arrived = torch.cuda.Event() if accelerator.device.type == "cuda" else None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()

    def __call__(self) -> signal.Signals | None:
        """The signal that asks for a stop, or None. Every rank calls this once per step.

        All ranks must stop at the same step, so they exchange their signals. Each reads the result of the last step's
        exchange: it has arrived by now, so nothing waits for the GPU.
        """
        number = self.received
        if self.accelerator.num_processes > 1:
            latest = self.accelerator.gather(torch.full((1,), number, device=self.accelerator.device)).max()
            if self._arrived:
                self._arrived.synchronize()
            number = 0 if self._exchanged is None else int(self._exchanged)
            self._exchanged = latest.to("cpu", non_blocking=True)  # into pinned memory
            if self._arrived:
                self._arrived.record()
        return signal.Signals(number) if number else None
