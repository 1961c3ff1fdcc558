"""What docs/performance.md claims, each with what it leaves out, from the files in docs/performance/."""

from collections.abc import Callable

from benchmarks.page_tables import Result, overtaken, table

Cells = list[str]  # what, against what, ratio, aim, what it leaves out
HEAD = ["what, against what", "ratio", "aim", "what the ratio leaves out", "measured by"]


def aim(value: float, least: float) -> str:
    """Whether a ratio reached its aim, and by how much it missed it."""
    return f"{least:g}: met" if value >= least else f"{least:g}: missed by {least - value:.2g}"


def spread(found: dict[str, float]) -> str:
    """The median of the pairs, with the smallest and the largest."""
    return f"{found['median']:.3g} ({found['min']:.3g} to {found['max']:.3g})"


def both(r: Result, other: str) -> tuple[str, list[float]]:
    """The ratios of reading cartoon faces and photographs against another reader: as text, and the medians."""
    found = {name.split(",")[0]: others[other] for name, others in r["speed"].items()}
    return "; ".join(f"{name} {spread(pair)}" for name, pair in found.items()), [pair["median"] for pair in found.values()]


def latents(r: Result) -> list[Cells]:
    """Stored latents, with the pass that makes them: 2 n images are trained on in n epochs of images and mirror images."""
    ours, other = 1 / r["kept"]["ours"], 1 / r["kept"]["other"]  # seconds per image; the difference is the encoding
    whole = {n: n * other / (2 * (other - ours) + n * ours) for n in (1, 10, 150)}
    epochs = ", ".join(f"{ratio:.2g} over {n}" for n, ratio in whole.items())
    left = f"the pass that encodes. With it a run is this many times as fast: {epochs} epochs"
    cells = [f"training on stored latents, {r['side']} px", "encoding at each step", spread(r["kept"])]
    return [[*cells, aim(r["kept"]["median"], 10), left]]


def loop(r: Result) -> list[Cells]:
    """The loop at the default intervals; the recipe's are shorter."""
    share, recipe = r["shares"]["defaults"], r["shares"]["faces64"]
    left = f"the recipe's shorter intervals: {recipe:.3f} with `faces64.yaml`, below the aim"
    left = left if recipe < 0.97 else f"nothing; {recipe:.3f} with the shorter intervals of `faces64.yaml`"
    cells = ["the training loop with logs, averages, evaluations, checkpoints", "bare steps of the network", f"{share:.3f}"]
    return [[*cells, aim(share, 0.97), left]]


def data(r: Result) -> list[Cells]:
    """Reading images against three other readers."""
    rows = []
    for other, least, left in (
        ("a bare loop of Pillow", 0.9, "profiles, EXIF rotation and other formats, which Pillow decodes for us too"),
        ("a bare loop of torchvision", None, "that loop reads plain RGB files only"),
        ("diffusers' example", None, "the example makes floats, and resizes bilinearly, which is less work"),
    ):
        text, medians = both(r, other)
        rows.append(["reading JPEG images, one core", other, text, aim(min(medians), least) if least else "", left])
    return rows


def memory(r: Result) -> list[Cells]:
    """Memory of ten times as many images in one file."""
    few, many = (r["read"][name]["megabytes"] for name in ("few", "ten times as many, in one file"))
    met = f"at most 1.05: {'met' if many <= 1.05 * few else 'missed'}"
    left = f"the {few:,.0f} MB that a process has at first; files of one row group are read whole"
    return [["memory of a pass over ten times as many images in one file", "a tenth of them", f"{many / few:.3f}", met, left]]


def sampling(r: Result) -> list[Cells]:
    """sample.py against LDMPipeline."""
    found = r["speed"]
    left = f"guidance, GPUs, other batches; {found['same_pictures']:.0%} of the pictures are the same to the bit"
    cells = [f"`sample.py`, {r['steps']} steps of DDIM", "diffusers' LDMPipeline", spread(found), aim(found["median"], 1.25)]
    return [[*cells, left]]


def sooner(r: Result, space: str) -> str:
    """How much sooner our training reaches the example's last held-out loss."""
    _, end, when = overtaken(r, space)
    return f"{end / when:.1f}" if when else "never"


def encoding(training: Result, costs: Result) -> tuple[float, float | None]:
    """Seconds to encode the 12,000 images of faces64 and their mirror images, and the lead in latents with them counted."""
    seconds = 24_000 / costs["recipes"]["faces64"]["parts"]["first stage, encoding"]["images_a_second"]
    _, end, when = overtaken(training, "latents")
    return seconds, end / (when + seconds) if when else None


def training(r: Result, costs: Result) -> list[Cells]:
    """Our training and the example's at equal time: the loss, and what the Frechet distance of the same table says."""
    seconds, lead = encoding(r, costs)
    left = {"latents": f"encoding {seconds / 60:.1f} min before it" + (f": {lead:.1f} with that" if lead else "")}
    left["pixels"] = "speed: both train on as many images/s. Which setting helps was not tried"
    rows = []
    for space in ("latents", "pixels"):
        ours, other = (r["trainings"][f"{space}, {side}"]["fd"] for side in ("ours", "example"))
        verdict = "for" if ours < other else "against"
        against = f"The Frechet distance is {verdict} us: {ours:.1f}, the example's {other:.1f}. One training each"
        cells = [f"time to a held-out loss, in {space}", f"{r['minutes']:g} min of diffusers' example", sooner(r, space)]
        rows.append([*cells, "", f"{left[space]}. {against}"])
    return rows


def decoding(r: Result) -> list[Cells]:
    """Memory while latents are decoded."""
    whole, parts = r["megabytes"]["all at once"], r["megabytes"]["in parts"]
    left = f"the denoiser's memory. {parts:,.0f} MB against {whole:,.0f}"
    return [
        [f"memory of decoding {r['images']} images of {r['resolution']} px", "all at once", f"{parts / whole:.2f}", "", left]
    ]


def processes(r: Result) -> list[Cells]:
    """Two processes against one."""
    left = "several GPUs or machines: none was at hand"
    return [["two processes on two cores", "one on both", spread(r["two"]), "", left]]


def busy(r: Result) -> list[Cells]:
    """Training beside two busy programs, with and without our spin count."""
    ours, other = (r["neighbours"][name]["2"]["steps_a_second"] for name in ("set", "by itself"))
    left = "other threading libraries than GNU's OpenMP"
    return [["training beside two busy programs", "without our `GOMP_SPINCOUNT`", f"{ours / other:.1f}", "", left]]


def startup(r: Result) -> list[Cells]:
    """Seconds from launch to the first step."""
    times = {name: list(recipe["stages"].values())[-1] for name, recipe in r["recipes"].items()}
    verdict = "; ".join("met" if seconds < 15 else f"missed by {seconds - 15:.0f} s" for seconds in times.values())
    what = "; ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
    left = "the first pass over the data. A step of celebahq256 takes 11 s on these cores"
    return [["launch to the end of the first step", "", what, f"15 s: {verdict}", left]]


ROWS: dict[str, Callable[..., list[Cells]]] = {
    f.__name__: f for f in (latents, loop, data, memory, sampling, training, decoding, processes, busy, startup)
}
NEEDS = {"training": ("training", "costs")}


def ratios(*read: Result | None) -> str:
    """The table of docs/performance.md, from the results of ROWS and of `costs`; what was not measured says so."""
    results = dict(zip([*ROWS, "costs"], read, strict=True))
    rows = []
    for name, make in ROWS.items():
        found = [results[need] for need in NEEDS.get(name, (name,))]
        if any(result is None for result in found):
            rows.append([name, "*not measured yet*", "", "", f"`benchmarks.{name}`"])
            continue
        by = f"`benchmarks.{name}`, {found[0]['date']}"
        rows += [[f"{what}, against {against}" if against else what, *cells, by] for what, against, *cells in make(*found)]
    return table(HEAD, rows)
