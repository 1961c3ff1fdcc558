"""`python -m zsl evaluate`: the chosen generators of a run, measured again; and what a run's pictures are drawn from.

Every generator is the one that the honest protocol has chosen by top-1 on held-out seen classes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tinyldm.config import parsing
from tinyldm.config.parsing import parse
from tinyldm.errors import UserError
from tinyldm.files import replace_text
from tinyldm.randomness import derive_seed
from zsl import classify, data, pictures, text
from zsl.config import Evaluate, Train
from zsl.data import ClassTexts, Dataset
from zsl.division import Scaling, divide
from zsl.job import sample
from zsl.models import Generator
from zsl.train import MODEL, generator_file

FIGURES = ("top1", "per_class_top1", "seen", "unseen", "h", "auc")


def run(config: Evaluate) -> str:
    """Measure, write evaluation.csv, curve.png and curve.csv, and return a table."""
    run = Path(config.run).expanduser()
    parsing.read_yaml(run / "config.yaml")  # says it well when this is no run
    train = parse(Train, "", ["--config", str(run / "config.yaml")])
    arrays = data.read_npz(run / MODEL / "classes.npz", ("texts", "classes", "class_names", "unseen_classes"))
    texts = ClassTexts.from_arrays(run / MODEL / "classes.npz", arrays)
    unseen = texts.index_of(arrays["unseen_classes"], "unseen_classes")
    if config.data:
        images = _given(config.data, texts, unseen)
    else:
        images = data.load(train.data.path, train.data.split, train.data.texts)
    lines, curves = ["method,seed,metric,value"], {}
    table = [f"{'method':24s} seed  " + "  ".join(f"{name:>14s}" for name in FIGURES)]
    for method in train.methods:
        for seed in range(train.seed, train.seed + train.seeds):
            file = generator_file(run, method.name, seed)
            if not file.is_file():
                continue
            chosen = Chosen(file, train, seed, images, texts)
            found = chosen.figures(everything=config.data is not None)
            lines += [f"{method.name},{seed},{name},{found[name]}" for name in FIGURES if name in found]
            cells = (f"{100 * found[name]:.2f}%" if name in found else "-" for name in FIGURES)
            table.append(f"{method.name:24s} {seed:4d}  " + "  ".join(f"{cell:>14s}" for cell in cells))
            if seed == train.seed and len(chosen.seen.labels):
                curves[method.name] = chosen.curve()
    if len(lines) == 1:
        raise UserError(f"{run} holds no generator yet: its training has not come to the end of a method")
    out = Path(config.output_dir or run / "evaluation")
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "evaluation.csv", "\n".join(lines) + "\n")
    if curves:
        pictures.curves(out / "curve.png", curves)
    return "\n".join([*table, f"in {out}"])


def _given(path: str, texts: ClassTexts, unseen: np.ndarray) -> Dataset:
    """Other images of a run's classes."""
    arrays = data.read_npz(Path(path).expanduser(), ("features", "labels"))
    labels = texts.index_of(arrays["labels"], f"labels in {path}")
    found = Dataset(
        Path(path).stem, arrays["features"].astype(np.float32), labels, texts.ids, texts.names, unseen, texts.vectors
    )
    if found.features.ndim != 2 or len(found.features) != len(labels) or not np.isfinite(found.features).all():
        raise UserError(f"{path}: features must be finite numbers, (images, dimensions), one label an image")
    if not np.isin(labels, unseen).any():
        raise UserError(f"{path}: no image is of an unseen class; there is nothing to test on")
    return found


class Chosen:
    """A generator of a run, with the images that it is measured on.

    Args:
        file: its safetensors.
        train, seed: the run's config, and which seed.
        images: a data set of the run's classes.
        texts: of all classes, in the order of `images`.
    """

    def __init__(self, file: Path, train: Train, seed: int, images: Dataset, texts: ClassTexts):
        self.train, self.seed, self.data = train, seed, images
        self.generator, self.scaling = load_generator(file, train)
        if images.features.shape[1] != self.generator.out.out_features:
            raise UserError(
                f"{images.name} has features of {images.features.shape[1]} numbers, but this run's have "
                f"{self.generator.out.out_features}: compute them by the same backbone"
            )
        self.division = divide(images, seed, train.data.held_out_images)
        own, seen = texts.vectors[self.division.classes], self.division.seen_classes
        self.texts = torch.from_numpy(text.conditions(own, seen, train.text.anchors, train.model.text_length))
        self.seen, self.unseen = self._images(self.division.seen_test), self._images(self.division.unseen_test)
        self.generated = sample(self.generator, self.texts, train, seed)
        self.classifier = classify.Classifier(self.generated, train.evaluate)

    def _images(self, rows: np.ndarray) -> classify.TestImages:
        return classify.TestImages(self.scaling.apply(self.data.features[rows]), self.division.labels[rows])

    def figures(self, everything: bool = False) -> dict[str, float]:
        """See classify.figures. `everything`: no image of this data set was trained on, so all of seen classes are tested."""
        if everything:
            rows = np.union1d(self.division.seen_test, self.division.train)
            self.seen = self._images(rows)
        division = self.division
        images = (self.unseen, self.seen, self.seen if len(self.seen.labels) else self._images(division.train))
        return classify.figures(self.classifier, division.seen_classes, len(division.classes), *images)

    def curve(self):
        """The seen-unseen curve."""
        return classify.curve(self.classifier, self.division.seen_classes, self.unseen, self.seen)

    def picture(self, file: Path, title: str) -> None:
        """pictures.features of unseen classes."""
        known, random = self.division.seen_classes, np.random.default_rng(derive_seed("picture", self.seed))
        count = pictures.CLASSES * pictures.POINTS
        pairs = np.stack([random.permutation(known)[:2] for _ in range(count)])
        share = torch.from_numpy(random.uniform(0.2, 0.8, (count, 1)).astype(np.float32))
        mixed = torch.nn.functional.normalize(share * self.texts[pairs[:, 0]] + (1 - share) * self.texts[pairs[:, 1]])
        mixed *= self.train.model.text_length
        one = replace(self.train, evaluate=replace(self.train.evaluate, samples_per_class=1))
        hallucinated = sample(self.generator, mixed, one, self.seed)[:, 0]
        names = [self.data.class_names[index] for index in self.division.classes[known:]]
        pictures.features(
            file, self.unseen.features, self.unseen.labels - known, self.generated[known:], hallucinated, names, title
        )


def load_generator(file: Path, train: Train) -> tuple[Generator, Scaling]:
    """What job.save_generator wrote, on the CPU.

    Raises:
        UserError: when it cannot be read or does not fit the config.
    """
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
            rows = opened.metadata()["rows"] == "True"
        scaling = Scaling(tensors.pop("scaling.shift").numpy(), tensors.pop("scaling.scale").numpy(), rows)
        model = train.model
        text_dim = tensors["text.weight" if model.text_size else "hidden.weight"].shape[1]
        text_dim -= 0 if model.text_size else model.noise_size
        size = tensors["out.weight"].shape[0]
        generator = Generator(text_dim, model.text_size, model.noise_size, model.hidden_size, size, train.faithful)
        generator.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{file} is no generator of this run ({error})") from error
    return generator.eval(), scaling
