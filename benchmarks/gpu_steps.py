"""The steps of benchmarks.gpu that train nothing: data, rounding, waits, and the time of encoding and of a training step."""

import contextlib
import copy
import importlib
import itertools
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import latents
from benchmarks.gpu_pack import PARTS, encoded, squares_of, write
from benchmarks.gpu_results import Results
from benchmarks.gpu_setting import Setting, device, difference, flops, gib, in_a_row, milliseconds, reset, wait
from benchmarks.gpu_trainings import headline, precision, resume, train_faces, train_pixels
from benchmarks.measure import ROOT, machine
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM, TrainVQ
from tinyldm.diffusion.latent_task import LatentTask
from tinyldm.diffusion.objective import diffusion_loss
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.first_stage.latent_store import ENCODED_AT_ONCE
from tinyldm.first_stage.networks import make_vq
from tinyldm.models.denoiser import make_denoiser
from tinyldm.process.processes import make_process
from tinyldm.randomness import Draw
from tinyldm.training.accelerator import cores, make_accelerator
from tinyldm.training.trainer import run_training

LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}

# -------------------------------------------------------------------------------------------------- the machine, the data


def env(setting: Setting, results: Results) -> None:
    """The machine, whether every module can be imported there, and how fast it multiplies and copies."""
    results.machine(machine())
    for file in sorted((ROOT / "tinyldm").rglob("*.py"))[:: setting.sized(1, 20)]:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        with results.attempt(f"import {name}"):
            importlib.import_module(name)
    side = setting.sized(8192, 256)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    one, other = (torch.randn(side, side, device=device(), dtype=dtype) for _ in range(2))
    multiplied = milliseconds(lambda: one @ other, setting.sized(20, 1))[0]
    source = torch.empty(setting.sized(2**30, 2**20), device=device(), dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), setting.sized(20, 1))[0]
    results.tell("ceilings", f"product of two {side} x {side} matrices, {dtype}", **{"TFLOP/s": 2 * side**3 / multiplied / 1e9})
    results.tell("ceilings", "copy on the device, bytes read and written", **{"GB/s": 2 * len(source) / copied / 1e6})


def faces(setting: Setting, results: Results) -> None:
    """Faces at the side of configs/celebahq256.yaml, and first stages with random weights."""
    parts = {"train": setting.sized(2048, 16), "validation": setting.sized(512, 8)}
    if not setting.small_images.exists():
        latents.drawn_faces(setting.small_images, *parts.values(), setting.sized(64, 32))
    tiny = TrainVQ(output_dir="", vq=latents.SMALL_VQ)
    if not setting.small_stage.exists():
        recipe = parse(TrainVQ, "", ["--config", str(ROOT / "configs/faces64-vq.yaml")])
        save_stage(tiny if setting.tiny else recipe, setting.small_stage)
    save_stage(tiny if setting.tiny else TrainVQ(output_dir=""), setting.large_stage)

    def enlarged(square: np.ndarray) -> bytes:
        size = (setting.side, setting.side)
        return encoded(np.asarray(Image.fromarray(square).resize(size, Image.Resampling.BICUBIC)), "PNG")

    for number, part in enumerate(PARTS):
        squares = itertools.islice(squares_of(str(setting.small_images), number, 64), parts[part])
        with ThreadPoolExecutor(cores()) as pool:
            count = write(setting.large_images, part, pool.map(enlarged, squares))
        photographs = setting.small_images.parent == setting.packed
        results.tell("images to encode", part, images=count, px=setting.side, photographs=photographs)


def save_stage(config: TrainVQ, folder: Path) -> None:
    """Save a VQModel with random weights, its codes spread over the latents of noise.

    Codes at their first values lie so close together that float16 takes most latents to another one.
    """
    torch.manual_seed(0)
    vq = make_vq(config).eval()
    table = vq.quantize.embedding.weight
    with torch.no_grad():
        z = vq.encode(torch.rand(2, 3, 64, 64) * 2 - 1).latents
        table.copy_(z.mean((0, 2, 3)) + z.std((0, 2, 3)) * torch.randn_like(table))
    vq.save_pretrained(folder / "vqvae")


# ------------------------------------------------------------------------------------------------------ rounding and waits


def units(setting: Setting, results: Results) -> None:
    """How the device rounds, and where the training loop waits for it."""
    with results.attempt("rounding"):
        rounding(setting, results)
    with results.attempt("codes"):
        codes(setting, results)
    if torch.cuda.is_available():
        with results.attempt("waits"):
            loop_waits(setting, results)


def rounding(setting: Setting, results: Results) -> None:
    """Output and gradient of the denoiser in other precisions and layouts against float32."""
    where, config = device(), setting.recipe()
    torch.manual_seed(0)
    batch, side = setting.sized(32, 4), setting.side // 4
    network = make_denoiser(config.unet, side, 3).to(where)
    x, times = torch.randn(batch, 3, side, side, device=where), torch.randint(0, 1000, (batch,), device=where)

    def output_and_gradient(other: torch.nn.Module, half: bool, tf32: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        other.zero_grad()
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32),
            torch.autocast(where.type, torch.bfloat16, enabled=half),
        ):
            y = other(x, times).float()
        y.square().mean().backward()
        return y.detach(), torch.cat([weight.grad.flatten() for weight in other.parameters()])

    def compare(name: str, found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
        differences = {key: difference(*pair) for key, *pair in zip(("output", "gradient"), found, expected, strict=True)}
        equal = all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        results.tell("relative difference of the denoiser", name, **differences, **{"bit for bit": equal})

    exact = output_and_gradient(network, half=False, tf32=False)
    compare("TF32 against float32", output_and_gradient(network, half=False), exact)
    half = output_and_gradient(network, half=True)
    compare("bf16 against float32", half, exact)
    compare("bf16 again", output_and_gradient(network, half=True), half)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    compare("bf16, channels last, against float32", output_and_gradient(last, half=True), exact)
    if not setting.tiny:
        last.compile()
        compare("bf16, channels last, compiled, against float32", output_and_gradient(last, half=True), exact)


def codes(setting: Setting, results: Results) -> None:
    """Codes and latents of the VQ-f4 against float64, the decoder's own search, and other precisions."""
    stage, where = setting.load_large_stage(device()), device()
    torch.manual_seed(0)
    images = torch.rand(setting.sized(16, 2), 3, setting.side, setting.side, device=where) * 2 - 1
    exact = stage.encode(images)
    found = stage.codes(exact)
    table = stage.model.quantize.embedding.weight.double()
    vectors = exact.permute(0, 2, 3, 1).reshape(-1, exact.shape[1]).double()
    nearest = [torch.cdist(part, table, compute_mode="donot_use_mm_for_euclid_dist").argmin(1) for part in vectors.split(4096)]
    decoders = stage.model.quantize(exact[:4])[2][2]

    def share(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one.flatten() != other.flatten()).double().mean())

    title = "first stage: share of codes that differ"
    results.tell(title, "from float64", codes=share(found, torch.cat(nearest)))
    results.tell(title, "from those of the decoder", codes=share(found[:4], decoders))
    results.tell(title, "in stored latents (FirstStage.to_half)", codes=share(stage.codes(stage.to_half(exact).float()), found))
    results.tell(title, "in plain float16", codes=share(stage.codes(exact.half().float()), found))
    for name, half in (("TF32", None), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        with torch.no_grad(), torch.autocast(where.type, half, enabled=half is not None):
            z = stage.model.encode(images).latents.float()
        figures = {"codes": share(stage.codes(z), found), "latents, relative difference": difference(z, exact)}
        results.tell(title, f"encoded in {name}", **figures)


def loop_waits(setting: Setting, results: Results) -> None:
    """A short training of a small network, with each place where a step of its loop waits for the device."""
    folder = setting.work / "waits"
    folder.mkdir(exist_ok=True)
    tiny = Setting("", folder, folder, folder, True)
    faces(tiny, Results(folder, "waits"))
    args = tiny.celebahq256("run", "--train.max_steps", 7, "--train.mixed_precision", "bf16", "--overwrite", "true")
    task = run_training(parse(TrainLDM, "", args), Watched).task
    for where, times in [("all", sum(task.found.values())), *task.found.items()]:
        results.tell("where a step of the loop waits for the device", where, **{"times a step": times})


class Watched(LatentTask):
    """LatentTask that notes where the loop waits for the device between the ends of steps 4 and 5."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.found, self.watching = Counter[str](), contextlib.ExitStack()

    def after_step(self, step: int, *args: Any) -> None:
        """See training.task.Task."""
        self.watching.close()
        super().after_step(step, *args)
        if step == 4:
            self.watching.enter_context(waits(self.found))


@contextlib.contextmanager
def waits(found: Counter[str]) -> Iterator[None]:
    """Count the operations that wait for the device by their place. torch does not tell of copies from pageable memory."""

    def note(message: object, *_: object) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            found[place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # called where the warning arises, so that the way there can be seen
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def place() -> str:
    """The innermost line of this project outside benchmarks/, and the line of a library that it has called."""
    frame = sys._getframe(2)
    while Path(frame.f_code.co_filename).name == "warnings.py" and frame.f_back:
        frame = frame.f_back
    inner, project = frame, ROOT / "tinyldm"
    while frame.f_back and project not in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
    return line if frame is inner else f"{line}, in {Path(inner.f_code.co_filename).name}:{inner.f_lineno}"


# ---------------------------------------------------------------------------------------------------------------- encoding


def encode(setting: Setting, results: Results) -> None:
    """Views a second of the VQ-f4: as the first pass encodes them, and the encoder alone in other ways."""
    where = device()
    stage = setting.load_large_stage(where)
    one = torch.rand(1, 3, setting.side, setting.side, device=where)
    work = flops(lambda: stage.encode(one))

    def told(name: str, batch: int, run: Callable[[], object]) -> None:
        reset()
        took = milliseconds(run, setting.sized(6, 1), setting.sized(2, 0))[0]
        figures = {"views/s": 1000 * batch / took, "TFLOP/s": batch * work / took / 1e9, "GiB": gib()}
        results.tell("encoding", f"{name}, batch {batch}", **figures)

    batch = setting.sized(ENCODED_AT_ONCE, 2)
    images = (torch.rand(batch, 3, setting.side, setting.side, device=where) * 2 - 1).to(memory_format=LAYOUTS[True])
    stage.model.to(memory_format=LAYOUTS[True])
    told("as the first pass does: FirstStage.encode and to_half", batch, lambda: stage.to_half(stage.encode(images)))
    told("FirstStage.encode", batch, lambda: stage.encode(images))
    torch.backends.cudnn.benchmark = True
    for name, wide, half, last, compiled in (
        ("TF32", 16, None, False, False),
        ("TF32, channels last", 16, None, True, False),
        ("fp16", 16, torch.float16, False, False),
        ("fp16, channels last", 16, torch.float16, True, False),
        ("fp16, channels last", 32, torch.float16, True, False),
        ("bf16, channels last", 32, torch.bfloat16, True, False),
        ("fp16, channels last, compiled", 32, torch.float16, True, True),
    ):
        if setting.tiny and (half is not None or compiled):
            continue
        with results.attempt(name):
            batch = setting.sized(wide, 2)
            told(f"encoder alone, {name}", batch, encoder(stage, setting, batch, half, last, compiled))


def encoder(
    stage: FirstStage, setting: Setting, batch: int, half: torch.dtype | None, last: bool, compiled: bool
) -> Callable[[], object]:
    """Encodes a batch of random images in a precision and a layout."""
    where, network = device(), stage.model.to(memory_format=LAYOUTS[last])
    images = torch.rand(batch, 3, setting.side, setting.side, device=where) * 2 - 1
    images = images.to(memory_format=LAYOUTS[last])
    run = torch.compile(network.encode) if compiled else network.encode

    def work() -> None:
        with torch.no_grad(), torch.autocast(where.type, half, enabled=half is not None):
            run(images, return_dict=False)

    return work


# ----------------------------------------------------------------------------------------------------------- training steps


class Variant(NamedTuple):
    """A way to take a training step.

    Attributes:
        compiled: the mode of torch.compile. None: not compiled.
        last: with channels last.
        tuned: with torch.backends.cudnn.benchmark, as the trainer has it.
    """

    batch: int
    compiled: str | None
    last: bool = True
    tuned: bool = True


VARIANTS = {
    "batch 64, contiguous": Variant(64, None, last=False),
    "batch 64": Variant(64, None),
    "batch 64, compiled": Variant(64, "default"),
    "batch 64, compiled, reduce-overhead": Variant(64, "reduce-overhead"),
    "batch 256, compiled": Variant(256, "default"),
    "batch 256, compiled, not tuned": Variant(256, "default", tuned=False),
}


def compile_ahead(setting: Setting, results: Results) -> None:
    """Compile a variant into the cache on the disk, beside others, so that `steps` need not wait."""
    step, _ = training_step(setting, VARIANTS[setting.argument])
    for _ in range(3):
        step()
    wait()


def steps(setting: Setting, results: Results) -> None:
    """The time of a training step of configs/celebahq256.yaml on random latents, with all that the trainer does in it."""
    name, variant = setting.argument, VARIANTS[setting.argument]
    step, work = training_step(setting, variant)
    torch.backends.cudnn.benchmark = variant.tuned
    times, batch = setting.sized(30, 1), setting.sized(variant.batch, 2)
    title = f"training step, precision {setting.recipe().train.mixed_precision}"
    on_device, on_host = milliseconds(step, times, setting.sized(5, 1))
    reset()
    each = in_a_row(step, 2 * times)
    figures = {"ms a step": each, "images/s": 1000 * batch / each, "TFLOP/s": batch * work / each / 1e9}
    results.tell(title, name, **figures, **{"by itself, ms": on_device, "host, ms": on_host, "GiB": gib()})
    if torch.cuda.is_available():
        with results.attempt("kernels"):
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                step()
                wait()
            events = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
            kernels = [event for event in events if not event.is_user_annotation]
            busy = sum(event.time_range.elapsed_us() for event in kernels) / 1000
            results.tell(title, name, **{"kernels": len(kernels), "kernels, ms": busy})
            print(seen.key_averages().table(sort_by="self_device_time_total", row_limit=25))


def training_step(setting: Setting, variant: Variant) -> tuple[Callable[[], None], float]:
    """A function that takes a training step as training.trainer.Trainer does, and its FLOPs for an image."""
    where, config = device(), setting.recipe()
    accelerator = make_accelerator(config.train, str(setting.work))
    side, batch = setting.side // 4, setting.sized(variant.batch, 2)
    process = make_process(config.process, config.scheduler)
    network = make_denoiser(config.unet, side, 3).to(where, memory_format=LAYOUTS[variant.last])
    x0 = torch.randn(batch, 3, side, side, device=where)
    one = torch.zeros(1, dtype=torch.long, device=where)
    work = flops(lambda: network(x0[:1], one).mean().backward())
    if variant.compiled:
        network.compile(mode=variant.compiled)
    network, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), lr=4e-4, fused=True))
    weights = list(network.parameters())
    ema = EMAModel(weights, decay=config.train.ema_decay, foreach=True)
    ema.to(where)
    optimizer.zero_grad()

    def step() -> None:
        draw = Draw(0, ema.optimization_step, 0, device=where)
        noise, times = draw.normal(x0.shape), process.draw_times(batch, draw)
        loss = diffusion_loss(network, process, x0, noise, times, config.diffusion.gamma("vp")).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(weights)

    return step, work


# ---------------------------------------------------------------------------------------------------------------- dispatch

STEPS: dict[str, Callable[[Setting, Results], None]] = {
    step.__name__: step
    for step in (env, faces, units, compile_ahead, steps, encode, headline, resume, precision, train_faces, train_pixels)
}


def main(step: str, argument: str, out: str, work: str, packed: str, tiny: bool) -> None:
    """Run one step in this process. benchmarks.gpu calls it so."""
    results = Results(Path(out), f"{step} {argument}".strip())
    with results.attempt(step):
        STEPS[step](Setting(argument, Path(out), Path(work), Path(packed), tiny), results)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
