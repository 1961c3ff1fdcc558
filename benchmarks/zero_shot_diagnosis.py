"""What limits accuracy on unseen classes: the texts, the number of seen classes, or the adversarial game?

    python -m benchmarks.zero_shot_diagnosis --recipe configs/zsl/flowers.yaml

All measurements use held-out SEEN classes and the settings of a config. GAZSL is compared with the plain baselines:

    texts       those of the config; random ones (no information); oracle ones from the mean features of the classes (all of it)
    classes     training on images of fewer seen classes
    critic      the visual pivot gets 100 times the weight, so that the critic has little influence
    images      the nearest true class mean, which is the limit set by the features
"""

import copy
from dataclasses import replace

import numpy as np
from tqdm.auto import tqdm

from tinyldm.config.parsing import parse
from zsl import baselines, classify, metrics, text
from zsl.config import Train, parse_method
from zsl.data import Dataset
from zsl.game import Game
from zsl.job import StageData, sample
from zsl.load import load


def oracle(data: Dataset, components: int) -> np.ndarray:
    """Class vectors (C, components) from the mean features of the classes."""
    means = np.stack([data.features[data.labels == index].mean(0) for index in range(len(data.class_ids))])
    return text.reduce(means - means.mean(0), components)


def fewer(data: Dataset, fraction: float, seed: int, held_out: np.ndarray) -> Dataset:
    """The data set with only a fraction of the seen classes. Held-out classes are kept for testing."""
    others = np.setdiff1d(data.seen, held_out)
    kept = np.random.default_rng(seed).permutation(others)[: max(2, round(fraction * len(others)))]
    classes = np.sort(np.concatenate([kept, held_out, data.unseen]))
    number = np.full(len(data.class_ids), -1)
    number[classes] = np.arange(len(classes))
    rows = number[data.labels] >= 0
    return replace(
        data,
        features=data.features[rows],
        labels=number[data.labels[rows]],
        class_ids=data.class_ids[classes],
        class_names=[data.class_names[i] for i in classes],
        unseen=number[data.unseen],
        texts=None if data.texts is None else data.texts[classes],
        articles=None if data.articles is None else [data.articles[i] for i in classes],
        validation_classes=number[held_out],
    )


def accuracies(data: Dataset, vectors: np.ndarray, config: Train, seed: int) -> dict[str, list[float]]:
    """Top-1 in percent on the held-out classes of one seed: a value per setting of a baseline and per evaluation of GAZSL."""
    stage = StageData.prepare(data, vectors, config, seed, "choose", "cpu")
    division = stage.division
    among = np.arange(division.seen_classes, len(division.classes))

    def top1(classifier: classify.Scorer) -> float:
        return 100 * metrics.top1(classifier.predict(stage.unseen.features, among), stage.unseen.labels)

    args = (stage.train.features, stage.train.labels, stage.vectors, division.seen_classes)
    accuracy = {name: [top1(classifier) for _, classifier in make(*args)] for name, make in baselines.BASELINES.items()}
    game = Game(parse_method("gazsl"), 0.0, config, seed, stage.training_set)
    accuracy["gazsl"] = []
    for iteration in range(config.train.iterations):
        game.iterate(iteration)
        if (iteration + 1) % config.train.eval_steps == 0:
            generated = sample(game.generator, stage.texts, config, seed)
            accuracy["gazsl"].append(top1(classify.Classifier(generated, config.evaluate)))
    images, labels = stage.unseen.features, stage.unseen.labels
    means = classify.unit(np.stack([images[labels == index].mean(0) for index in among]))
    accuracy["images"] = [100 * metrics.top1(among[(classify.unit(images) @ means.T).argmax(1)], labels)]
    return accuracy


def main(recipe: str, choices: int = 8) -> None:
    """Print a table: each method at the setting or iteration with the best mean over the choices, with deviation.

    The last column has the differences between equal choices.

    Args:
        recipe: a config for `zsl train`.
        choices: number of choices of held-out seen classes.
    """
    train = parse(Train, "", ["--config", recipe])
    data = load(train.data.path, train.data.split, train.data.texts)
    vectors, _ = text.vectors(data.class_texts, train.text)
    pivots = copy.deepcopy(train)
    pivots.train.pivot_weight *= 100
    size = min(20, len(vectors) - 1, data.features.shape[1] - 1)
    random = classify.unit(np.random.default_rng(0).normal(size=(len(vectors), size)).astype(np.float32))
    rows: dict[str, list[dict[str, list[float]]]] = {}
    first = train.seed + train.seeds  # choices that the runs of the config do not use
    for seed in tqdm(range(first, first + choices), desc="choices"):
        division = StageData.prepare(data, vectors, train, seed, "choose", "cpu").division
        held_out = division.classes[division.seen_classes :]
        variants = {
            "the config": (data, vectors, train),
            "random texts": (data, random, train),
            "oracle texts": (data, oracle(data, size), train),
            "weak critic": (data, vectors, pivots),
        }
        for fraction in (0.25, 0.5, 0.75):
            part = fewer(data, fraction, seed, held_out)
            variants[f"{fraction:.0%} of the seen classes"] = (part, vectors[np.isin(data.class_ids, part.class_ids)], train)
        for name, arguments in variants.items():
            rows.setdefault(name, []).append(accuracies(*arguments, seed))
    print(f"top-1 in percent on held-out seen classes (chance {100 / len(held_out):.1f}%), {choices} choices of classes")
    print(f"{'':28s}" + "".join(f"{method:>14s}" for method in rows["the config"][0]) + "  gazsl minus the better baseline")
    for name, choice_rows in rows.items():
        best: dict[str, np.ndarray] = {}
        for method in choice_rows[0]:
            each = np.array([row[method] for row in choice_rows])  # (choices, settings)
            best[method] = each[:, each.mean(0).argmax()]
        plain = max((best[method] for method in baselines.BASELINES), key=lambda each: float(each.mean()))
        cells = "".join(f"{each.mean():7.1f} ± {each.std(ddof=1):4.1f}" for each in (*best.values(), best["gazsl"] - plain))
        print(f"{name:28s}{cells}", flush=True)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False, prog="python -m benchmarks.zero_shot_diagnosis")
