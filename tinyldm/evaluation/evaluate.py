"""Measures a model or a set of images: what evaluate.py does.

Two anchors stand beside the metrics of the samples, with as many images and the same reference. `real images` is the result
of a perfect model: images of the part of the data that is not the reference. Two halves of the reference would not do, since
a Frechet distance depends on the number of images. `reconstructions` are the same real images after the model's own first
stage: the result of a denoiser without error.

A first stage is measured as usual: its reconstructions against the same images.
"""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tinyldm import pictures
from tinyldm.config import parsing
from tinyldm.config.evaluate import Evaluate
from tinyldm.config.paths import refuse_inputs_inside, refuse_output_inside
from tinyldm.config.schema import DataConfig
from tinyldm.data.identity import describe_part, hub_id
from tinyldm.data.images import to_float, to_uint8
from tinyldm.data.sources import Source, open_sources
from tinyldm.diffusion.model import Model, decoded_at_once
from tinyldm.errors import UserError, boundary
from tinyldm.evaluation import report
from tinyldm.evaluation.models import draw, open_model, weights_stamp
from tinyldm.files import difference
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.limits import read_arrays
from tinyldm.manifest import Manifest, list_in_run, named
from tinyldm.metrics import distances, features
from tinyldm.metrics.chunks import Arrays, Chunks
from tinyldm.metrics.distances import Estimate
from tinyldm.metrics.features import FeatureNetwork
from tinyldm.metrics.image_sets import (
    RANDOM,
    ImageSet,
    data_part,
    embed,
    embed_part,
    open_images,
    pick,
    random_part,
)
from tinyldm.metrics.lpips import load_lpips
from tinyldm.training.accelerator import default_device

NUM_IMAGES = 10_000
SAMPLES, REAL, RECONSTRUCTIONS = "samples", "real images", "reconstructions"  # the columns of the table
OTHER = {"train": "held_out", "held_out": "train"}
REFERENCES = "reference-*.npz"
FILES = ("evaluation.json", "samples.png", "reconstructions.png", "neighbours-*.png", REFERENCES)  # written to output_dir
FOLDERS = ("drawn", "features")
START_OVER = "choose another output_dir, or use --overwrite true"


def evaluate(config: Evaluate) -> str:
    """Measure, write evaluation.json and pictures to output_dir and to the run, and return the table.

    Raises:
        UserError: for errors the user can fix.
    """
    return Evaluation(config).run()


class Evaluation:
    """One call of evaluate.py."""

    def __init__(self, config: Evaluate):
        self.config, self.output = config, Path(config.output_dir)
        self.manifest = Manifest(self.output)
        self.device = default_device(config.device)
        self.notes: list[str] = []

    def run(self) -> str:
        """Measure the model or images that the config names."""
        config = self.config
        self.check_output()
        model = open_model(config, self.device) if config.model else None
        images, result = self.first_stage(model) if isinstance(model, FirstStage) else self.samples(model)
        result["features"] = {"name": self.network.name, **self.network.recipe}
        result["notes"] = self.notes
        return report.publish(config, self.output, images, result)

    def check_output(self) -> None:
        """Refuse an output_dir with files of others that would be replaced, and one that contains or lies in the inputs."""
        config, values = self.config, parsing.to_dict(self.config)
        refuse_output_inside(self.output, config.images, config.data.name, config.data.data_files)
        if config.overwrite:
            refuse_inputs_inside(values, *(self.output / name for name in FOLDERS))
        # Without `overwrite` nothing in the folders is replaced: see Chunks.
        names = [*FILES, *(FOLDERS if config.overwrite else ())]
        if foreign := [file for file in self.manifest.foreign() if self.is_of(file, names)]:
            raise UserError(
                f"{self.output} holds {named(foreign, self.output)}, not written by evaluate.py: nothing in it is replaced; "
                "choose another output_dir, or move these files away"
            )

    def is_of(self, file: Path, names: Iterable[str]) -> bool:
        """Whether a file in output_dir is one of these files, or in one of these folders."""
        return any(PurePath(file.relative_to(self.output).parts[0]).match(name) for name in names)

    def start(self) -> None:
        """Create output_dir. With `overwrite`, delete an older evaluation in it. Call it when all inputs are open."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            if self.config.overwrite:
                old = [name for name in (*FILES, *FOLDERS) if name != REFERENCES]  # which may be the reference now
                self.manifest.remove(file for file in self.manifest.files() if self.is_of(file, old))
            list_in_run(self.output)
        except OSError as error:
            raise UserError(f"output_dir {self.output} cannot be written ({error.strerror}): choose another") from error

    @functools.cached_property
    def network(self) -> FeatureNetwork:
        """The feature network."""
        return features.load(self.config.features, self.device)

    # ----------------------------------------------------------------------------------------------------------- real images

    @functools.cached_property
    def parts(self) -> dict[str, ImageSet]:
        """All images of the training part and of the held-out part."""
        return {part: data_part(source, *self.of_part(part)) for part, source in self.sources.items()}

    @functools.cached_property
    def sources(self) -> dict[str, Source]:
        """The training part and the held-out part, undecoded."""
        train, held_out = open_sources(self.config.data, self.config.split_seed)
        if train.description:
            print("\n".join(train.description.lines()))
        return {"train": train, "held_out": held_out}

    def of_part(self, part: str) -> tuple[DataConfig, str, int, int]:
        """What data_part and random_part need to know besides the source."""
        return self.config.data, part, self.config.split_seed, self.config.batch_size

    def part(self, part: str, limit: int | None) -> ImageSet:
        """The images of a part, or where there is a limit an image set that begins with a random subset of them."""
        return self.parts[part] if limit is None else random_part(self.sources[part], *self.of_part(part))

    def part_features(self, part: str, limit: int | None) -> Arrays:
        """Features of `limit` random images of a part. None: all."""
        return embed_part(self.part(part, limit), part, self.config.data, self.network, limit)

    def reference(self, limit: int | None) -> tuple[str, np.ndarray, dict[str, Any]]:
        """The reference: its part, the features (M, D) of `limit` random images of it (None: all), and its description."""
        config = self.config
        file = Path(config.reference).expanduser()
        if config.anchors or "memorisation" in config.chosen:
            _ = self.parts  # opened before anything is deleted
        if config.reference in OTHER:
            part, values = config.reference, self.part_features(config.reference, limit)["features"]
            order = None if limit is None else RANDOM
        else:
            part, values, order = self.read_reference(file, limit)
        description = {**describe_part(config.data, part, config.split_seed), "images": len(values), "order": order}
        if config.data.revision is None and hub_id(config.data.name):
            self.notes.append("data.revision is not set: set it to a commit to make these numbers repeatable")
        key = json.dumps({"images": description, "features": self.network.recipe})
        copy = self.output / f"reference-{self.network.name}-{part}.npz"
        self.start()
        if copy.resolve() != file.resolve():
            np.savez(self.manifest.own(copy), features=values, made_of=np.array(key))
        return part, values, description

    def read_reference(self, file: Path, limit: int | None) -> tuple[str, np.ndarray, str | None]:
        """Read the reference-*.npz of an earlier evaluation: its part, its features, and whether they are a random subset.

        Raises:
            UserError: if it is not the reference that the config describes.
        """
        config = self.config
        if not file.is_file():
            raise UserError(f"reference is {config.reference!r}; it must be held_out, train, or a reference-*.npz")
        with boundary(f"{file} is not a reference that evaluate.py has written"):
            arrays = read_arrays(file, ("made_of", "features"))
            key, values = json.loads(str(arrays["made_of"])), arrays["features"]
            part, order = key["images"]["part"], key["images"]["order"]
            expected = {**describe_part(config.data, part, config.split_seed), "images": limit or len(values), "order": order}
        if other := difference(key, {"images": expected, "features": self.network.recipe}):
            raise UserError(f"the reference {file} is not that of this evaluation ({other}): remove --reference")
        return part, values, order

    # -------------------------------------------------------------------------------------------------------------- features

    def own_features(
        self, name: str, images: ImageSet, limit: int, make: Callable[[torch.Tensor], Arrays], **settings: Any
    ) -> Arrays:
        """Features that depend on the model, saved in output_dir. See `embed`."""
        folder = self.manifest.own_folder(self.output / "features" / f"{self.network.name}-{name}")
        key = {"images": images.key, "features": self.network.recipe, **settings}
        return embed(images, limit, Chunks(folder, key, START_OVER), make, f"features of the {name.partition('-')[0]}")

    def compare(self, arrays: Arrays, reference: np.ndarray, chosen: list[str]) -> dict[str, dict[str, float]]:
        """The chosen metrics of one set of images, by name: value, interval and number of images."""
        images, results = arrays["features"], {}
        if "fid" in chosen:
            results[self.network.frechet] = entry(distances.frechet(images, reference), len(images))
        if "kid" in chosen:
            results[self.network.kernel] = entry(distances.kid(images, reference), len(images))
        if "prdc" in chosen:
            count = min(len(images), distances.MAX_MANIFOLD)
            results |= {name: entry(value, count) for name, value in distances.prdc(images, reference).items()}
        if "is" in chosen:
            results["Inception score"] = entry(distances.inception_score(arrays["logits"]), len(images))
        return results

    # --------------------------------------------------------------------------------------------------------------- samples

    def samples(self, model: Model | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compare a model's samples, or images from files, with the reference.

        Returns:
            The key of the images with their count, and the result for evaluation.json.
        """
        config = self.config
        given = None
        if config.images is not None:
            given = open_images(config.images, config.data, config.batch_size, config.num_images is not None)
        part, reference, description = self.reference(config.num_reference)
        if given is not None:
            images, count = given, min(filter(None, (config.num_images, given.count)))
        else:
            assert model is not None  # Evaluate.check: either a model or images
            count = config.num_images or NUM_IMAGES
            images = draw(config, model, count, self.manifest.own_folder(self.output / "drawn"), START_OVER)
        columns = {SAMPLES: self.own_features("samples", images, count, self.network.embed)}
        if config.anchors:
            columns |= self.anchors(model, OTHER[part], count)
        metrics: dict[str, dict[str, Any]] = {}
        for column, arrays in columns.items():
            for name, measured in self.compare(arrays, reference, config.chosen).items():
                metrics.setdefault(name, {})[column] = measured
        result: dict[str, Any] = {"reference": description, "figures": metrics}
        samples = columns[SAMPLES]["features"]
        self.add_notes(images, samples, columns.get(REAL))
        if "memorisation" in config.chosen:
            result["memorisation"] = self.memorisation(samples, images)
        pictures.grid(pick(images, np.arange(min(64, len(samples))))).save(self.manifest.own(self.output / "samples.png"))
        return {**images.key, "count": len(samples)}, result

    def anchors(self, model: Model | None, part: str, count: int) -> dict[str, Arrays]:
        """Features of real images of a part, and of their reconstructions if the model has a first stage."""
        real = self.part_features(part, count)
        number = len(real["features"])
        if number < distances.MIN_IMAGES:
            self.notes.append(f"no anchors: the {part} part has only {number} images; see data.eval_fraction")
            return {}
        if model is None or model.first_stage is None:
            return {REAL: real}
        first_stage = FirstStage(model.first_stage)
        reconstructions = self.own_features(
            f"{RECONSTRUCTIONS}-{part}",
            self.part(part, number),
            number,
            lambda batch: self.network.embed(self.reconstruct(first_stage, batch)[1]),
            first_stage=first_stage.fingerprint(),
            dtype=self.config.dtype,
        )
        return {REAL: real, RECONSTRUCTIONS: reconstructions}

    def add_notes(self, images: ImageSet, samples: np.ndarray, real: Arrays | None) -> None:
        """Note what limits the comparison."""
        count, width = samples.shape
        if count <= width:
            self.notes.append(
                f"{count} images are fewer than the {width} features: distances are much larger than with more images; "
                "compare them only at this number"
            )
        if real is not None and len(real["features"]) < count:
            self.notes.append(
                f"the anchors use only {len(real['features'])} images, all of their part: their distances are larger than "
                f"with {count} images"
            )
        if "JPEG" in images.key["format"]:
            self.notes.append("JPEG files: the compression itself changes every distance")

    def memorisation(self, samples: np.ndarray, images: ImageSet) -> dict[str, Any]:
        """Are samples copies of training images? Compare their distances to the nearest one with those of held-out images."""
        train, held_out = self.part_features("train", None)["features"], self.part_features("held_out", None)["features"]
        nearest, indices = distances.nearest(samples, train, 3)
        to_train, fresh = nearest[:, 0], distances.nearest(held_out, train, 1)[0][:, 0]
        self.save_neighbours(images, to_train, indices)
        limit = np.quantile(fresh, 0.01)
        return {
            "nearer": entry(distances.nearer(to_train, fresh), len(samples)),
            "as_near_as_1_percent": entry(distances.average((to_train <= limit).astype(float)), len(samples)),
            "median_distance": {SAMPLES: float(np.median(to_train)), "held-out images": float(np.median(fresh))},
            "smallest_distance": {SAMPLES: float(to_train.min()), "held-out images": float(fresh.min())},
            "train_images": len(train),
            "held_out_images": len(held_out),
        }

    def save_neighbours(self, images: ImageSet, to_train: np.ndarray, indices: np.ndarray) -> None:
        """Save a picture of samples, each followed by its three nearest training images.

        On the left are the eight samples nearest to training images, on the right the first eight samples.
        """
        closest = np.argsort(to_train, kind="stable")[:8]
        rows = np.stack([closest, np.arange(len(closest))], 1).ravel()
        neighbours, places = np.unique(indices[rows], return_inverse=True)
        near = pick(self.parts["train"], neighbours)[places.reshape(-1)].unflatten(0, (len(rows), -1))
        tiles = torch.cat([pick(images, rows)[:, None], near], 1)
        pictures.grid(tiles.flatten(0, 1), 2 * tiles.shape[1]).save(
            self.manifest.own(self.output / f"neighbours-{self.network.name}.png")
        )

    # ----------------------------------------------------------------------------------------------------------- first stage

    def reconstruct(self, first_stage: FirstStage, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 images (B, 3, H, W) -> their latents, and their reconstructions in uint8."""
        weight, config = next(first_stage.model.parameters()), first_stage.model.config
        images = batch[:, : config.in_channels]  # a grey first stage takes one of three equal channels
        latents, decoded = [], []
        for part in images.split(decoded_at_once(images[0, 0].numel() // first_stage.downscale**2)):
            latents.append(first_stage.encode(to_float(part.to(weight.device)).to(weight.dtype)))
            decoded.append(to_uint8(first_stage.decode(latents[-1])))
        return torch.cat(latents), torch.cat(decoded).expand(-1, 3, -1, -1)

    def first_stage(self, first_stage: FirstStage) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compare reconstructions of the held-out part with the held-out part.

        Returns:
            As `samples`.
        """
        config = self.config
        if config.reference != "held_out":
            raise UserError("a first stage is measured on the held-out part: remove --reference")
        limit = min(filter(None, (config.num_images, config.num_reference)), default=None)
        _, reference, description = self.reference(limit)
        count = len(reference)
        try:
            lpips = load_lpips().to(self.device)
        except UserError:
            lpips = None
            self.notes.append("no LPIPS: the weights of its VGG16 cannot be loaded")
        key = weights_stamp(config, first_stage.model)
        measure = functools.partial(self.measure_reconstructions, first_stage, lpips)
        settings = {**key, "lpips": lpips is not None}
        arrays = self.own_features(RECONSTRUCTIONS, self.part("held_out", limit), count, measure, **settings)
        compared = self.compare(arrays, reference, [name for name in config.chosen if name in ("fid", "kid")])
        metrics = {f"r{name}": measured for name, measured in compared.items()}
        for name in ("PSNR", "SSIM", "LPIPS"):
            if name in arrays:
                metrics[name] = entry(distances.average(arrays[name]), count)
        result: dict[str, Any] = {
            "reference": description,
            "figures": {name: {RECONSTRUCTIONS: measured} for name, measured in metrics.items()},
        }
        if "codes" in arrays:
            size = first_stage.model.config.num_vq_embeddings
            result["codebook"] = {**distances.codebook_use(arrays["codes"], size), "images": count}
        self.save_reconstructions(first_stage, min(16, count))
        return {**key, "count": count}, result

    @torch.no_grad()
    def measure_reconstructions(self, first_stage: FirstStage, lpips: nn.Module | None, batch: torch.Tensor) -> Arrays:
        """Features of a batch's reconstructions, and their quality per image."""
        latents, decoded = self.reconstruct(first_stage, batch)
        pair = decoded.float(), batch.to(decoded.device).float()
        ssim = structural_similarity_index_measure(*pair, data_range=255.0, reduction="none")
        assert isinstance(ssim, torch.Tensor)  # it returns more only if asked to
        arrays = {
            **self.network.embed(decoded),
            "PSNR": peak_signal_noise_ratio(*pair, data_range=255.0, dim=(1, 2, 3), reduction="none").cpu().numpy(),
            "SSIM": ssim.cpu().numpy(),
        }
        if lpips is not None:
            arrays["LPIPS"] = lpips(*(to_float(images) for images in pair)).flatten().cpu().numpy()
        if isinstance(first_stage.model, VQModel):
            arrays["codes"] = first_stage.codes(latents).flatten(1).int().cpu().numpy()
        return arrays

    def save_reconstructions(self, first_stage: FirstStage, count: int) -> None:
        """Save a picture of held-out images, each row above its reconstructions."""
        originals = pick(self.part("held_out", count), np.arange(count))
        decoded = self.reconstruct(first_stage, originals)[1].cpu()
        rows = [half for pair in zip(originals.split(8), decoded.split(8), strict=True) for half in pair]
        pictures.grid(torch.cat(rows), min(8, count)).save(self.manifest.own(self.output / "reconstructions.png"))


def entry(estimate: Estimate, images: int) -> dict[str, float]:
    """An estimate and its number of images, as JSON."""
    return {**estimate._asdict(), "images": images}
