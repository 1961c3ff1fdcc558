"""`python -m zsl evaluate`: evaluate the chosen generators of a run again. The pictures of a run are also made from them.

The honest protocol chose each generator by top-1 on held-out seen classes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tinyldm.config import parsing
from tinyldm.config.parsing import parse
from tinyldm.errors import UserError
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest, list_in_run
from tinyldm.randomness import derive_seed
from zsl import classify, data, pictures, text
from zsl.config import Evaluate, Train
from zsl.data import ClassTexts, Dataset
from zsl.division import divide
from zsl.job import MODEL, generator_file, load_generator, sample
from zsl.load import load
from zsl.metrics import Curve

COLUMNS = ("top1", "per_class_top1", "seen", "unseen", "h", "auc")


def run(config: Evaluate) -> str:
    """Write evaluation.csv, curve.png and curve.csv, and return a table."""
    run = Path(config.run).expanduser()
    parsing.read_yaml(run / "config.yaml")  # has a clear error message if this is not a run folder
    train = parse(Train, "", ["--config", str(run / "config.yaml")])
    file = run / MODEL / "classes.npz"
    arrays = data.read_npz(file, ("texts", "classes", "class_names", "unseen_classes"))
    texts = ClassTexts.from_arrays(file, arrays)
    assert texts.vectors is not None
    if config.data:
        images = _other_images(config.data, texts, texts.index_of(arrays["unseen_classes"], "unseen_classes"))
    else:
        images = load(train.data.path, train.data.split, train.data.texts)
    lines, curves = ["method,seed,metric,value"], {}
    table = [f"{'method':24s} seed  " + "  ".join(f"{name:>14s}" for name in COLUMNS)]
    for method in train.methods:
        for seed in range(train.seed, train.seed + train.seeds):
            file = generator_file(run, method.name, seed)
            if not file.is_file():
                continue
            chosen = ChosenGenerator(file, train, seed, images, texts.vectors)
            values = chosen.measure(all_seen_images=config.data is not None)
            lines += [f"{method.name},{seed},{name},{values[name]}" for name in COLUMNS if name in values]
            cells = (f"{100 * values[name]:.2f}%" if name in values else "-" for name in COLUMNS)
            table.append(f"{method.name:24s} {seed:4d}  " + "  ".join(f"{cell:>14s}" for cell in cells))
            if seed == train.seed and len(chosen.seen.labels):
                curves[method.name] = chosen.curve()
    if len(lines) == 1:
        raise UserError(f"{run} holds no generator yet: no method has finished training; resume it with --resume latest")
    out = Path(config.output_dir or run / "evaluation")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {out} cannot be written ({error.strerror}); choose another") from error
    Manifest(out).claim(out / name for name in ("evaluation.csv", "curve.png", "curve.csv"))
    list_in_run(out)
    replace_text(out / "evaluation.csv", "\n".join(lines) + "\n")
    if curves:
        pictures.curves(out / "curve.png", curves)
    return "\n".join([*table, f"written to {out}"])


def _other_images(path: str, texts: ClassTexts, unseen: np.ndarray) -> Dataset:
    """Other images of the classes of a run."""
    arrays = data.read_npz(Path(path).expanduser(), ("features", "labels"))
    labels = texts.index_of(arrays["labels"], f"labels in {path}")
    features = arrays["features"].astype(np.float32)
    if features.ndim != 2 or len(features) != len(labels) or not np.isfinite(features).all():
        raise UserError(f"{path}: features must be finite numbers (images, dimensions), with one label per image")
    if not np.isin(labels, unseen).any():
        raise UserError(f"{path}: no image is of an unseen class, so there is nothing to test on; add some")
    return Dataset(Path(path).stem, features, labels, texts.ids, texts.names, unseen, texts.vectors)


class ChosenGenerator:
    """A chosen generator of a run, and the images to evaluate it on.

    Args:
        file: safetensors file of the generator.
        train, seed: config of the run, and seed of the generator.
        images: a data set with the classes of the run.
        vectors: text vectors of all classes, in the order of `images` (C, T).
    """

    def __init__(self, file: Path, train: Train, seed: int, images: Dataset, vectors: np.ndarray):
        self.train, self.seed, self.data = train, seed, images
        self.generator, self.scaling = load_generator(file, train)
        if images.features.shape[1] != self.generator.out.out_features:
            raise UserError(
                f"{images.name} has features of size {images.features.shape[1]}, but those of this run have size "
                f"{self.generator.out.out_features}: compute them with the same backbone"
            )
        self.division = divide(images, seed, train.data.held_out_images)
        own, seen = vectors[self.division.classes], self.division.seen_classes
        self.texts = torch.from_numpy(text.conditions(own, seen, train.text.anchors, train.model.text_length))
        self.seen, self.unseen = self._images(self.division.seen_test), self._images(self.division.unseen_test)
        self.generated = sample(self.generator, self.texts, train, seed)
        self.classifier = classify.Classifier(self.generated, train.evaluate)

    def _images(self, rows: np.ndarray) -> classify.TestImages:
        return classify.TestImages(self.scaling.apply(self.data.features[rows]), self.division.labels[rows])

    def measure(self, all_seen_images: bool = False) -> dict[str, float]:
        """See classify.measure.

        Args:
            all_seen_images: test on all images of seen classes, because none of these images was used for training.
        """
        division = self.division
        if all_seen_images:
            self.seen = self._images(np.union1d(division.seen_test, division.train))
        images = (self.unseen, self.seen, self.seen if len(self.seen.labels) else self._images(division.train))
        return classify.measure(self.classifier, division.seen_classes, len(division.classes), *images)

    def curve(self) -> Curve:
        """The seen-unseen curve."""
        return classify.curve(self.classifier, self.division.seen_classes, self.unseen, self.seen)

    def picture(self, file: Path, title: str) -> None:
        """Draw pictures.features for the unseen classes."""
        known, random = self.division.seen_classes, np.random.default_rng(derive_seed("picture", self.seed))
        count = pictures.CLASSES * pictures.POINTS
        pairs = np.stack([random.permutation(known)[:2] for _ in range(count)])
        share = torch.from_numpy(random.uniform(0.2, 0.8, (count, 1)).astype(np.float32))
        mixed = torch.nn.functional.normalize(share * self.texts[pairs[:, 0]] + (1 - share) * self.texts[pairs[:, 1]])
        mixed *= self.train.model.text_length
        one_sample = replace(self.train, evaluate=replace(self.train.evaluate, samples_per_class=1))
        hallucinated = sample(self.generator, mixed, one_sample, self.seed)[:, 0]
        names = [self.data.class_names[index] for index in self.division.classes[known:]]
        pictures.features(
            file, self.unseen.features, self.unseen.labels - known, self.generated[known:], hallucinated, names, title
        )
