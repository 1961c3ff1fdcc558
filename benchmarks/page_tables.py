"""The tables of the benchmarks, as docs/journal/ shows them: one function for each file docs/performance/NAME.json."""

import math
import statistics
from typing import Any

Result = dict[str, Any]


def origin(result: Result) -> str:
    """A sentence about how the numbers were measured."""
    m = result["machine"]
    where = ", ".join(m["gpus"]) or f"{m['cores']} core{'s' * (m['cores'] > 1)} of {m['processor']}"
    libraries = ", ".join(f"{name} {m[name]}" for name in ("torch", "diffusers", "datasets", "pillow"))
    where += f", load {m['load']:.1f} at the end" if m["load"] is not None else ""
    return f"`{result['command']}`, {result['date']}, commit {result['commit']}: {where}; Python {m['python']}, {libraries}."


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


PAIR = ["", "this project", "the other", "ratio: median", "min to max", "pairs"]


def pair(name: str, found: dict[str, float]) -> list[str]:
    """A row for the columns PAIR."""
    ends = f"{found['min']:.3g} to {found['max']:.3g}"
    return [name, f"{found['ours']:.4g}", f"{found['other']:.4g}", f"{found['median']:.3g}", ends, str(found["pairs"])]


def target(value: float, least: float, what: str, unit: str = "") -> str:
    """A sentence that says whether a figure reached its target."""
    met = "met" if value >= least else f"missed by {least - value:.3g}{unit}"
    return f"The aim was {what}: {met}."


# ---------------------------------------------------------------------------------------------------------------- blocks


def latents(r: Result) -> str:
    """Stored latents against encoding at each step."""
    row = pair(f"stored latents against encoding at each step, {r['side']} px, images/s", r["kept"])
    aim = target(r["kept"]["median"], 10, "at least 10 times")
    ours, other = 1 / r["kept"]["ours"], 1 / r["kept"]["other"]  # seconds per image; the difference is the encoding
    whole = {n: n * other / (2 * (other - ours) + n * ours) for n in (1, 10, 150)}
    sentence = ", ".join(f"{ratio:.2g} times as fast over {n} epoch{'s' * (n > 1)}" for n, ratio in whole.items())
    sentence = f"Including the one pass that encodes all images and their mirror images, a run is by these numbers {sentence}."
    return f"{table(PAIR, [row])}\n\n{aim} {sentence}"


def same_image(r: Result) -> str:
    """How each format of stored latents changes the images."""
    head = [
        "latents stored as",
        "bytes per image",
        "codes that change",
        "images that change by more than rounding",
        "8-bit values that change",
        "largest change",
    ]
    rows = [
        [name, f"{f['bytes']:,.0f}", f"{f['codes']:.2%}", f"{f['images']:.1%}", f"{f['values']:.3%}", str(f["most"])]
        for name, f in r["forms"].items()
    ]
    return f"{table(head, rows)}\n\nOver {r['images']} held-out images of {r['resolution']} px."


def loop(r: Result) -> str:
    """The loop against bare steps."""
    rows = [pair("steps of the loop against bare ones, images/s", r["steps"])]
    each, share = r["seconds_a_step"], r["shares"]["defaults"]
    now = [
        [key, f"{seconds:.2f} s", *(f"{1000 * each[name][key]:.2f} ms" for name in ("defaults", "faces64"))]
        for key, seconds in r["now_and_then"].items()
    ]
    aim = target(100 * share, 97, "at least 97%", " points")
    sentence = f"With these at their default intervals, the loop reaches {share:.1%} of the bare speed. {aim} At the recipe's "
    sentence += f"shorter intervals, it reaches {r['shares']['faces64']:.1%}."
    head = ["periodic work", "each time", "per step, by default", "per step of `configs/faces64.yaml`"]
    return f"{table(PAIR, rows)}\n\n{table(head, now)}\n\n{sentence}"


def data(r: Result) -> str:
    """Decoding, resizing and cropping against bare loops."""
    rows = [pair(f"{name}: {other}, images/s", found) for name, others in r["speed"].items() for other, found in others.items()]
    bare = min(others["a bare loop of Pillow"]["median"] for others in r["speed"].values())
    aim = target(100 * bare, 90, "at least 90% of a bare loop of Pillow", " points")
    other = min(others["a bare loop of torchvision"]["median"] for others in r["speed"].values())
    return f"{table(PAIR, rows)}\n\n{aim} Compared with torchvision's own decoder and transforms, it is at least {other:.0%}."


def memory(r: Result) -> str:
    """Memory of a pass over few images and over many times as many."""
    rows = []
    for name, f in r["read"].items():
        range_ = f"{min(f['passes']):,.0f} to {max(f['passes']):,.0f}"
        rows.append([f"images read from files, {name}", f"{f['images']:,}", f"{f['megabytes']:,.0f}", range_, ""])
    for name, f in r["kept"].items():
        rows.append([f"stored latents, {name}", f"{f['images']:,}", f"{f['own']:,.0f}", "", f"{f['mapped']:,.0f}"])
    grown = {name: r["read"][name]["megabytes"] / r["read"]["few"]["megabytes"] for name in r["read"]}
    grown["kept"] = r["kept"]["ten times as many"]["own"] / r["kept"]["few"]["own"]
    aims = [
        f"{what}: {ratio - 1:+.1%}, {'met' if ratio <= 1.05 else f'missed by {100 * (ratio - 1.05):.1f} points'}"
        for what, ratio in (
            ("ten files instead of one", grown["ten times as many"]),
            ("twenty files", grown["twenty times as many"]),
            ("one file, ten times as large", grown["ten times as many, in one file"]),
            ("a store with ten times as many latents", grown["kept"]),
        )
    ]
    passes = len(r["read"]["few"]["passes"])
    head = ["a pass over", "images", "MB of the process, median", f"min to max of {passes} passes", "MB of mapped files"]
    return f"{table(head, rows)}\n\nThe aim was within 5% for ten times as many images: " + "; ".join(aims) + "."


def sampling(r: Result) -> str:
    """sample.py against LDMPipeline."""
    speed = r["speed"]
    rows = [pair(f"sample.py against LDMPipeline, DDIM, {r['steps']} steps, {r['batch_size']} images, images/s", speed)]
    aim = target(speed["median"], 1, "never slower")
    same = f"{speed['same_pictures']:.0%} of the pictures are the same bit for bit."
    return f"{table(PAIR, rows)}\n\n{aim} {same}"


def samplers(r: Result) -> str:
    """Frechet distance by sampler and number of steps."""
    cells = []
    ranked = sorted(r["rows"], key=lambda row: (row["evaluations"], statistics.mean(row["fds"])))
    for number, row in enumerate(ranked):
        # Compared set by set: all rows have the same seeds, so a lucky set of seeds is lucky for all of them.
        best = all(fd < other_fd for other in ranked[:number] for fd, other_fd in zip(row["fds"], other["fds"], strict=True))
        spread = f"{min(row['fds']):.2f} to {max(row['fds']):.2f}" if len(row["fds"]) > 1 else ""
        cells.append([row["sampler"], str(row["steps"]), str(row["evaluations"]), f"{row['seconds']:.3f}"])
        cells[-1] += [f"{statistics.mean(row['fds']):.2f}", *([spread] if spread else []), "yes" if best else ""]
    sets = len(r["rows"][0]["fds"])
    head = ["sampler", "steps", "evaluations", "s per image", f"FD, {r['features']}, {r['images']} images"]
    head += [*([f"min to max of {sets} sets of seeds"] if sets > 1 else []), "best so far"]
    sentence = "Best so far: its distance is below those of all rows above" + (", in each set of seeds." if sets > 1 else ".")
    left = f" No time was left for {'; '.join(r['left_out'])}." if r["left_out"] else ""
    return f"{table(head, cells)}\n\n{sentence}{left}"


def editing(r: Result) -> str:
    """Inpainting and inversion, a row for each model."""
    head = ["model", "FD of filled images", "of samples", "of the images as they were", "seam", "levels changed outside"]
    head += ["PSNR of noise and back", "of the first stage", "evaluations each way"]
    cells = []
    for name, row in r["models"].items():
        distances = [f"{row['fd'][of]['value']:.1f}" for of in ("filled", "samples", "as they were")]
        outside = f"{row['changed_outside']}, beyond the edge {row['changed_beyond_the_edge']}"
        ceiling = f"{row['ceiling']:.1f} dB" if "ceiling" in row else ""
        cells.append([f"`{name}`, {row['resolution']} px", *distances, f"{row['seam']:.2f}", outside])
        cells[-1] += [f"{row['psnr']:.1f} dB", ceiling, str(row["evaluations"])]
    return table(head, cells)


def best_solver(row: Result, evaluations: int) -> tuple[str, float]:
    """The solver with the smallest mean distance at this number of evaluations, and that distance."""
    of_count = {
        each["sampler"]: statistics.mean(each["fds"]) for each in row["distances"] if each["evaluations"] == evaluations
    }
    name = min(of_count, key=of_count.__getitem__)
    return name, of_count[name]


def forward_processes(r: Result) -> str:
    """Two tables with a row for each process: distances by number of evaluations, held-out errors by signal-to-noise ratio."""
    counts = sorted({each["evaluations"] for row in r["rows"].values() for each in row["distances"]})
    wanted = [i for i, log_snr in enumerate(r["log_snr"]) if log_snr % 2 == 0 and abs(log_snr) < 8]
    few, errors = [], []
    for name, row in r["rows"].items():
        found = [best_solver(row, count) for count in counts]
        few.append([f"`{name}`", row["prediction"], *(f"{fd:.1f} ({sampler})" for sampler, fd in found)])
        errors.append([f"`{name}`", *("" if math.isnan(row["errors"][i]) else f"{row['errors'][i]:.4f}" for i in wanted)])
    head = ["process", "prediction", *(f"{count} evaluations" for count in counts)]
    logs = [f"log SNR {r['log_snr'][i]:+.0f}" for i in wanted]
    steps = {row["steps"] for row in r["rows"].values()}
    length = f"{steps.pop():,} steps" if len(steps) == 1 else f"{r['minutes']:g} minutes"
    told = f"Frechet distance by number of network evaluations, after {length} each, with the best solver: {r['features']}, "
    told += f"{r['images']} images, mean of {r['sets']} sets of seeds. The picture has the same numbers."
    second = "The mean squared error of x_0 on held-out images, at the same signal-to-noise ratios:"
    picture = "![errors by signal-to-noise ratio, distances by number of evaluations](performance/forward_processes.png)"
    return "\n\n".join([told, table(head, few), second, table(["process", *logs], errors), picture])


def likelihood(r: Result) -> str:
    """Bits per dimension in two ways, a row for each model, and beside the bound."""
    head = ["model", "bits, Hutchinson", "bits, exact divergence", "bits, reference", "reference, half the steps"]
    head += ["largest difference of an image", "deviation of the estimator, an image", "evaluations"]
    names = ("hutchinson", "exact", "reference", "reference_half_the_steps", "largest_difference", "hutchinson_deviation")
    ways = table(
        head,
        [
            [f"`{model}`, {row['images']} images", *(f"{row[name]:.4f}" for name in names), str(row["evaluations"])]
            for model, row in r["models"].items()
        ],
    )
    bounds = [
        [
            f"`{model}`, {row['bound_images']} images",
            f"`{kind}`",
            f"{bound:.3f}",
            f"{row['ode']:.3f}",
            f"{gap:+.3f} ± {error:.3f}",
        ]
        for model, row in r["models"].items()
        for kind, bound in row.get("bounds", {}).items()
        for gap, error in [row["bounds_minus_ode"][kind]]
    ]
    if not bounds:
        return ways
    head = ["model", "variance of the reverse steps", "bound, bits", "ODE with the same last step, bits", "difference"]
    return ways + "\n\nThe variational bound beside the ODE:\n\n" + table(head, bounds)


def decoding(r: Result) -> str:
    """Memory while latents are decoded."""
    rows = [[name, f"{most:,.0f}"] for name, most in r["megabytes"].items()]
    return table([f"decoding {r['images']} images of {r['resolution']} px", "peak MB added"], rows)


def training(r: Result) -> str:
    """Our training and the example's at equal time."""
    rows, lines = [], []
    for name, run in r["trainings"].items():
        fd = "-" if run["fd"] is None else f"{run['fd']:.1f}"
        rows.append([name, f"{run['images_a_second']:.1f}", str(run["steps"]), f"{run['curve'][-1][1]:.4f}", fd])
    for space in ("pixels", "latents"):
        loss, end, when = overtaken(r, space)
        text = f"after {when / 60:.1f} min, {end / when:.1f} times as fast" if when else "not at all"
        lines.append(
            f"- {space}: the example ends at a held-out loss of {loss:.4f} after {end / 60:.1f} min; ours gets there {text}."
        )
    head = ["", "images/s", "steps", "held-out loss (noise)", f"FD, {r['features']}, {r['quality_images']} images"]
    curves = "![held-out losses against time](../performance/training.png)"
    return f"{table(head, rows)}\n\n" + "\n".join(lines) + f"\n\n{curves}"


def overtaken(r: Result, space: str) -> tuple[float, float, float | None]:
    """The example's last held-out loss, its time in seconds, and the time when ours reached that loss (None: never)."""
    end, loss = r["trainings"][f"{space}, example"]["curve"][-1]
    return loss, end, reaches(r["trainings"][f"{space}, ours"]["curve"], loss)


def reaches(curve: list[list[float]], loss: float) -> float | None:
    """Seconds at which a curve first falls to a loss, by linear interpolation."""
    before = None
    for seconds, value in curve:
        if value <= loss:
            if before is None:
                return seconds
            return before[0] + (seconds - before[0]) * (before[1] - loss) / (before[1] - value)
        before = (seconds, value)
    return None


def startup(r: Result) -> str:
    """From launch to the first step."""
    helps = [[f"`{script} --help`", f"{seconds:.2f}"] for script, seconds in r["help"].items()]
    slowest = max(r["help"].values())
    blocks = [table(["", "s"], helps), f"Aim: under 1 s: {'met' if slowest < 1 else f'missed by {slowest - 1:.2f} s'}."]
    for name, recipe in r["recipes"].items():
        rows, before = [], 0.0
        for stage, seconds in recipe["stages"].items():
            rows.append([stage, f"{seconds - before:.2f}", f"{seconds:.2f}"])
            before = seconds
        blocks.append(table([f"{name}, {recipe['images']:,} images: from launch to first step", "s", "since launch, s"], rows))
        blocks.append(f"Aim: under 15 s: {'met' if before < 15 else f'missed by {before - 15:.1f} s'}.")
    return "\n\n".join(blocks)


def processes(r: Result) -> str:
    """Two processes against one."""
    return table(PAIR, [pair(f"two processes against one, batch {r['batch_size']} in all, images/s", r["two"])])


def busy(r: Result) -> str:
    """Steps alone and beside busy programs, by spin count."""
    rows = []
    for name, spin in r["spin_counts"].items():
        figures = r["neighbours"][name]
        alone = figures["0"]["steps_a_second"]
        for count, figure in figures.items():
            share = f"{figure['steps_a_second'] / alone:.0%}"
            cells = [f"{figure['steps_a_second']:.2f}", share, f"{figure['median']:.2f}", f"{figure['longest']:.2f}"]
            rows.append([f"{int(spin):,} ({name})", count, *cells])
    return table(["spin count", "busy programs", "steps/s", "of alone", "median step, s", "longest step, s"], rows)


def costs(r: Result) -> str:
    """What each recipe costs."""
    head = ["recipe", "network", "parameters", "GFLOP per image", "forward and backward", "GiB per step", "images/s"]
    rows = []
    for name, recipe in r["recipes"].items():
        for part, c in recipe["parts"].items():
            step = f"{c['step'] / 1e9:,.2f}" if c["step"] else "-"
            memory = f"{c['bytes'] / 2**30:,.2f}{'' if c['step'] else ', weights only'}"
            cells = [f"{c['parameters']:,}", f"{c['forward'] / 1e9:,.2f}", step, memory]
            rows.append([f"{name}, batch {recipe['batch_size']}", part, *cells, f"{c['images_a_second']:,.1f}"])
    notes = [f"- {name}: {note}" for name, recipe in r["recipes"].items() for note in recipe["notes"]]
    return "\n".join([table(head, rows), "", *notes]).strip()


def sweep(r: Result) -> str:
    """Variants of a network, ranked by their difference from the base."""
    figures = [key for key in ("eval_loss", "eval_eps", "eval_bits", "eval_psnr") if key in r["variants"][0]]
    titles = {
        "eval_loss": "held-out loss" + " (v)" * (r["figure"] == "eval_loss"),
        "eval_eps": "in units of the noise",
        "eval_bits": "bound, bits",
        "eval_psnr": "PSNR",
    }
    head = [
        "factor",
        "variant",
        "parameters",
        "images/s",
        "steps",
        "seeds",
        *(titles[key] for key in figures),
        "difference",
        "sure",
    ]
    better = -1 if r["figure"] == "eval_loss" else 1
    rows = []
    for v in sorted(r["variants"], key=lambda v: -better * v["difference"]):
        error = f" ± {2 * v['error']:.4f}" if v["error"] else ""
        sure = (
            "" if v["factor"] == "base" else "?" if not v["error"] else "yes" if abs(v["difference"]) > 2 * v["error"] else "no"
        )
        cells = [v["factor"], v["variant"], f"{v['parameters']:,.0f}", f"{v['images_a_second']:.1f}"]
        cells += [f"{v['steps']:,.0f}", str(v["seeds"])]
        rows.append([*cells, *(f"{v[key]:.4f}" for key in figures), f"{v['difference']:+.4f}{error}", sure])
    return f"{table(head, rows)}\n\n![differences from the base with two standard errors](../performance/{r['picture']})"


def fine_tuning(r: Result) -> str:
    """The distance after each fine-tuning, and along the training from nothing."""
    shown, rows = {r["steps"], r["steps_from_nothing"] // 10, r["steps_from_nothing"] // 2, r["steps_from_nothing"]}, []
    for name, curve in r["curves"].items():
        for row in curve:
            if row["step"] in shown:
                nearer = "" if row["nearer"] is None else f"{row['nearer']:.0%}"
                rows.append([name, f"{row['step']:,}", f"{row['fd']:.1f}", nearer])
    return table(["pictures", "steps", "Frechet distance", "nearer to training pictures"], rows)


def power_ema(r: Result) -> str:
    """What the power-function averages cost."""
    s, mebi = r["seconds"], 2**20
    return (
        f"{r['share']:.1%} of a step of {s['step']:.2f} s, batch {r['batch_size']} (CPU time of one thread): both averages "
        f"{1000 * s['averages']:.1f} ms per step, a snapshot {1000 * s['snapshot']:.0f} ms now and then. "
        f"{r['memory'] / mebi:.0f} MiB of memory, {r['file'] / mebi:.0f} MiB per snapshot. The aim was at most 2%."
    )


def groups(r: Result) -> str:
    """Precision and the like by who is held out."""
    shared, other = r["groups"]["None"], r["groups"]["person"]
    head = ["", "held-out photographs of people of the training part", "of other people (`data.group_column person`)"]
    return table(head, [[name, f"{shared[name]:.3g}", f"{other[name]:.3g}"] for name in shared])
