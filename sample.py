"""Draw images with a trained model:

python sample.py --model runs/demo --output_dir runs/demo/pictures
python sample.py --model user/faces --num_images 64 --scheduler dpm-solver++ --num_inference_steps 20 --strip true
"""

from tinyldm.config.parsing import parse
from tinyldm.config.schema import Sample
from tinyldm.errors import one_line_errors


def main() -> None:
    """Load the model, choose the sampler, draw, save."""
    config = parse(Sample, __doc__)

    import torch  # after parsing, so that --help does not import it
    from tqdm.auto import tqdm

    from tinyldm.diffusion import sampling
    from tinyldm.diffusion.loading import load_for
    from tinyldm.pictures import OutputFolder
    from tinyldm.training.accelerator import default_device

    with OutputFolder(config.output_dir, config.overwrite) as output:
        device = default_device(config.device)
        model = load_for(config.model, config, device, getattr(torch, config.dtype))
        model.sampler(config)  # raises an error for unsupported settings before any file is written

        with tqdm(total=config.num_images, unit="image", desc="sampling", dynamic_ncols=True) as bar:
            for batch in sampling.sample(model, config.num_images, config.batch_size, config.seed, config):
                output.add(batch, config.seed)
                bar.update(len(batch))
        output.finish()
        if config.strip:
            output.strip(sampling.denoising_frames(model, min(8, config.num_images), config.seed, config))
        if config.interpolate:
            output.interpolation(sampling.interpolate(model, *config.interpolate, config))
    print(f"{config.num_images} images are in {output.path}; all on one page: {output.path / 'grid.png'}")


if __name__ == "__main__":
    with one_line_errors():
        main()
