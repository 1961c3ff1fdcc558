"""The images to measure with are a random part of the data, also where the files are sorted by class."""

import numpy as np
import pytest
from PIL import Image

from tests.support.sources import config, corrupt, encode, folder, numbers, parquet, picture, whole
from tinyldm.data.images import Images, first_examples
from tinyldm.data.sources import open_sources
from tinyldm.data.subsets import in_random_order, random_rows


def kinds(tmp_path, streaming: bool):
    """200 pictures of which the first 100 are of one kind; pictures 3, 103 and 150 are damaged."""
    contents = [corrupt(i) if i in (3, 103, 150) else picture(i) for i in range(200)]
    return whole(parquet(tmp_path / "p", [contents[:120], contents[120:]]), streaming=streaming)


def drawn(source, count: int) -> list[int]:
    return numbers(first_examples(Images(source, 8, 2), count).x)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_subset_is_random_and_of_the_whole(tmp_path, streaming):
    source = kinds(tmp_path, streaming)
    chosen = drawn(source, 40)
    assert len(set(chosen)) == 40 and chosen == drawn(source, 40)
    assert 10 <= sum(number < 100 for number in chosen) <= 30  # 20 expected, deviation 3
    assert drawn(source, 20) == chosen[:20]
    assert sorted(drawn(source, 999)) == [i for i in range(200) if i not in (3, 103, 150)]


def test_a_local_stream_gives_the_same_subset_as_random_access(tmp_path):
    assert drawn(kinds(tmp_path, True), 40) == drawn(kinds(tmp_path, False), 40)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_subset_continues_from_any_position(tmp_path, streaming):
    source = kinds(tmp_path, streaming)

    def names(count: int, start: int) -> list:
        return [source.content(fetch()) for fetch in in_random_order(source, count, start)][:count]

    assert names(30, 0) == names(10, 0) + names(20, 10)


def test_each_image_is_as_likely_as_the_others():
    assert np.array_equal(np.sort(random_rows(50)), np.arange(50))
    hits = np.bincount(random_rows(10_000, 1000) // 1000, minlength=10)
    assert hits.min() > 65 and hits.max() < 135  # 100 expected of each tenth, deviation 9.5


def test_a_stream_from_the_hub_says_that_it_is_only_shuffled(tmp_path, capsys):
    source = kinds(tmp_path, True)
    source.name, source.shuffle_buffer = "somebody/faces", 200
    chosen = drawn(source, 40)
    assert "somebody/faces" in (said := capsys.readouterr().err) and "data.streaming false" in said
    assert 5 <= sum(number < 100 for number in chosen) <= 35


def test_held_out_images_of_a_training_are_of_all_classes(tmp_path):
    for name in ("a", "b", "c", "d"):
        folder(tmp_path / "data" / name, {f"{i}.png": encode_grey(60 * "abcd".index(name), i) for i in range(30)})
    _, held_out = open_sources(config(tmp_path / "data", eval_fraction=0.5), 0)
    levels = first_examples(Images(held_out, 8, 2), 12).x.float().mean((1, 2, 3)).div(60).round()
    assert len(levels.unique()) >= 3


def encode_grey(level: int, number: int) -> bytes:
    image = Image.new("RGB", (9, 8), (level,) * 3)
    image.putpixel((0, 0), (number, 0, 0))
    return encode(image)
