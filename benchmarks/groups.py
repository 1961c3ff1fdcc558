"""Does it matter whether held-out pictures show people of the training part?

    python ../shared/data/faces-labels/join.py /tmp/people
    python -m benchmarks.groups --data /tmp/people       # 10 minutes on 2 CPU cores
    python -m benchmarks.groups --small true

The "samples" are real photographs that are in neither part, each of a person of the training part: a model that makes new
pictures of the people it was trained on. They are measured twice by evaluate.py, as in `data.group_column null`, where the
held-out pictures show people of the training part too, and as in `data.group_column person`, where they show others.
"""

import json
import tempfile
from pathlib import Path

import datasets
import numpy as np
from jsonargparse import auto_cli

from benchmarks.measure import RESULTS, record, use_all_cores
from tinyldm.config.evaluate import Evaluate
from tinyldm.config.schema import DataConfig
from tinyldm.data import toyfaces
from tinyldm.data.images import Images, first_images
from tinyldm.data.sources import open_sources
from tinyldm.evaluation.evaluate import evaluate
from tinyldm.pictures import to_pil

GROUP = "person"


def main(
    data: str = "/tmp/people", resolution: int = 64, images: int = 500, small: bool = False, output: str = str(RESULTS)
) -> None:
    """Run the benchmark.

    Args:
        data: a folder of parquet files with the columns image and person.
        resolution: side length of the images.
        images: number of photographs that stand for samples.
        small: cartoon faces, three of each person.
        output: folder for the JSON file.
    """
    use_all_cores()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = drawn_people() if small else datasets.load_dataset(data, split="train+validation")
        images = 30 if small else images
        (folder / "data").mkdir()
        whole.to_parquet(folder / "data/train.parquet")
        config = DataConfig(
            name=str(folder / "data"), resolution=resolution, eval_fraction=0.3 if small else 0.08, streaming=False
        )
        config.group_column, config.cache_dir = GROUP, str(folder / "cache")
        chosen = photographs_of_training_people(config, images)
        samples = whole.select(chosen)
        samples.to_parquet(folder / "samples.parquet")
        (folder / "samples").mkdir()
        source = open_sources(DataConfig(name=str(folder / "samples.parquet"), resolution=resolution, eval_fraction=1e-9), 0)[0]
        for number, image in enumerate(first_images(Images(source, resolution, 2), images)):
            to_pil(image).save(folder / f"samples/{number}.png")
        whole.select(np.setdiff1d(np.arange(len(whole)), chosen)).to_parquet(folder / "data/train.parquet")
        results = {str(group): measure(config, group, folder, images) for group in (None, GROUP)}
    for group, figures in results.items():
        print(f"data.group_column {group}: {figures}")
    record("groups", {"images": images, "resolution": resolution, "groups": results}, output, small)


def photographs_of_training_people(config: DataConfig, count: int) -> np.ndarray:
    """Rows of `count` photographs, each of another person of the training part with at least three."""
    train, _ = open_sources(config, 0)
    people = set(train.column(GROUP))
    whole = datasets.load_dataset(config.name, split="train")[GROUP]
    rows: dict[int, list[int]] = {}
    for row, person in enumerate(whole):
        rows.setdefault(person, []).append(row)
    candidates = sorted(person for person, mine in rows.items() if person in people and len(mine) >= 3)
    chosen = np.random.default_rng(0).permutation(candidates)[:count]
    return np.array([rows[int(person)][0] for person in chosen])


def measure(data: DataConfig, group: str | None, folder: Path, images: int) -> dict[str, float]:
    """Memorisation and recall of the samples by evaluate.py's own code."""
    data.group_column = group
    place = folder / f"evaluation-{group}"
    config = Evaluate(images=str(folder / "samples"), output_dir=str(place), num_images=images, anchors=False, data=data)
    config.metrics, config.features = "prdc,memorisation", "efficientnet-lite0"
    evaluate(config)
    (result,) = json.loads((place / "evaluation.json").read_text())["results"]
    figures = {name: measured["samples"]["value"] for name, measured in result["figures"].items()}
    memory = result["memorisation"]
    figures |= {"nearer to the training part": memory["nearer"]["value"], "held-out images": memory["held_out_images"]}
    return figures | {f"median distance, {who}": value for who, value in memory["median_distance"].items()}


def drawn_people() -> datasets.Dataset:
    """100 drawn people, three pictures of each with other hats."""
    hats = toyfaces.HATS[1:4]
    pictures = [toyfaces.draw(0, person, 32, hat=hat) for person in range(100) for hat in hats]
    people = [person for person in range(100) for _ in hats]
    features = datasets.Features({"image": datasets.Image(), GROUP: datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": pictures, GROUP: people}, features=features)


if __name__ == "__main__":
    auto_cli(main)
