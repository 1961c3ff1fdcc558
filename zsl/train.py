"""`python -m zsl train`: all methods and baselines, all seeds, both stages, then the report.

for each method:   choose on held-out seen classes, for each weight, with the first seed
                   train on all seen classes, for each weight, with the first seed
                   both with the other seeds, for the weight that each protocol has chosen
baselines:         the same two stages, for each seed
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyldm.config import parsing
from tinyldm.config.schema import HubConfig
from tinyldm.errors import UserError
from tinyldm.files import replace_text
from tinyldm.training import hub
from tinyldm.training.accelerator import default_device
from tinyldm.training.run_folder import RunFolder
from zsl import baselines, classify, pictures, report
from zsl import data as datasets
from zsl import text as texts
from zsl.config import Method, Train
from zsl.data import ClassTexts, Dataset
from zsl.job import Job, Material
from zsl.protocols import PROTOCOLS, Result, best, honest, published

MODEL = "model"  # the folder of what a user loads, and of what is pushed
MAY_CHANGE = ("output_dir", "resume", "overwrite", "method", "seeds", "device", "hub")  # in a run that goes on


def run(config: Train) -> str:
    """Train what is not trained yet, write results.csv and README.md, push; return what there is to say."""
    target = HubConfig(config.hub.push, config.hub.repo_id, config.hub.private)
    if target.push:
        hub.check_token(target)
    device = default_device(config.device)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {error}") from error
    data = datasets.load(config.data.path, config.data.split, config.data.texts)
    given = ClassTexts(data.class_ids, data.class_names, data.texts, data.articles)
    vectors, _ = texts.vectors(given, config.text, config.faithful)
    folder = RunFolder(config)
    try:
        _take_up(folder, config, _digest(data, vectors))
        experiment = Experiment(folder.path, config, data, vectors, device)
        results = experiment.run()
        drawn = draw(folder.path, config, data, vectors)
        report.write(folder.path, config, data, vectors, results, drawn)
    finally:
        folder.lock.release()
    said = f"{report.table(results)}\nThe report is {folder.path / 'README.md'}"
    if target.push:
        said += f"\npushed to {hub.push(folder.path, target, f'Zero-shot run {folder.path.resolve().name}')}"
    return said


def _digest(data: Dataset, vectors: np.ndarray) -> str:
    sums = hashlib.sha256()
    for array in (data.features, data.labels, data.unseen, vectors):
        sums.update(np.ascontiguousarray(array).tobytes())
    return sums.hexdigest()


def _take_up(folder: RunFolder, config: Train, digest: str) -> None:
    """Make sure that a run goes on under the settings and over the data that it began with.

    Raises:
        UserError: naming the keys that changed.
    """
    known = folder.path / "data.sha256"
    if config.resume and known.exists():
        old = parsing.read_yaml(folder.path / "config.yaml")
        new = parsing.to_dict(config)
        changed = [key for key in new if key not in MAY_CHANGE and old.get(key) != new[key]]
        if changed:
            told = ", ".join(f"{key} {old.get(key)} -> {new[key]}" for key in changed)
            raise UserError(
                f"changed since {folder.path} began: {told}; what is compared in a run has one setting: take another output_dir"
            )
        if known.read_text() != digest:
            raise UserError(f"{config.data.path} is not the data that {folder.path} began with: take another output_dir")
    if config.resume:
        folder.rewind(0)  # writes the config, in which methods and seeds may have been added
    replace_text(known, digest)
    (folder.path / "samples").rmdir()  # made for the pictures of other kinds of run


class Experiment:
    """All trainings of a run. `results` are written to results.csv as they come."""

    def __init__(self, folder: Path, config: Train, data: Dataset, vectors: np.ndarray, device: str):
        self.folder, self.config, self.data, self.vectors, self.device = folder, config, data, vectors, device
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.results: list[Result] = []
        self._kept: tuple[tuple[int, str], Material] | None = None

    def run(self) -> list[Result]:
        """Everything, the baselines first."""
        for seed in self.seeds:
            for name in baselines.BASELINES:
                choose, final = (self._baseline(name, seed, stage) for stage in ("choose", "final"))
                self._read(name, seed, dict.fromkeys(PROTOCOLS, (None, choose, final)), "setting")
        for method in self.config.methods:
            self._method(method)
        return self.results

    def _method(self, method: Method) -> None:
        first = self.seeds[0]
        grid = self.config.train.creativity_weights if method.divergence else [0.0]
        choose = {weight: self._train(method, first, "choose", weight) for weight in grid}
        # Each protocol searches by one figure: top-1 on held-out classes, or the AUC on the test classes, as published.
        by_choose = {weight: best(rows, "top1") for weight, rows in choose.items()}
        weight = max(grid, key=lambda weight: by_choose[weight]["top1"] if by_choose[weight] else -1.0)
        final = {w: self._train(method, first, "final", w, choose[w] if w == weight else None) for w in grid}
        auc = "auc" if self.data.seen_test is not None else "auc_train"
        by_final = {w: best(rows, auc) for w, rows in final.items()}
        flattering = max(grid, key=lambda w: by_final[w][auc] if by_final[w] else -1.0)
        for seed in self.seeds:
            if seed != first:
                choose = {weight: self._train(method, seed, "choose", weight)}
                final = {w: self._train(method, seed, "final", w, choose.get(w)) for w in dict.fromkeys((weight, flattering))}
            told = (weight, flattering) if method.divergence else (None, None)
            pairs = {"honest": (told[0], choose[weight], final[weight]), "published": (told[1], [], final[flattering])}
            self._read(method.name, seed, pairs, "iteration")

    def _train(
        self, method: Method, seed: int, stage: str, weight: float, choose: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """A job's figures. `choose`: export the generator of the iteration that was best there."""
        job = Job(self.folder, self.config, method, seed, stage, weight)
        done = job.result()
        if done is not None:
            return done
        chosen = best(choose or [], "top1")
        export = (chosen["iteration"], generator_file(self.folder, method.name, seed)) if chosen else None
        return job.run(self._material(seed, stage), export)

    def _baseline(self, name: str, seed: int, stage: str) -> list[dict[str, Any]]:
        material = self._material(seed, stage)
        division, train = material.division, material.train
        rows = []
        made = baselines.BASELINES[name](train.features, train.labels, material.vectors, division.seen_classes)
        for setting, classifier in made:
            images = (material.unseen, material.seen, train)
            figures = classify.figures(classifier, division.seen_classes, len(division.classes), *images)
            rows.append({"setting": " ".join(f"{key} {value:g}" for key, value in setting.items()), **figures})
        return rows

    def _material(self, seed: int, stage: str) -> Material:
        """Of one seed and stage; the last one is kept, since jobs of one kind follow each other."""
        if self._kept is None or self._kept[0] != (seed, stage):
            made = Material.of(self.data, self.vectors, self.config, seed, stage, self.device)
            self._kept = ((seed, stage), made)
        return self._kept[1]

    def _read(self, name: str, seed: int, pairs: dict[str, tuple[float | None, list, list]], where: str) -> None:
        """Add a method's results of one seed. `pairs`: protocol -> weight, figures to choose by, figures on test classes."""
        own_seen_test = self.data.seen_test is not None
        for protocol, (weight, choose, final) in pairs.items():
            found = honest(choose, final, where) if protocol == "honest" else published(final, own_seen_test)
            for metric, (value, row) in found.items():
                chosen = str(row[where]) if where == "setting" else f"iteration {row[where]}"
                self.results.append(Result(name, seed, protocol, metric, value, weight, chosen))
        report.write_results(self.folder, self.results)
        if not any(result.method == name and result.seed == seed for result in self.results):
            print(
                f"{name}, seed {seed}: the training broke down before its first evaluation; it has no results", file=sys.stderr
            )


def generator_file(folder: Path, method: str, seed: int) -> Path:
    """Where the generator lies that the honest protocol has chosen by top-1."""
    return folder / MODEL / method / f"seed-{seed}.safetensors"


def draw(folder: Path, config: Train, data: Dataset, vectors: np.ndarray) -> list[str]:
    """model/classes.npz, and the pictures of the first seed's chosen generators: their file names."""
    from zsl.evaluate import Chosen

    arrays = {
        "texts": vectors,
        "classes": data.class_ids,
        "class_names": np.array(data.class_names),
        "unseen_classes": data.class_ids[data.unseen],
    }
    datasets.write_npz(folder / MODEL / "classes.npz", arrays)
    curves, names = {}, []
    for method in config.methods:
        file = generator_file(folder, method.name, config.seed)
        if file.is_file():  # not where the training broke down
            chosen = Chosen(file, config, config.seed, data, ClassTexts(data.class_ids, data.class_names, vectors))
            if len(chosen.seen.labels):
                curves[method.name] = chosen.curve()
            names.append(f"features-{method.name}.png")
            chosen.picture(folder / names[-1], method.name)
    if curves:
        pictures.curves(folder / "curve.png", curves)
        names.insert(0, "curve.png")
    return names
