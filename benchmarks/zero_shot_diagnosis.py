"""What holds unseen accuracy down: the texts, the number of seen classes, or the adversarial game?

    python -m benchmarks.zero_shot_diagnosis --recipe configs/zsl/flowers.yaml

Everything is measured on held-out SEEN classes, by the settings of a config, GAZSL beside the plain baselines:

    texts       the config's; random ones (nothing to know); oracle ones, made of the classes' own mean features (all there is)
    classes     training on the images of fewer seen classes
    critic      the visual pivot weighs 100 times as much, so that the critic hardly counts
    images      the nearest true class mean: what the features themselves allow
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
    """Class vectors (C, components) from the classes' mean features."""
    means = np.stack([data.features[data.labels == index].mean(0) for index in range(len(data.class_ids))])
    return text.reduce(means - means.mean(0), components)


def fewer(data: Dataset, share: float, seed: int, held_out: np.ndarray) -> Dataset:
    """The data set without the images of a part of the seen classes; held-out ones are kept, to be tested on."""
    others = np.setdiff1d(data.seen, held_out)
    kept = np.random.default_rng(seed).permutation(others)[: max(2, round(share * len(others)))]
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
    """Top-1 in percent on the held-out classes of one seed: for each setting of a baseline, and at each evaluation of GAZSL."""
    material = StageData.prepare(data, vectors, config, seed, "choose", "cpu")
    division = material.division
    among = np.arange(division.seen_classes, len(division.classes))

    def top1(classifier) -> float:
        return 100 * metrics.top1(classifier.predict(material.unseen.features, among), material.unseen.labels)

    args = (material.train.features, material.train.labels, material.vectors, division.seen_classes)
    found = {name: [top1(classifier) for _, classifier in make(*args)] for name, make in baselines.BASELINES.items()}
    game = Game(parse_method("gazsl"), 0.0, config, seed, material.training_set)
    found["gazsl"] = []
    for iteration in range(config.train.iterations):
        game.iterate(iteration)
        if (iteration + 1) % config.train.eval_steps == 0:
            generated = sample(game.generator, material.texts, config, seed)
            found["gazsl"].append(top1(classify.Classifier(generated, config.evaluate)))
    images, labels = material.unseen.features, material.unseen.labels
    means = classify.unit(np.stack([images[labels == index].mean(0) for index in among]))
    found["images"] = [100 * metrics.top1(among[(classify.unit(images) @ means.T).argmax(1)], labels)]
    return found


def main(recipe: str, choices: int = 8) -> None:
    """Print a table: each method's best setting or iteration in the mean over the choices, the deviation there, and differences
    between equal choices.

    Args:
        recipe: a config of `zsl train`.
        choices: how many choices of held-out seen classes.
    """
    train = parse(Train, "", ["--config", recipe])
    data = load(train.data.path, train.data.split, train.data.texts)
    vectors, _ = text.vectors(data.class_texts, train.text)
    pivots = copy.deepcopy(train)
    pivots.train.pivot_weight *= 100
    size = min(20, len(vectors) - 1, data.features.shape[1] - 1)
    random = classify.unit(np.random.default_rng(0).normal(size=(len(vectors), size)).astype(np.float32))
    rows: dict[str, list[dict[str, list[float]]]] = {}
    first = train.seed + train.seeds  # choices that the config's own runs do not meet
    for seed in tqdm(range(first, first + choices), desc="choices"):
        held_out = StageData.prepare(data, vectors, train, seed, "choose", "cpu").division
        held_out = held_out.classes[held_out.seen_classes :]
        tried = {
            "the config": (data, vectors, train),
            "random texts": (data, random, train),
            "oracle texts": (data, oracle(data, size), train),
            "hardly a critic": (data, vectors, pivots),
        }
        for share in (0.25, 0.5, 0.75):
            part = fewer(data, share, seed, held_out)
            tried[f"{share:.0%} of the seen classes"] = (part, vectors[np.isin(data.class_ids, part.class_ids)], train)
        for name, arguments in tried.items():
            rows.setdefault(name, []).append(accuracies(*arguments, seed))
    print(f"top-1 in percent on held-out seen classes (chance {100 / len(held_out):.1f}%), {choices} choices of them")
    print(f"{'':28s}" + "".join(f"{method:>14s}" for method in rows["the config"][0]) + "  gazsl minus the better baseline")
    for name, found in rows.items():
        best = {}
        for method in found[0]:
            each = np.array([one[method] for one in found])  # (choices, settings)
            best[method] = each[:, each.mean(0).argmax()]
        plain = max((best[method] for method in baselines.BASELINES), key=np.mean)
        cells = "".join(f"{each.mean():7.1f} ± {each.std(ddof=1):4.1f}" for each in (*best.values(), best["gazsl"] - plain))
        print(f"{name:28s}{cells}", flush=True)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False, prog="python -m benchmarks.zero_shot_diagnosis")
