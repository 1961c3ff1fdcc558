"""The cost of a recipe: parameters, FLOPs, memory, and the expected time on this machine.

Parameters, FLOPs and memory are counted on the meta device: nothing is allocated. Memory is what a training must hold at the
end of a forward pass: weights, gradients, Adam's two averages, the averaged weights and the guide, and what the backward pass
needs of each layer, all in float32; an allocator takes some more. The time is that of a few steps of the networks on random
inputs, in the recipe's batches unless one of them takes longer than 48 s, without data, evaluations and pictures.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import VQModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from tinyldm.config.networks import UNetConfig, VQConfig
from tinyldm.config.parsing import parse
from tinyldm.config.schema import FirstStageConfig, TrainClassifier, TrainConfig, TrainDDPM, Training, TrainLDM, TrainVQ
from tinyldm.data.batch import Condition
from tinyldm.data.columns import LabelColumn
from tinyldm.data.sources import open_part, open_sources
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import FirstStage, load_first_stage
from tinyldm.first_stage.latent_store import ENCODED_AT_ONCE
from tinyldm.first_stage.networks import Autoencoder, Discriminator, make_vq
from tinyldm.models.classifier import make_classifier
from tinyldm.models.conditioning import clean
from tinyldm.models.denoiser import make_denoiser, switch_on
from tinyldm.training import power_ema
from tinyldm.training.accelerator import default_device, hardware
from tinyldm.training.announce import first_stage_recipe
from tinyldm.training.model_card import duration

MEASURED_SECONDS = 8.0  # per network; batches are doubled meanwhile
LONGEST_STEP = 6  # times MEASURED_SECONDS: the limit for the recipe's own batch afterwards
# TFLOP/s that small networks reach, in the mixed precision of a training and in the float32 of encoding. Estimates, no
# measurements: a quarter to a tenth of what the vendors state.
CARDS = {"T4": (5.0, 4.0), "RTX 4090": (27.0, 40.0), "H100": (90.0, 55.0)}
HOST_SECONDS = 5e-3  # that Python needs for a step, however fast the card is; an estimate, too
STATE_BYTES = 4 * 5  # a trained value: itself, its gradient, Adam's two averages, its average


@dataclass
class Part:
    """A network of a recipe.

    Attributes:
        make: builds it on the current default device.
        shape: the shape of one input, without the batch.
        denoises: whether it is a denoiser, which also gets timesteps and a condition.
        labels: number of label columns.
        small: whether it is a super-resolution stage, which also gets smaller images.
        trained: whether it is trained; otherwise it only sees each image once.
        copies: further copies of its weights that a training keeps: power-function averages, a guide.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    denoises: bool = False
    labels: int = 0
    small: bool = False
    trained: bool = True
    copies: int = 0

    def inputs(self, batch: int, device: torch.device) -> tuple[Any, ...]:
        """Random inputs."""
        images = torch.randn(batch, *self.shape, device=device)
        if not self.denoises:
            return (images,)
        times, labels = (torch.zeros(*shape, dtype=torch.long, device=device) for shape in ((batch,), (batch, self.labels)))
        return images, times, clean(Condition(labels if self.labels else None, low_resolution=images if self.small else None))


@dataclass
class Cost:
    """What one image costs in a network.

    Attributes:
        forward, step: FLOPs (a multiplication and an addition are two), forward alone and with backward.
        activations: bytes that the backward pass needs.
    """

    parameters: int
    forward: float
    step: float
    activations: float


def parts(config: Training, notes: list[str]) -> Iterator[Part]:
    """The networks of a recipe."""
    side, channels = config.data.resolution, config.data.channels
    if isinstance(config, TrainVQ):
        yield Part("VQModel", lambda: Autoencoder(make_vq(config)), (channels, side, side))
        if config.loss.adversarial_weight:
            size = config.loss.discriminator_channels, config.loss.discriminator_layers, channels
            yield Part("discriminator, an image or reconstruction", lambda: Discriminator(*size), (channels, side, side))
        if config.loss.perceptual == "lpips":
            notes.append("LPIPS is not counted: a VGG16 on each image and on its reconstruction")
        return
    assert isinstance(config, TrainLDM | TrainDDPM | TrainClassifier)
    unet = config.unet
    shape: tuple[int, int, int] = (channels, side, side)
    labels: Sequence[LabelColumn] = ()
    if not isinstance(config, TrainDDPM) and config.first_stage.path is not None:
        stage = first_stage(config.first_stage, notes)
        shape = (stage.channels, stage.check_resolution(side), stage.check_resolution(side))
        yield Part("first stage, encoding", lambda: _Encoder(copy.deepcopy(stage.model)), (channels, side, side), trained=False)
    if config.data.labels:
        try:
            labels = open_part(config.data, config.data.split)[0].labels
        except UserError:
            labels = [LabelColumn(name, [str(number) for number in range(10)]) for name in config.data.labels]
            notes.append(f"the labels of {config.data.name} cannot be read here: 10 values of each are counted")
    if isinstance(config, TrainClassifier):
        yield Part("classifier", lambda: _Classifier(unet, shape, labels), shape, denoises=True)
        return
    learned, small = config.scheduler.learns_variance, config.condition.low_resolution
    stage_of = (small, shape[0], config.condition.augmentation) if small else None

    def denoiser() -> nn.Module:
        network = make_denoiser(unet, shape[1], shape[0], labels, learned, low_resolution=stage_of)
        switch_on(network, config.train)
        return network

    copies = (config.guide_step(1) > 0) + (len(power_ema.WIDTHS) if config.train.ema_snapshot_steps else 0)
    yield Part("UNet2DModel", denoiser, shape, denoises=True, labels=len(labels), small=bool(small), copies=copies)


def first_stage(config: FirstStageConfig, notes: list[str]) -> FirstStage:
    """The recipe's first stage. If it is not here: an untrained one of its recipe, or the VQ-f4 of latent diffusion."""
    named = config.path
    try:
        return load_first_stage(config)
    except UserError:
        if named is not None and (recipe := first_stage_recipe(named)):
            notes.append(f"{named} is not trained yet: its size is that of configs/{recipe.name}")
            return _untrained(make_vq(parse(TrainVQ, "", ["--config", str(recipe)])))
        notes.append(f"first stage {named} cannot be loaded here: the VQ-f4 of latent diffusion stands in for it")
        return _untrained(VQModel(**VQConfig().arguments()))


def _untrained(model: VQModel) -> FirstStage:
    # Untrained codes are nearly equal: in float16 most latents would change their code, and FirstStage.to_half would be slow.
    nn.init.normal_(model.quantize.embedding.weight)
    return FirstStage(model)


class _Encoder(nn.Module):
    """The work done once per image. Its time includes the search for the nearest codes; its FLOPs do not."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stage = FirstStage(self.model)
        latents = stage.encode(images)
        return latents if latents.is_meta else stage.to_half(latents)


class _Classifier(nn.Module):
    """All logits of a classifier in one tensor."""

    def __init__(self, unet: UNetConfig, shape: tuple[int, int, int], labels: Sequence[LabelColumn]):
        super().__init__()
        self.classifier = make_classifier(unet, shape[1], shape[0], labels, {})

    def forward(self, images: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        return torch.cat(list(self.classifier(images, times).values()), 1)


def output(network: nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor:
    """The output tensor of a network, which may return a tuple or an object with `.sample`."""
    returned = network(*inputs)
    returned = returned[0] if isinstance(returned, tuple) else returned
    return returned if isinstance(returned, torch.Tensor) else returned.sample


def count(part: Part) -> Cost:
    """Run one step of one image on the meta device."""
    meta = torch.device("meta")
    with meta:
        network = part.make().to(meta)
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {weight.untyped_storage()._cdata for weight in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # a reference, so that its address is not reused
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = output(network, part.inputs(1, meta))
        forward = counter.get_total_flops()
        if part.trained:
            result.mean().backward()
    parameters = sum(weight.numel() for weight in network.parameters())
    return Cost(parameters, forward, counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values()))


def held_bytes(part: Part, cost: Cost, batch_size: int) -> float:
    """Bytes that a training step of a batch must hold for a network."""
    if not part.trained:
        return cost.parameters * 4
    return cost.parameters * (STATE_BYTES + 4 * part.copies) + batch_size * cost.activations


def measure(part: Part, cost: Cost, train: TrainConfig, device: torch.device, notes: list[str]) -> float:
    """Images per second in the recipe's batches, as in a training but without train.compile, which takes longer than the
    measurement. A CPU is measured in float32: mixed precision would take hours there.

    Args:
        cost: from `count`.
        notes: gets a line if the batch is too slow to measure, or does not fit into the device's memory.

    Raises:
        UserError: if not even one image fits.
    """
    network, most = part.make().to(device), train.batch_size if part.trained else min(train.batch_size, ENCODED_AT_ONCE)
    if train.channels_last:
        network.to(memory_format=torch.channels_last)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(train.mixed_precision)
    # Latents are encoded in float32: stored latents must not depend on how a denoiser is trained.
    precision = torch.autocast(device.type, half, enabled=part.trained and half is not None and device.type != "cpu")
    optimizer = torch.optim.AdamW(network.parameters(), fused=True) if part.trained else None

    def seconds(batch: int) -> float:
        if device.type == "cpu" and held_bytes(part, cost, batch) > psutil.virtual_memory().available:
            raise torch.OutOfMemoryError  # else the system kills the process
        inputs, since = part.inputs(batch, device), time.perf_counter()
        with precision:
            result = output(network, inputs)
        if optimizer:
            result.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        result.flatten()[0].item()  # waits for the device
        return time.perf_counter() - since

    # Batches double while there is time, so that a very slow network shows soon; then the recipe's own batch follows.
    batch, larger, took, started = 0, 1, 0.0, time.perf_counter()
    while batch < most:
        tries = 2
        if batch and time.perf_counter() - started > MEASURED_SECONDS / 2:
            larger, tries = most, min(2, int(LONGEST_STEP * MEASURED_SECONDS * batch / (took * most)))
            if not tries:
                notes.append(f"the {part.name} was timed with {batch} images at once; {most} would take too long")
                break
        try:
            took, batch = min(seconds(larger) for _ in range(tries)), larger
        except torch.OutOfMemoryError as error:
            if not batch:
                raise UserError(f"one image through the {part.name} does not fit into this device's memory") from error
            notes.append(
                f"{larger} images at once through the {part.name} do not fit into this device's memory; smaller "
                "train.batch_size with more train.gradient_accumulation_steps, or train.gradient_checkpointing true, may"
            )
            break
        larger = min(2 * batch, most)
    while time.perf_counter() - started < MEASURED_SECONDS:
        took = min(took, seconds(batch))
    return batch / took


def images_an_epoch(config: Training) -> int | None:
    """Number of training images; None if counting them would mean reading a stream."""
    try:
        source = open_sources(config.data, config.seed)[0]
    except UserError:
        return None
    if not source.streamed or config.data.name in ("toyfaces", "digits") or Path(config.data.name).expanduser().exists():
        return source.length()
    return source.known_length()


def table(config: Training) -> str:
    """The table, and the expected time on this machine."""
    device, batch = torch.device(default_device()), config.train.batch_size
    notes = ["timed without train.compile, which makes a GPU faster"] if config.train.compile else []
    if device.type == "cpu" and config.train.mixed_precision != "no":
        notes.append(f"timed in float32: train.mixed_precision {config.train.mixed_precision} is for a GPU")
    rows = [("", "parameters", "forward, an image", "forward and backward", f"memory, {batch} images")]
    speeds, work = {}, []
    for part in (bar := tqdm(list(parts(config, notes)), "timing", leave=False, unit="network")):
        bar.set_postfix_str(part.name)
        cost = count(part)
        held = held_bytes(part, cost, batch)
        step = f"{cost.step / 1e9:,.2f} GFLOP" if part.trained else "-"
        memory = f"{held / 2**30:,.2f} GiB" if part.trained else f"{held / 2**30:,.2f} GiB of weights"
        rows.append((part.name, f"{cost.parameters:,}", f"{cost.forward / 1e9:,.2f} GFLOP", step, memory))
        work.append((part, cost))
        speeds[part.name] = measure(part, cost, config.train, device, notes), part.trained
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    # A step runs through each trained network, the discriminator twice: for an image and for its reconstruction.
    seconds = sum((2 if "discriminator" in name else 1) / speed for name, (speed, trained) in speeds.items() if trained)
    images = images_an_epoch(config)
    if config.train.max_steps is not None:
        per_step = batch * config.train.gradient_accumulation_steps
        total, length = config.train.max_steps * per_step, f"{config.train.max_steps:,} steps of {per_step} images"
    elif config.train.num_epochs is not None and images is not None:
        total, length = round(config.train.num_epochs * images), f"{config.train.num_epochs:g} epochs of {images:,} images"
    else:
        total, length = 1000, "1,000 images"
    lines += ["", f"{length} will take {duration(total * seconds)} here ({hardware(device)}): {1 / seconds:,.1f} images/s."]
    if images:
        lines[-1] += f" An epoch of {images:,} images: {duration(images * seconds)}."
    views = 2 if config.data.random_flip else 1
    for speed, trained in speeds.values():
        if not trained:
            many = images or 1000
            lines.append(
                f"Before that {duration(many * views / speed)}, once, for encoding {many:,} images"
                f"{' and their mirror images' if views == 2 else ''} ({speed:,.1f}/s)."
            )
    cards = forecast(work, total, (images or 1000) * views, total / batch)
    lines.append(f"On other cards, by FLOPs and at least {1000 * HOST_SECONDS:g} ms a step: {cards}.")
    return "\n".join([*lines, *(f"Note: {note}." for note in notes)])


def forecast(work: Sequence[tuple[Part, Cost]], trained: int, encoded: int, steps: float) -> str:
    """How long a recipe would take on other cards.

    Args:
        trained: images that the trained networks see, in `steps` batches.
        encoded: images that a first stage encodes.
    """

    def seconds(card: str) -> float:
        training, encoding = (speed * 1e12 for speed in CARDS[card])
        before = sum(encoded * cost.forward / encoding for part, cost in work if not part.trained)
        return before + max(steps * HOST_SECONDS, sum(trained * cost.step / training for part, cost in work if part.trained))

    return ", ".join(f"{card} {duration(seconds(card))}" for card in CARDS)
