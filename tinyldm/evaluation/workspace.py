"""What every measurement of one call of evaluate.py shares: real images, features, and the output folder."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from tinyldm.config import parsing
from tinyldm.config.evaluate import Evaluate
from tinyldm.config.paths import refuse_inputs_inside, refuse_output_inside
from tinyldm.config.schema import DataConfig
from tinyldm.data.identity import describe_part, hub_id
from tinyldm.data.sources import Source, open_sources
from tinyldm.errors import UserError, boundary
from tinyldm.files import difference
from tinyldm.limits import read_arrays
from tinyldm.manifest import Manifest, list_in_run, named
from tinyldm.metrics import distances, features
from tinyldm.metrics.chunks import Arrays, Chunks
from tinyldm.metrics.distances import Estimate
from tinyldm.metrics.features import FeatureNetwork
from tinyldm.metrics.image_sets import RANDOM, ImageSet, data_part, embed, embed_part, part_labels, random_part
from tinyldm.training.accelerator import default_device

SAMPLES, REAL, RECONSTRUCTIONS = "samples", "real images", "reconstructions"  # the columns of the table
OTHER = {"train": "held_out", "held_out": "train"}
REFERENCES = "reference-*.npz"
FILES = (  # written to output_dir
    *(
        "evaluation.json",
        "likelihood.json",
        "samples.png",
        "reconstructions.png",
        "neighbours-*.png",
        "labels.png",
        "guidance.png",
        "sweep.png",
    ),
    REFERENCES,
)
FOLDERS = ("drawn", "features", "sheets", "sweep")
START_OVER = "choose another output_dir, or use --overwrite true"


class Workspace:
    """The inputs and outputs of one call of evaluate.py.

    Attributes:
        notes: what limits the comparison, for the report.
    """

    def __init__(self, config: Evaluate):
        self.config, self.output = config, Path(config.output_dir)
        self.manifest = Manifest(self.output)
        self.device = default_device(config.device)
        self.notes: list[str] = []

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

    def part_labels(self, part: str, limit: int | None) -> np.ndarray:
        """The labels (N, A) of the same images as those of part_features, in the columns of Source.labels."""
        return part_labels(self.sources[part], *self.of_part(part), limit)

    def reference(self, limit: int | None) -> tuple[str, np.ndarray, dict[str, Any]]:
        """The reference: its part, the features (M, D) of `limit` random images of it (None: all), and its description."""
        config = self.config
        file = Path(config.reference).expanduser()
        if config.anchors or {"memorisation", "labels"} & set(config.chosen):
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


def entry(estimate: Estimate, images: int) -> dict[str, float]:
    """An estimate and its number of images, as JSON."""
    return {**estimate._asdict(), "images": images}
