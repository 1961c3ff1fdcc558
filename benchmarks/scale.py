"""Estimates a night of training configs/celebahq256.yaml on larger machines, from measured parts and assumed machines.

Counted: FLOPs of first stage and denoiser. Measured on the benchmarks' machine: decoding and resizing on a core, and the speed
of the loop relative to bare steps. Assumed, since no such machine was available: everything in MACHINES, and the speeds of
cards in tinyldm/costs.py.
"""

from dataclasses import dataclass
from typing import Any

from tinyldm.costs import CARDS

IMAGES, VIEWS, EPOCHS, BATCH = 28_000, 2, 150, 64  # configs/celebahq256.yaml
NIGHT = 10 * 3600  # seconds
FILE = 100e3  # bytes of an image of 256 px; assumed


@dataclass
class Machine:
    """All values are assumed: typical configurations.

    Attributes:
        card: a name in CARDS.
        network: bytes per second from the Hub.
        link: bytes per second between GPUs.
    """

    name: str
    card: str
    gpus: int
    cores: int
    network: float
    link: float


MACHINES = [
    Machine("one consumer GPU (RTX 4090)", "RTX 4090", 1, 16, 125e6, 0),
    Machine("8 GPUs (H100)", "H100", 8, 96, 1.25e9, 200e9),
    Machine("a cluster of 64 (H100)", "H100", 64, 768, 10e9, 25e9),
]
RELIEF = {
    "network": "with `data.streaming false` each rank only reads its share, not the whole stream",
    "decoding": "raise `data.num_workers` to the number of cores, or store the images at 256 px",
    "first stage": "without `data.random_flip` it has half the work; with more GPUs, each builds its share of the shards",
}


def digit(value: float) -> str:
    """One significant digit: more would suggest accuracy that is not there."""
    return f"{float(f'{value:.1g}'):,.15g}"


def time(seconds: float) -> str:
    """A duration in h, min or s, with one significant digit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{digit(seconds / size)} {unit}"
    return f"{digit(seconds)} s"


def scale(costs: dict[str, Any] | None, data: dict[str, Any] | None, loop: dict[str, Any] | None) -> str | None:
    """Two tables and conclusions; None if a part was not measured."""
    if not (costs and data and loop and "celebahq256" in costs["recipes"]):
        return None
    parts = costs["recipes"]["celebahq256"]["parts"]
    encoder, denoiser = parts["first stage, encoding"], parts["UNet2DModel"]
    decoding = next(others for name, others in data["speed"].items() if "to 256 px" in name)["a bare loop of Pillow"]["ours"]
    lines = [
        f"Counted: {encoder['forward'] / 1e9:.0f} GFLOP to encode an image, {denoiser['step'] / 1e9:.1f} for a "
        f"training step on it. Measured here: {decoding:.0f} images/s per core for decoding and resizing to 256 px.",
        "",
        f"**Assumed**: an image file of {FILE / 1e3:.0f} kB; the speeds of small networks on these cards, which are guesses "
        f"(`CARDS` in `tinyldm/costs.py`); the same loop overhead per step as here, {1 - loop['shares']['defaults']:.1%}; and "
        "these machines:",
        "",
        row("machine", "GPUs", "first stage, denoiser, TFLOP/s", "CPU cores", "network, MB/s", "between GPUs, GB/s"),
        row(*["---"] * 6),
    ]
    for m in MACHINES:
        training, encoding = CARDS[m.card]
        lines.append(
            row(m.name, m.gpus, f"{encoding:.0f}, {training:.0f}", m.cores, f"{m.network / 1e6:,.0f}", f"{m.link / 1e9:.0f}")
        )
    head = [
        "machine",
        "network, images/s",
        "decoding",
        f"first stage, {VIEWS} views",
        f"first pass over {IMAGES:,} images, bottleneck",
    ]
    head += ["denoiser, images/s", f"{EPOCHS} epochs", f"epochs in {time(NIGHT)}"]
    lines += ["", row(*head), row(*["---"] * len(head))]
    limits = {}
    for m in MACHINES:
        training, encoding = (1e12 * speed for speed in CARDS[m.card])
        rates = {
            "network": m.network / FILE / m.gpus,  # each rank reads the whole stream
            "decoding": m.cores * decoding,
            "first stage": m.gpus * encoding / encoder["forward"] / VIEWS,
        }
        limits[m.name] = least = min(rates, key=rates.__getitem__)
        first = IMAGES / rates[least]
        # Seconds per step of BATCH images per GPU.
        compute = BATCH * denoiser["step"] / training / loop["shares"]["defaults"]
        # All-reduce of float32 gradients in a ring, not overlapped with the backward pass.
        exchange = 2 * 4 * denoiser["parameters"] * (1 - 1 / m.gpus) / m.link if m.link else 0.0
        speed = m.gpus * BATCH / (compute + exchange)
        after = [digit(speed), time(IMAGES * EPOCHS / speed), digit((NIGHT - first) * speed / IMAGES)]
        lines.append(row(m.name, *(digit(rate) for rate in rates.values()), f"{time(first)}, {least}", *after))
    kept = VIEWS * 2 * 3 * 64 * 64
    lines += [
        "",
        *(f"- {name}: the first pass is limited by the {least}. Faster: {RELIEF[least]}." for name, least in limits.items()),
        f"- After it the denoiser is the bottleneck: a latent takes {kept / 1e3:.0f} kB with its mirror image, and all "
        f"latents take {IMAGES * kept / 1e9:.1f} GB, which fits in memory. This recipe already uses `train.compile` and bf16; "
        "only a smaller network or more GPUs are faster.",
        f"- With N GPUs the batch is N x {BATCH} here, so it is a different recipe. With {BATCH} images in total, each of 64 "
        "GPUs has one image, and launching kernels and exchanging gradients take longer than the step. Then it is better to "
        "train several runs in parallel.",
    ]
    return "\n".join(lines)


def row(*cells: object) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"
