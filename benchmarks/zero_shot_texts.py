"""Compare text representations with the two plain baselines on held-out SEEN classes, over many choices of classes.

    python -m benchmarks.zero_shot_texts --path ../shared/data/flowers-zsl --encoder PATH_OR_HUB_ID

No images of unseen classes are used. Each choice holds out as many seen classes as there are unseen ones, so that
chance is the same. Each baseline uses the setting with the best mean over the choices.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tinyldm.errors import UserError, one_line_errors
from zsl import baselines, metrics, text
from zsl.config import TextConfig
from zsl.data import ClassTexts
from zsl.division import Scaling, divide
from zsl.load import load

PLAIN = TextConfig()
REPRESENTATIONS = {
    "TF-IDF, counts": TextConfig(sublinear=False),
    "TF-IDF, 1 + log(count)": PLAIN,
    "... of terms in 3 articles or more": replace(PLAIN, min_df=3),
    "... LSA of 10": replace(PLAIN, components=10),
    "... LSA of 20": replace(PLAIN, components=20),
    "... LSA of 40": replace(PLAIN, components=40),
}


def representations(emphasised: str, encoder: str | None) -> dict[str, TextConfig]:
    """Name -> config of each representation."""
    configs, terms = dict(REPRESENTATIONS), f"TF-IDF, terms of {Path(emphasised).name}"
    configs |= {f"{terms} x {factor:g}": replace(PLAIN, emphasised=emphasised, emphasis=factor) for factor in (2.0, 4.0, 8.0)}
    heavy = replace(PLAIN, emphasised=emphasised)
    configs["... x 4, LSA of 20"] = replace(heavy, components=20)
    configs["... x 4, centred"] = replace(heavy, centred=True)
    configs |= {f"... x 4, centred, LSA of {n}": replace(heavy, centred=True, components=n) for n in (10, 15, 20, 30, 40)}
    if encoder:
        both = replace(heavy, centred=True, encoder=encoder)
        configs["... x 4, centred, and encoder"] = both
        configs["... x 4, centred, LSA of 20, and encoder"] = replace(both, components=20)
    return configs


def main(path: str, emphasised: str = "configs/zsl/flower-terms.txt", encoder: str | None = None, choices: int = 12) -> None:
    """Print top-1 in percent: mean and deviation over the choices.

    Args:
        path: a data set with articles.
        emphasised: a file of terms that get more weight.
        encoder: a sentence encoder to compare too.
        choices: number of choices of held-out seen classes.
    """
    data = load(path)
    if data.articles is None:
        raise UserError(f"{path} holds vectors; use a data set with articles.jsonl")
    texts = ClassTexts(data.class_ids, data.class_names, articles=data.articles)
    configs = representations(emphasised, encoder)
    vectors = {name: text.vectors(texts, config)[0] for name, config in tqdm(configs.items(), desc="texts")}
    if encoder:
        encoded = text.encode(data.articles, encoder)
        vectors["sentence encoder alone, centred"] = encoded - encoded.mean(0)  # neither baseline needs texts of length 1
    accuracies: dict[tuple[str, str], dict[str, list[float]]] = {}
    fraction = len(data.unseen) / len(data.seen)
    for seed in tqdm(range(choices), desc="choices"):
        division = divide(data, seed, 0.0, fraction)
        scaling = Scaling.fit("standardize", data.features[division.train])
        train, test = (scaling.apply(data.features[rows]) for rows in (division.train, division.unseen_test))
        labels, unseen = division.labels[division.unseen_test], np.arange(division.seen_classes, len(division.classes))
        for name, matrix in vectors.items():
            for baseline, make in baselines.BASELINES.items():
                args = (train, division.labels[division.train], matrix[division.classes], division.seen_classes)
                for setting, classifier in make(*args):
                    top1 = metrics.top1(classifier.predict(test, unseen), labels)
                    accuracies.setdefault((name, baseline), {}).setdefault(str(setting), []).append(100 * top1)
    print(f"top-1 of {len(data.unseen)} held-out seen classes (chance {100 / len(data.unseen):.1f}%), {choices} choices")
    print(f"{'texts':60s} " + " ".join(f"{baseline:>14s}" for baseline in baselines.BASELINES))
    for name in vectors:
        cells = [max(accuracies[name, baseline].values(), key=np.mean) for baseline in baselines.BASELINES]
        print(f"{name:60s} " + " ".join(f"{np.mean(cell):7.1f} ± {np.std(cell, ddof=1):4.1f}" for cell in cells))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    with one_line_errors():
        auto_cli(main, as_positional=False, prog="python -m benchmarks.zero_shot_texts")
