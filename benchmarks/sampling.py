"""sample.py against diffusers' own LDMPipeline: images per second, and whether the pictures are the same.

python -m benchmarks.sampling --model runs/faces64      # about 5 minutes on 2 CPU cores
python -m benchmarks.sampling --small true              # a small random model, to check that it runs
"""

import tempfile
from pathlib import Path

from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline
from jsonargparse import auto_cli

from benchmarks.latents import SMALL, first_stage
from benchmarks.measure import RESULTS, clock, in_turns, ratio, record, told, use_all_cores
from tinyldm import pictures
from tinyldm.config.parsing import parse
from tinyldm.config.schema import SamplerSettings, TrainLDM
from tinyldm.drawing import sampling
from tinyldm.models.denoiser import make_denoiser
from tinyldm.models.loading import load_model
from tinyldm.process.processes import make_process


def main(
    model: str | None = None,
    pairs: int = 7,
    images: int = 16,
    steps: int = 25,
    small: bool = False,
    output: str = str(RESULTS),
) -> None:
    """Run the benchmark.

    Args:
        model: a run of train_ldm.py.
        pairs: number of paired measurements.
        images: images per measurement, in one batch.
        steps: DDIM steps.
        small: a small random model.
        output: folder for the JSON file.
    """
    use_all_cores()
    with tempfile.TemporaryDirectory() as temporary:
        if small:
            model = random_pipeline(Path(temporary))
        if model is None:
            raise SystemExit("no model given: add --model runs/faces64, or --small true")
        speed = against_diffusers(model, pairs, images, steps)
    record("sampling", {"batch_size": images, "steps": steps, "speed": speed}, output, small)


def random_pipeline(folder: Path) -> str:
    """A pipeline of small networks with random weights."""
    config = parse(TrainLDM, "", ["--output_dir", "", "--train.max_steps", "1", *SMALL])
    stage = first_stage(folder / "vq", small=True)
    unet = make_denoiser(config.unet, 8, 3).unet
    sampler = make_process(config.process, config.scheduler).sampler()
    LDMPipeline(vqvae=stage.model, unet=unet, scheduler=sampler).save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


def against_diffusers(model: str, pairs: int, images: int, steps: int) -> dict[str, float]:
    """Images per second until PIL images, from the same seeds with DDIM."""
    ours, settings = load_model(model), SamplerSettings(scheduler="ddim", num_inference_steps=steps)
    local = Path(model) / "pipeline" if (Path(model) / "pipeline").is_dir() else Path(model)
    theirs = DiffusionPipeline.from_pretrained(str(local))
    theirs.scheduler = DDIMScheduler.from_config(ours.process.sampler("ddim").config)
    theirs.set_progress_bar_config(disable=True)
    drawn: dict[str, list] = {}
    now = clock()

    def sample() -> float:
        started = now()
        batches = sampling.sample(ours, images, images, 0, settings)
        drawn["ours"] = [pictures.to_pil(image) for batch in batches for image in batch]
        return images / (now() - started)

    def pipeline() -> float:
        random, started = sampling.generators(0, images), now()
        drawn["theirs"] = theirs(batch_size=images, generator=random, num_inference_steps=steps).images
        return images / (now() - started)

    results = ratio(in_turns(sample, pipeline, pairs))
    same = sum(a.tobytes() == b.tobytes() for a, b in zip(drawn["ours"], drawn["theirs"], strict=True))
    print(told(f"sample.py against LDMPipeline, DDIM with {steps} steps", results))
    print(f"{same} of {images} pictures are the same bit for bit")
    return {**results, "same_pictures": same / images}


if __name__ == "__main__":
    auto_cli(main)
