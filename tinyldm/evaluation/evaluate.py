"""From a model or a set of images to figures: what evaluate.py does.

Every figure of the samples stands between two others that were found in the same way, with as many images and against the
same reference. `real images` is what a perfect model would get: images of the part of the data that is not the reference. Two
halves of the reference would be another number of images, and a Frechet distance depends on that. `reconstructions` are the
same real images after the model's own first stage: a denoiser without error would get this and nothing better.

A first stage is measured as usual: its reconstructions against the very images that it was given.
"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tinyldm import pictures
from tinyldm.config.evaluate import Evaluate
from tinyldm.data.identity import describe_part, hub_id
from tinyldm.data.images import to_float, to_uint8
from tinyldm.data.sources import open_sources
from tinyldm.diffusion.model import decoded_at_once
from tinyldm.errors import UserError
from tinyldm.evaluation import report as evaluation_report
from tinyldm.evaluation.models import draw, open_model, weights_stamp
from tinyldm.files import difference
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.metrics import distances as metrics
from tinyldm.metrics import features
from tinyldm.metrics.chunks import Pieces
from tinyldm.metrics.distances import Estimate
from tinyldm.metrics.features import FeatureNetwork
from tinyldm.metrics.image_sets import Arrays, ImageSet, data_part, embed, embed_part, open_images, pick
from tinyldm.metrics.lpips import load_lpips
from tinyldm.training.accelerator import default_device

NUM_IMAGES = 10_000
SAMPLES, REAL, RECONSTRUCTIONS = "samples", "real images", "reconstructions"  # the columns of the table
OTHER = {"train": "held_out", "held_out": "train"}
IN_OUTPUT = ("drawn", "features")
START_ANEW = "choose another output_dir, or --overwrite true"


def evaluate(config: Evaluate) -> str:
    """Do it, leave evaluation.json and the pictures in output_dir and beside the run, and return the table.

    Raises:
        UserError: for what the user can mend.
    """
    return Evaluation(config).run()


class Evaluation:
    """One call of evaluate.py."""

    def __init__(self, config: Evaluate):
        self.config, self.output = config, Path(config.output_dir)
        self.device = default_device(config.device)
        self.notes: list[str] = []

    def run(self) -> str:
        """Measure what the config names."""
        config = self.config
        model = open_model(config, self.device) if config.model else None
        self.open_output()
        if isinstance(model, FirstStage):
            images, result = self.first_stage(model)
        else:
            images, result = self.samples(model)
        result["features"] = {"name": self.network.name, **self.network.recipe}
        result["notes"] = self.notes
        return evaluation_report.publish(config, self.output, images, result)

    def open_output(self) -> None:
        """Make the folder, empty of our own things where they are to be overwritten."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            if self.config.overwrite:
                for name in IN_OUTPUT:
                    shutil.rmtree(self.output / name, ignore_errors=True)
                (self.output / "evaluation.json").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"output_dir {self.output} cannot be written ({error.strerror}); choose another") from error

    @functools.cached_property
    def network(self) -> FeatureNetwork:
        """What finds the features."""
        return features.load(self.config.features, self.device)

    # ------------------------------------------------------------------------------------------------------- the real data

    @functools.cached_property
    def parts(self) -> dict[str, ImageSet]:
        """The training part and the held-out part."""
        config = self.config
        sources = zip(("train", "held_out"), open_sources(config.data, config.split_seed), strict=True)
        return {part: data_part(source, config.data, part, config.split_seed, config.batch_size) for part, source in sources}

    def part(self, part: str, wanted: int | None) -> Arrays:
        """Features of the first images of a part."""
        return embed_part(self.parts[part], part, self.config.data, self.network, wanted)

    def reference(self, wanted: int | None) -> tuple[str, np.ndarray, dict[str, Any]]:
        """Which part the reference is, the features (M, D) of its first `wanted` images (None: all), and its stamp."""
        config = self.config
        given = Path(config.reference).expanduser()
        if config.reference in OTHER:
            part, found = config.reference, self.part(config.reference, wanted)["features"]
        else:
            part, found = self.read_reference(given, wanted)
        stamp = {**describe_part(config.data, part, config.split_seed), "images": len(found)}
        if config.data.revision is None and hub_id(config.data.name):
            self.notes.append("the data set's revision is not pinned: give a commit as data.revision for figures to repeat")
        made_of = json.dumps({"images": stamp, "features": self.network.recipe})
        file = self.output / f"reference-{self.network.name}-{part}.npz"
        if file.resolve() != given.resolve():
            np.savez(file, features=found, made_of=np.array(made_of))
        return part, found, stamp

    def read_reference(self, file: Path, wanted: int | None) -> tuple[str, np.ndarray]:
        """A reference-*.npz of an earlier evaluation, unless it is another reference than the config asks for."""
        config = self.config
        if not file.is_file():
            raise UserError(f"reference is {config.reference!r}; it must be held_out, train, or a reference-*.npz")
        try:
            with np.load(file) as arrays:
                made_of, found = json.loads(str(arrays["made_of"])), arrays["features"]
            part = made_of["images"]["part"]
            expected = {**describe_part(config.data, part, config.split_seed), "images": wanted or len(found)}
        except Exception as error:  # NumPy's reader raises what it likes
            raise UserError(f"{file} is not a reference that evaluate.py has written ({error!r})") from error
        if other := difference(made_of, {"images": expected, "features": self.network.recipe}):
            raise UserError(f"the reference {file} is not that of this evaluation ({other}); leave --reference away")
        return part, found

    # ------------------------------------------------------------------------------------------------------------- features

    def mine(self, name: str, images: ImageSet, wanted: int, make: Callable[[torch.Tensor], Arrays], **made_of: Any) -> Arrays:
        """As `embed`, kept in output_dir."""
        folder = self.output / "features" / f"{self.network.name}-{name}"
        made_of = {"images": images.made_of, "features": self.network.recipe, **made_of}
        doing = f"features of the {name.partition('-')[0]}"
        return embed(images, wanted, Pieces(folder, made_of, START_ANEW), make, doing)

    def compare(self, found: Arrays, reference: np.ndarray, chosen: list[str]) -> dict[str, dict[str, float]]:
        """The chosen figures of one set of images, by name: value, interval and how many images they are of."""
        images, figures = found["features"], {}
        if "fid" in chosen:
            figures[self.network.frechet] = figure(metrics.frechet(images, reference), len(images))
        if "kid" in chosen:
            figures[self.network.kernel] = figure(metrics.kid(images, reference), len(images))
        if "prdc" in chosen:
            count = min(len(images), metrics.MAX_MANIFOLD)
            figures.update({name: figure(value, count) for name, value in metrics.prdc(images, reference).items()})
        if "is" in chosen:
            figures["Inception score"] = figure(metrics.inception_score(found["logits"]), len(images))
        return figures

    # -------------------------------------------------------------------------------------------------------------- samples

    def samples(self, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Samples of a model, or images of any origin, between the two anchors."""
        config = self.config
        given = open_images(config.images, config.data, config.batch_size) if model is None else None
        available = given.count if given else NUM_IMAGES
        count = min(config.num_images or available, available) if given else config.num_images or available
        part, reference, stamp = self.reference(config.num_reference)
        images = given or draw(config, model, count, self.output / "drawn", START_ANEW)
        columns = {SAMPLES: self.mine("samples", images, count, self.network.embed)}
        if config.anchors:
            others = self.part(OTHER[part], count)
            if (found := len(others["features"])) < metrics.MIN_IMAGES:
                self.notes.append(f"no anchors: the {OTHER[part]} part has only {found} images; see data.eval_fraction")
            else:
                columns[REAL] = others
            if REAL in columns and model is not None and model.first_stage is not None:
                first_stage = FirstStage(model.first_stage)
                columns[RECONSTRUCTIONS] = self.mine(
                    f"{RECONSTRUCTIONS}-{OTHER[part]}",
                    self.parts[OTHER[part]],
                    len(columns[REAL]["features"]),
                    lambda batch: self.network.embed(self.reconstruct(first_stage, batch)[1]),
                    first_stage=first_stage.fingerprint(),
                    dtype=config.dtype,
                )
        figures: dict[str, dict[str, Any]] = {}
        for column, found in columns.items():
            for name, measured in self.compare(found, reference, config.chosen).items():
                figures.setdefault(name, {})[column] = measured
        result = {"reference": stamp, "figures": figures}
        found = columns[SAMPLES]["features"]
        if len(found) <= found.shape[1]:
            self.notes.append(
                f"{len(found)} images are fewer than the {found.shape[1]} features: distances are much larger than those of "
                "more images, and compare at this number only"
            )
        if REAL in columns and len(columns[REAL]["features"]) < len(found):
            self.notes.append(
                f"the anchors are of {len(columns[REAL]['features'])} images, since the part that is not the reference has no "
                "more: their distances are larger than those of as many images as there are samples"
            )
        if "JPEG" in images.made_of["format"]:
            self.notes.append("JPEG files: the compression itself moves every distance")
        if "memorisation" in config.chosen:
            result["memorisation"] = self.memorisation(found, images)
        pictures.grid(pick(images, np.arange(min(64, len(found))))).save(self.output / "samples.png")
        return {**images.made_of, "count": len(found)}, result

    def memorisation(self, samples: np.ndarray, images: ImageSet) -> dict[str, Any]:
        """Are samples copies of training images? Distances to the nearest training image, of samples and of held-out images,
        and a picture: left the eight samples that are nearest to training images, right the first eight of all; each with its
        three nearest training images, the nearest first."""
        train, held_out = self.part("train", None)["features"], self.part("held_out", None)["features"]
        distances, indices = metrics.nearest(samples, train, 3)
        fresh = metrics.nearest(held_out, train, 1)[0][:, 0]
        closest = np.argsort(distances[:, 0], kind="stable")[:8]
        rows = np.stack([closest, np.arange(len(closest))], 1).ravel()
        neighbours, places = np.unique(indices[rows], return_inverse=True)
        found = pick(self.parts["train"], neighbours)[places.reshape(-1)].unflatten(0, (len(rows), -1))
        tiles = torch.cat([pick(images, rows)[:, None], found], 1)
        pictures.grid(tiles.flatten(0, 1), 2 * tiles.shape[1]).save(self.output / f"neighbours-{self.network.name}.png")
        limit = np.quantile(fresh, 0.01)
        return {
            "nearer": figure(metrics.nearer(distances[:, 0], fresh), len(samples)),
            "as_near_as_1_percent": figure(metrics.average((distances[:, 0] <= limit).astype(float)), len(samples)),
            "median_distance": {SAMPLES: float(np.median(distances[:, 0])), "held-out images": float(np.median(fresh))},
            "smallest_distance": {SAMPLES: float(distances[:, 0].min()), "held-out images": float(fresh.min())},
            "train_images": len(train),
            "held_out_images": len(held_out),
        }

    # ---------------------------------------------------------------------------------------------------------- first stage

    def reconstruct(self, first_stage: FirstStage, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 images (B, 3, H, W) -> their latents, and what the first stage makes of them, uint8."""
        weight = next(first_stage.model.parameters())
        images = batch[:, : first_stage.model.config.in_channels]  # all three are the same where it is for grey ones
        latents, made = [], []
        for part in images.split(decoded_at_once(images[0, 0].numel() // first_stage.downscale**2)):
            latents.append(first_stage.encode(to_float(part.to(weight.device)).to(weight.dtype)))
            made.append(to_uint8(first_stage.decode(latents[-1])))
        return torch.cat(latents), torch.cat(made).expand(-1, 3, -1, -1)

    def first_stage(self, first_stage: FirstStage) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reconstructions of the held-out part against the held-out part itself."""
        config = self.config
        if config.reference != "held_out":
            raise UserError("a first stage is measured on the held-out part; leave --reference away")
        wanted = min(filter(None, (config.num_images, config.num_reference)), default=None)
        _, reference, stamp = self.reference(wanted)
        try:
            lpips = load_lpips().to(self.device)
        except UserError:
            lpips = None
            self.notes.append("no LPIPS: the weights of its VGG16 cannot be had here")

        @torch.no_grad()
        def measure(batch: torch.Tensor) -> Arrays:
            latents, made = self.reconstruct(first_stage, batch)
            pair = made.float(), batch.to(made.device).float()
            arrays = {
                **self.network.embed(made),
                "PSNR": peak_signal_noise_ratio(*pair, data_range=255.0, dim=(1, 2, 3), reduction="none").cpu().numpy(),
                "SSIM": structural_similarity_index_measure(*pair, data_range=255.0, reduction="none").cpu().numpy(),
            }
            if lpips is not None:
                arrays["LPIPS"] = lpips(*(to_float(images) for images in pair)).flatten().cpu().numpy()
            if isinstance(first_stage.model, VQModel):
                arrays["codes"] = first_stage.model.quantize(latents)[2][2].view(len(batch), -1).int().cpu().numpy()
            return arrays

        made_of = weights_stamp(config, first_stage.model)
        extras = {**made_of, "lpips": lpips is not None}
        found = self.mine(RECONSTRUCTIONS, self.parts["held_out"], len(reference), measure, **extras)
        count = len(reference)
        figures = self.compare(found, reference, [name for name in config.chosen if name in ("fid", "kid")])
        figures = {f"r{name}": measured for name, measured in figures.items()}
        figures |= {name: figure(metrics.average(found[name]), count) for name in ("PSNR", "SSIM", "LPIPS") if name in found}
        result = {"reference": stamp, "figures": {name: {RECONSTRUCTIONS: measured} for name, measured in figures.items()}}
        if "codes" in found:
            uses = np.bincount(found["codes"].ravel(), minlength=first_stage.model.config.num_vq_embeddings)
            share = torch.from_numpy(uses / uses.sum())
            perplexity = float(torch.special.entr(share).sum().exp())
            result["codebook"] = {
                "codes": len(uses),
                "used": float((uses > 0).mean()),
                "perplexity": perplexity,
                "images": count,
            }
        picked = np.arange(min(16, count))
        originals = pick(self.parts["held_out"], picked)
        made = self.reconstruct(first_stage, originals)[1].cpu()
        rows = [half for pair in zip(originals.split(8), made.split(8), strict=True) for half in pair]
        pictures.grid(torch.cat(rows), min(8, len(picked))).save(self.output / "reconstructions.png")
        return {**made_of, "count": count}, result


def figure(estimate: Estimate, images: int) -> dict[str, float]:
    """An estimate and how many images it is of, as JSON."""
    return {**estimate._asdict(), "images": images}
