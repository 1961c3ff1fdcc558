"""One training of one method: a method, a seed, a weight, and either to choose by or to be tested.

    jobs/cizsl/seed-0/choose-0.1/     on the seen classes that are not held out, tested on those that are
    jobs/cizsl/seed-0/final-0.1/      on all seen classes, tested on the unseen ones

It leaves result.json: its figures at each evaluation. Killed, it goes on from its last checkpoint, exactly.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from tinyldm.errors import UserError
from tinyldm.files import replace_text
from tinyldm.randomness import derive_seed
from tinyldm.training import checkpoint
from zsl import classify, text
from zsl.config import Method, Train
from zsl.data import Dataset
from zsl.division import Division, Scaling, divide
from zsl.game import Game, TrainingSet
from zsl.models import Generator


@dataclass
class Material:
    """What one seed's trainings of one stage share: the division, the scaling, and the images on the device.

    Attributes:
        vectors: texts of the classes, in the division's order (K + U, T).
        texts: what the generator is given of them.
        unseen, seen, train: scaled test images, and the training ones as images to be classified.
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
    def of(cls, data: Dataset, vectors: np.ndarray, config: Train, seed: int, stage: str, device: str) -> "Material":
        """Args: vectors: class texts (C, T), in the data set's order. stage: `choose` or `final`.

        Raises:
            UserError: for a batch that is larger than the training part.
        """
        held_out_classes = config.data.held_out_classes if stage == "choose" else None
        division = divide(data, seed, config.data.held_out_images, held_out_classes)
        if len(division.train) < config.train.batch_size:
            raise UserError(
                f"train.batch_size {config.train.batch_size} is larger than the data: {len(division.train)} images to train on"
            )
        scaling = Scaling.fit(config.preprocessing, data.features[division.train])
        own = vectors[division.classes]
        given = text.conditions(own, division.seen_classes, config.text.anchors, config.model.text_length)
        texts = torch.from_numpy(given).to(device)

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
    """See the module. `name` is its folder below the run."""

    def __init__(self, run: Path, config: Train, method: Method, seed: int, stage: str, weight: float):
        self.config, self.method, self.seed, self.stage, self.weight = config, method, seed, stage, weight
        label = stage if method.divergence is None else f"{stage}-{weight:g}"
        self.folder = run / "jobs" / method.name / f"seed-{seed}" / label

    def result(self) -> list[dict[str, float]] | None:
        """Its figures, a row an evaluation, if it is done; without rows it broke down before the first."""
        try:
            return json.loads((self.folder / "result.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"{self.folder / 'result.json'} is damaged ({error}); delete it: the job is then done again"
            ) from error

    def run(self, material: Material, export: tuple[int, Path] | None = None) -> list[dict[str, float]]:
        """Train, or go on, and return `result`.

        Args:
            export: an iteration, and the file to which its generator is written.
        """
        done = self.result()
        if done is not None:
            return done
        train = self.config.train
        game = Game(self.method, self.weight, self.config, self.seed, material.training_set)
        rows: list[dict[str, float]] = []
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
                    figures = self._evaluate(game.generator, material)
                    if figures is None:
                        bar.write(f"{label}: the generator is not finite at iteration {iteration}; stopped there")
                        break
                    rows.append({"iteration": iteration, **figures})
                    bar.set_postfix_str(f"top-1 {100 * figures['top1']:.1f}%")
                    if export and iteration == export[0]:
                        save_generator(game.generator, material.scaling, export[1])
                if iteration % train.checkpointing_steps == 0 and iteration < train.iterations:
                    optimizers = {name: optimizer.state_dict() for name, optimizer in game.optimizers.items()}
                    state = {"iteration": iteration, "rows": rows}
                    checkpoint.save(self.folder, iteration, game.networks(), optimizers, state)
                    checkpoint.prune(self.folder, keep=1, best=None)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / "result.json", json.dumps(rows))
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return rows

    def _evaluate(self, generator: Generator, material: Material) -> dict[str, float] | None:
        generated = sample(generator, material.texts, self.config, self.seed)
        if not np.isfinite(generated).all():
            return None
        classifier = classify.Classifier(generated, self.config.evaluate)
        division = material.division
        return classify.figures(
            classifier, division.seen_classes, len(division.classes), material.unseen, material.seen, material.train
        )


def sample(generator: Generator, texts: torch.Tensor, config: Train, seed: int) -> np.ndarray:
    """Generated features (C, S, D) of texts (C, T), from the same noise at each evaluation of a seed and for each method."""
    random = torch.Generator().manual_seed(derive_seed("zsl", seed, "evaluate"))
    shape = (len(texts), config.evaluate.samples_per_class, generator.noise_size)
    return classify.generate(generator, texts, torch.randn(shape, generator=random).to(texts.device))


def save_generator(generator: Generator, scaling: Scaling, file: Path) -> None:
    """Weights and scaling as one safetensors file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in generator.state_dict().items()}
    tensors |= {"scaling.shift": torch.from_numpy(scaling.shift), "scaling.scale": torch.from_numpy(scaling.scale)}
    aside = file.with_name(f".{file.name}")
    save_file(tensors, aside, {"rows": str(scaling.rows)})
    aside.replace(file)
