"""One training job: one method, seed, stage and creativity weight.

    jobs/cizsl/seed-0/choose-0.1/     trained without the held-out seen classes, and tested on them
    jobs/cizsl/seed-0/final-0.1/      trained on all seen classes, and tested on the unseen ones

A job writes result.json with the metrics of each evaluation. An interrupted job resumes exactly from its last checkpoint.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from tinyldm.errors import UserError, boundary
from tinyldm.files import open_to_others, replace_text
from tinyldm.limits import check_finite
from tinyldm.manifest import Manifest
from tinyldm.randomness import derive_seed
from tinyldm.training import checkpoint
from zsl import classify, text
from zsl.config import Method, Train
from zsl.data import Dataset
from zsl.division import Division, Scaling, divide
from zsl.game import Game, TrainingSet
from zsl.models import Generator
from zsl.protocols import Row

MODEL = "model"  # the subfolder with the files that a user loads


@dataclass
class StageData:
    """The data that all trainings of one seed and stage share: division, scaling, texts and images.

    Attributes:
        vectors: text vectors of the classes, in the order of the division (K + U, T).
        texts: input of the generator for these classes.
        training_set: training images, on the device.
        unseen, seen, train: scaled images for the classifier.
    """

    division: Division
    scaling: Scaling
    vectors: np.ndarray
    texts: torch.Tensor
    training_set: TrainingSet
    unseen: classify.TestImages
    seen: classify.TestImages
    train: classify.TestImages

    @classmethod
    def prepare(cls, data: Dataset, vectors: np.ndarray, config: Train, seed: int, stage: str, device: str) -> "StageData":
        """Divide and scale a data set.

        Args:
            vectors: text vectors of all classes, in the order of the data set (C, T).
            stage: `choose` or `final`.

        Raises:
            UserError: if a batch is larger than the training part.
        """
        held_out_classes = config.data.held_out_classes if stage == "choose" else None
        division = divide(data, seed, config.data.held_out_images, held_out_classes)
        if len(division.train) < config.train.batch_size:
            raise UserError(
                f"train.batch_size {config.train.batch_size} is larger than the data: there are {len(division.train)} images "
                "to train on; use smaller batches"
            )
        scaling = Scaling.fit(config.preprocessing, data.features[division.train])
        own = vectors[division.classes]
        conditions = text.conditions(own, division.seen_classes, config.text.anchors, config.model.text_length)
        texts = torch.from_numpy(conditions).to(device)

        def part(rows: np.ndarray) -> classify.TestImages:
            return classify.TestImages(scaling.apply(data.features[rows]), division.labels[rows])

        train = part(division.train)
        training_set = TrainingSet(
            torch.from_numpy(train.features).to(device),
            torch.from_numpy(train.labels).to(device),
            texts[: division.seen_classes],
        )
        return cls(division, scaling, own, texts, training_set, part(division.unseen_test), part(division.seen_test), train)


class Job:
    """One training. `folder` is its place in the run folder."""

    def __init__(self, run: Path, config: Train, method: Method, seed: int, stage: str, weight: float):
        self.config, self.method, self.seed, self.stage, self.weight = config, method, seed, stage, weight
        label = stage if method.divergence is None else f"{stage}-{weight:g}"
        self.run_manifest = Manifest(run)
        self.folder = run / "jobs" / method.name / f"seed-{seed}" / label

    def result(self) -> list[Row] | None:
        """The metrics, one row per evaluation. None: the job is not finished. No rows: it diverged before an evaluation."""
        try:
            return json.loads((self.folder / "result.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"{self.folder / 'result.json'} is damaged ({error}); delete it and run the command again to repeat the job"
            ) from error

    def run(self, data: StageData, export: tuple[int, Path] | None = None) -> list[Row]:
        """Train, or resume training, and return the result.

        Args:
            export: an iteration, and the file in which to save its generator.
        """
        finished = self.result()
        if finished is not None:
            return finished
        self.run_manifest.own_folder(self.folder)
        train = self.config.train
        game = Game(self.method, self.weight, self.config, self.seed, data.training_set)
        rows: list[Row] = []
        start = 0
        if folder := checkpoint.find(self.folder, "latest"):
            networks, optimizers, state = checkpoint.load(folder)
            game.restore(networks, optimizers)
            start, rows = state["iteration"], state["rows"]
        label = f"{self.method.name} seed {self.seed} {self.folder.name}"
        with tqdm(total=train.iterations, initial=start, desc=label, unit="it", dynamic_ncols=True, mininterval=0.5) as bar:
            for iteration in range(start + 1, train.iterations + 1):
                game.iterate(iteration - 1)
                bar.update()
                if iteration % train.eval_steps == 0:
                    values = self._evaluate(game.generator, data)
                    if values is None:
                        bar.write(f"{label}: the generator is not finite at iteration {iteration}; training stops")
                        break
                    rows.append({"iteration": iteration, **values})
                    bar.set_postfix_str(f"top-1 {100 * values['top1']:.1f}%")
                    if export and iteration == export[0]:
                        save_generator(game.generator, data.scaling, self.run_manifest.own(export[1]))
                if iteration % train.checkpointing_steps == 0 and iteration < train.iterations:
                    optimizers = {name: optimizer.state_dict() for name, optimizer in game.optimizers.items()}
                    state = {"iteration": iteration, "rows": rows}
                    checkpoint.save(self.folder, iteration, game.networks(), optimizers, state)
                    checkpoint.prune(self.folder, keep=1, best=None)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(Manifest(self.folder).own(self.folder / "result.json"), json.dumps(rows))
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return rows

    def _evaluate(self, generator: Generator, data: StageData) -> dict[str, float] | None:
        generated = sample(generator, data.texts, self.config, self.seed)
        if not np.isfinite(generated).all():
            return None
        classifier = classify.Classifier(generated, self.config.evaluate)
        division = data.division
        return classify.measure(classifier, division.seen_classes, len(division.classes), data.unseen, data.seen, data.train)


def sample(generator: Generator, texts: torch.Tensor, config: Train, seed: int) -> np.ndarray:
    """Generate features (C, S, D) from texts (C, T). The noise depends only on the seed, not on method or evaluation."""
    random = torch.Generator().manual_seed(derive_seed("zsl", seed, "evaluate"))
    shape = (len(texts), config.evaluate.samples_per_class, generator.noise_size)
    return classify.generate(generator, texts, torch.randn(shape, generator=random).to(texts.device))


def generator_file(run: Path, method: str, seed: int) -> Path:
    """The file of the generator that the honest protocol chose by top-1."""
    return run / MODEL / method / f"seed-{seed}.safetensors"


def save_generator(generator: Generator, scaling: Scaling, file: Path) -> None:
    """Save weights and scaling in one safetensors file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in generator.state_dict().items()}
    tensors |= {"scaling.shift": torch.from_numpy(scaling.shift), "scaling.scale": torch.from_numpy(scaling.scale)}
    temporary = file.with_name(f".{file.name}")
    save_file(tensors, temporary, {"rows": str(scaling.rows)})
    open_to_others(temporary)
    temporary.replace(file)


def load_generator(file: Path, train: Train) -> tuple[Generator, Scaling]:
    """Load the file of `save_generator` on the CPU.

    Args:
        train: config of the run.

    Raises:
        UserError: if the file cannot be read or does not match the config.
    """
    with boundary(f"{file} is not a generator of this run", "train the run again"):
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is not a dict)
            rows = opened.metadata()["rows"] == "True"
        check_finite(tensors)
        scaling = Scaling(tensors.pop("scaling.shift").numpy(), tensors.pop("scaling.scale").numpy(), rows)
        model = train.model
        text_dim = tensors["text.weight" if model.text_size else "hidden.weight"].shape[1]
        text_dim -= 0 if model.text_size else model.noise_size
        size = tensors["out.weight"].shape[0]
        generator = Generator(text_dim, model.text_size, model.noise_size, model.hidden_size, size, train.faithful)
        generator.load_state_dict(tensors)
    return generator.eval(), scaling
