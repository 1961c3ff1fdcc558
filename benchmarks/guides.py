"""Which guide, and how much of it: a table of guides and guidance scales.

    S=runs/demo/checkpoints; python -m benchmarks.guides --model runs/demo --guides "[$S/step-300, raw:$S/step-300]"

For each guide a row of Frechet distances to the run's held-out part, from the same seeds. `raw:` in front of a checkpoint takes
its weights without averaging.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from jsonargparse import auto_cli
from tqdm.auto import tqdm

from benchmarks.measure import RESULTS, record, use_all_cores
from benchmarks.samplers import quality_of
from tinyldm.config.schema import Features, Sampler, SamplerSettings
from tinyldm.drawing import sampling
from tinyldm.models.loading import check_guide, load_model
from tinyldm.models.model import Model
from tinyldm.training import checkpoint


def main(
    model: str = "runs/demo",
    guides: list[str] | None = None,
    scales: list[float] | None = None,
    images: int = 256,
    scheduler: Sampler = "dpm-solver++",
    steps: int = 10,
    features: Features = "efficientnet-lite0",
    data: str | None = None,
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        model: a run.
        guides: runs, checkpoints or pipelines; `labels` is the model itself without its labels. None: each checkpoint of the
            run but the last.
        scales: guidance scales. None: 1, 1.5, 2, 2.5, 3.
        images: images per distance. Fewer images make it larger.
        scheduler: the sampler.
        steps: its steps.
        features: feature network of the distances; see evaluate.py.
        data: path of the run's data, if they have moved.
        output: folder for the JSON file.
    """
    use_all_cores()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    loaded, quality = load_model(model, str(accelerator.device)), quality_of(model, features, images, data, accelerator)
    scales, rows = scales or [1.0, 1.5, 2.0, 2.5, 3.0], []
    guides = guides or [f"{model}/checkpoints/step-{step}" for step in checkpoint.steps(Path(model))[:-1]]
    bar = tqdm(total=1 + len(guides) * sum(scale != 1 for scale in scales), unit="distance", dynamic_ncols=True)
    without = None
    for name in guides:
        loaded.guide = None if name == "labels" else open_guide(loaded, name)
        distances = {}
        for scale in scales:
            if scale == 1 and without is not None:
                distances[scale] = without
                continue
            settings = SamplerSettings(scheduler=scheduler, num_inference_steps=steps, guidance_scale=scale)
            distances[scale] = quality.distance(quality.sums(sampling.sample(loaded, images, 64, 0, settings)))
            without = distances[scale] if scale == 1 else without
            bar.update()
        tqdm.write(f"{name}: " + ", ".join(f"{fd:.1f} at {scale:g}" for scale, fd in distances.items()))
        rows.append({"guide": name, "distances": distances})
        figures = {"features": features, "images": images, "sampler": scheduler, "steps": steps, "rows": rows}
    record("guides", figures, output, small=False)


def open_guide(model: Model, name: str) -> torch.nn.Module:
    """A guide of this name."""
    path = name.removeprefix("raw:")
    guide = load_model(path, str(model.device))
    check_guide(model, guide, name)
    if path != name:
        guide.denoiser.load_state_dict(checkpoint.load(Path(path))[0]["denoiser"])
    return guide.denoiser


if __name__ == "__main__":
    auto_cli(main)
