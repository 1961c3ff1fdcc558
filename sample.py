"""Draw images with a trained model, or change given ones:

python sample.py --model runs/demo --output_dir runs/demo/pictures
python sample.py --model user/faces --num_images 64 --scheduler dpm-solver++ --num_inference_steps 20 --strip true
python sample.py --model runs/faces64 --image me.png --strength 0.6                     # variations
python sample.py --model runs/faces64 --image me.png --mask 16,20,48,40                  # a new part
python sample.py --model runs/faces64 --invert a.png,b.png                               # the way between two pictures
"""

from tinyldm.config.parsing import parse
from tinyldm.config.schema import Sample
from tinyldm.errors import one_line_errors


def main() -> None:
    """Load the model, choose the sampler, draw, save."""
    config = parse(Sample, __doc__)

    import torch  # after parsing, so that --help does not import it
    from tqdm.auto import tqdm

    from tinyldm.drawing import sampling
    from tinyldm.drawing.actions import act
    from tinyldm.models.loading import load_for
    from tinyldm.models.model import Model
    from tinyldm.pictures import OutputFolder
    from tinyldm.training.accelerator import default_device

    with OutputFolder(config.output_dir, config.overwrite) as output:
        device = default_device(config.device)
        model = load_for(config.model, config, device, getattr(torch, config.dtype))
        done = 0

        def watch(_: Model, step: int, x: torch.Tensor) -> None:
            bar.update(max(0.0, round(done + len(x) * min(1.0, step / config.num_inference_steps), 1) - bar.n))

        # Raises an error for unsupported settings before any file is written.
        result = act(model, config, watch)
        with tqdm(total=result.count, unit="image", desc="sampling", dynamic_ncols=True) as bar:
            for batch in result.batches:
                output.add(batch, config.seed, result.name)
                done += len(batch)
                bar.update(done - bar.n)
        output.finish()
        if result.rows:
            output.edited(torch.cat(result.rows), result.columns)
        if result.between:
            output.interpolation(torch.cat(result.between))
        if config.strip:
            output.strip(sampling.denoising_frames(model, min(8, config.num_images), config.seed, config))
    for note in result.notes:
        print(note)
    page = output.path / ("edited.png" if result.rows else "interpolation.png" if result.between else "grid.png")
    print(f"{result.count} images are in {output.path}; all on one page: {page}")


if __name__ == "__main__":
    with one_line_errors():
        main()
