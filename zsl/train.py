"""`python -m zsl train`: train all methods and baselines with all seeds in both stages, then write the report.

for each method:   stage `choose` (held-out seen classes), for each weight, with the first seed
                   stage `final` (all seen classes), for each weight, with the first seed
                   both stages with the other seeds, for the weight that each protocol selected
baselines:         both stages, for each seed
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from tinyldm.config import parsing
from tinyldm.config.schema import HubConfig
from tinyldm.errors import UserError
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest
from tinyldm.training import hub
from tinyldm.training.accelerator import default_device
from tinyldm.training.run_folder import RunFolder
from zsl import baselines, classify, pictures, report, text
from zsl.config import Method, Train
from zsl.data import Dataset, write_npz
from zsl.evaluate import ChosenGenerator
from zsl.job import MODEL, Job, StageData, generator_file
from zsl.load import load
from zsl.protocols import PROTOCOLS, Result, Row, best, best_value, honest, published

MAY_CHANGE = ("output_dir", "resume", "overwrite", "method", "seeds", "device", "hub")  # keys that may change on resume


def run(config: Train) -> str:
    """Run all trainings that are not finished, write results.csv and README.md, push, and return the tables."""
    hub_config = HubConfig(config.hub.push, config.hub.repo_id, config.hub.private)
    if hub_config.push:
        hub.check_token(hub_config)
    device = default_device(config.device)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used ({error}); set device to another one, such as cpu") from error
    folder = RunFolder(config)
    try:
        data = load(config.data.path, config.data.split, config.data.texts)
        vectors, _ = text.vectors(data.class_texts, config.text, config.faithful)
        folder.start()
        _start_or_resume(folder, config, _digest(data, vectors))
        results = Experiment(folder.path, config, data, vectors, device).run()
        save_classes(folder.path, data, vectors)
        report.write(folder.path, config, data, vectors, results, draw(folder.path, config, data, vectors))
    finally:
        folder.release()
    message = f"{report.table(results)}\nThe report is {folder.path / 'README.md'}"
    if hub_config.push:
        message += f"\npushed to {hub.push(folder.path, hub_config, f'Zero-shot run {folder.path.resolve().name}')}"
    return message


def _digest(data: Dataset, vectors: np.ndarray) -> str:
    sums = hashlib.sha256()
    for array in (data.features, data.labels, data.unseen, vectors):
        sums.update(np.ascontiguousarray(array).tobytes())
    return sums.hexdigest()


def _start_or_resume(folder: RunFolder, config: Train, digest: str) -> None:
    """Check that a resumed run has the same settings and data as before, and record them.

    Raises:
        UserError: if a key changed (the message names it) or the data changed.
    """
    known = folder.path / "data.sha256"
    if config.resume and known.exists():
        old = parsing.read_yaml(folder.path / "config.yaml")
        new = parsing.to_dict(config)
        changed = [f"{key} {old.get(key)} -> {new[key]}" for key in new if key not in MAY_CHANGE and old.get(key) != new[key]]
        if changed:
            raise UserError(
                f"changed since {folder.path} was started: {', '.join(changed)}; "
                "all methods of a run need the same settings: use another output_dir"
            )
        if known.read_text() != digest:
            raise UserError(f"{config.data.path} is not the data that {folder.path} was started with: use another output_dir")
    if config.resume:
        folder.rewind(0)  # writes the config, which may have more methods or seeds now
    replace_text(folder.manifest.own(known), digest)


class Experiment:
    """All trainings of a run. `results` is written to results.csv after each of them."""

    def __init__(self, folder: Path, config: Train, data: Dataset, vectors: np.ndarray, device: str):
        self.folder, self.config, self.data, self.vectors, self.device = folder, config, data, vectors, device
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.results: list[Result] = []
        self._cached: tuple[tuple[int, str], StageData] | None = None

    def run(self) -> list[Result]:
        """Train everything, baselines first."""
        for seed in self.seeds:
            for name in baselines.BASELINES:
                choose, final = (self._baseline(name, seed, stage) for stage in ("choose", "final"))
                self._add_results(name, seed, dict.fromkeys(PROTOCOLS, (None, choose, final)), "setting")
        for method in self.config.methods:
            self._method(method)
        return self.results

    def _method(self, method: Method) -> None:
        first = self.seeds[0]
        grid = self.config.train.creativity_weights if method.divergence else [0.0]
        choose = {weight: self._train(method, first, "choose", weight) for weight in grid}
        # Each protocol selects a weight by one metric: top-1 on held-out classes, or as published the AUC on the test classes.
        chosen = max(grid, key=lambda weight: best_value(choose[weight], "top1"))
        final = {w: self._train(method, first, "final", w, choose[w] if w == chosen else None) for w in grid}
        auc = "auc" if self.data.seen_test is not None else "auc_train"
        best_on_test = max(grid, key=lambda weight: best_value(final[weight], auc))
        for seed in self.seeds:
            if seed != first:
                choose = {chosen: self._train(method, seed, "choose", chosen)}
                weights = dict.fromkeys((chosen, best_on_test))
                final = {w: self._train(method, seed, "final", w, choose.get(w)) for w in weights}
            reported = (chosen, best_on_test) if method.divergence else (None, None)
            rows = {"honest": (reported[0], choose[chosen], final[chosen]), "published": (reported[1], [], final[best_on_test])}
            self._add_results(method.name, seed, rows, "iteration")

    def _train(self, method: Method, seed: int, stage: str, weight: float, choose: list[Row] | None = None) -> list[Row]:
        """Run a job and return its metrics. `choose`: export the generator of the iteration that is best in these rows."""
        job = Job(self.folder, self.config, method, seed, stage, weight)
        finished = job.result()
        if finished is not None:
            return finished
        chosen = best(choose or [], "top1")
        export = (chosen["iteration"], generator_file(self.folder, method.name, seed)) if chosen else None
        return job.run(self._stage_data(seed, stage), export)

    def _baseline(self, name: str, seed: int, stage: str) -> list[Row]:
        data = self._stage_data(seed, stage)
        division, train = data.division, data.train
        rows = []
        classifiers = baselines.BASELINES[name](train.features, train.labels, data.vectors, division.seen_classes)
        for setting, classifier in classifiers:
            images = (data.unseen, data.seen, train)
            values = classify.measure(classifier, division.seen_classes, len(division.classes), *images)
            rows.append({"setting": " ".join(f"{key} {value:g}" for key, value in setting.items()), **values})
        return rows

    def _stage_data(self, seed: int, stage: str) -> StageData:
        """The data of one seed and stage. The last one is cached, since consecutive jobs share it."""
        if self._cached is None or self._cached[0] != (seed, stage):
            data = StageData.prepare(self.data, self.vectors, self.config, seed, stage, self.device)
            self._cached = ((seed, stage), data)
        return self._cached[1]

    def _add_results(
        self, name: str, seed: int, rows: dict[str, tuple[float | None, list[Row], list[Row]]], where: str
    ) -> None:
        """Add the results of one method and seed.

        Args:
            rows: protocol -> weight, rows of stage `choose`, rows of stage `final`.
            where: the key of a row that was chosen: iteration or setting.
        """
        own_seen_test = self.data.seen_test is not None
        for protocol, (weight, choose, final) in rows.items():
            selected = honest(choose, final, where) if protocol == "honest" else published(final, own_seen_test)
            for metric, (value, row) in selected.items():
                chosen = str(row[where]) if where == "setting" else f"iteration {row[where]}"
                self.results.append(Result(name, seed, protocol, metric, value, weight, chosen))
        report.write_results(self.folder, self.results)
        if not any(result.method == name and result.seed == seed for result in self.results):
            print(f"{name}, seed {seed}: training diverged before its first evaluation and has no results", file=sys.stderr)


def save_classes(folder: Path, data: Dataset, vectors: np.ndarray) -> None:
    """Write model/classes.npz: text vectors, ids and names of the classes, and which are unseen."""
    arrays = {
        "texts": vectors,
        "classes": data.class_ids,
        "class_names": np.array(data.class_names),
        "unseen_classes": data.class_ids[data.unseen],
    }
    write_npz(Manifest(folder).own(folder / MODEL / "classes.npz"), arrays)


def draw(folder: Path, config: Train, data: Dataset, vectors: np.ndarray) -> list[str]:
    """Draw pictures of the chosen generators of the first seed, and return the file names."""
    curves, names = {}, []
    for method in config.methods:
        file = generator_file(folder, method.name, config.seed)
        if file.is_file():  # missing if the training diverged
            chosen = ChosenGenerator(file, config, config.seed, data, vectors)
            if len(chosen.seen.labels):
                curves[method.name] = chosen.curve()
            names.append(f"features-{method.name}.png")
            chosen.picture(Manifest(folder).own(folder / names[-1]), method.name)
    if curves:
        Manifest(folder).own(folder / "curve.csv")
        pictures.curves(Manifest(folder).own(folder / "curve.png"), curves)
        names.insert(0, "curve.png")
    return names
