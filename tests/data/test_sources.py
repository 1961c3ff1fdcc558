"""All kinds of data sets, and their held-out part."""

import contextlib
import sys
import time
from dataclasses import replace

import datasets
import pyarrow as pa
import pytest
import torch

from tests.support.sources import (
    LABELS,
    config,
    folder,
    in_order,
    joined,
    numbers,
    one_pass,
    parquet,
    picture,
    table,
    tars,
    whole,
)
from tinyldm.config.schema import DataConfig
from tinyldm.data.images import ImageBatches, Images, first_images
from tinyldm.data.sources import open_part, open_sources
from tinyldm.errors import UserError


def make_source(kind: str, path) -> DataConfig:
    """Pictures 0 to 10 in all layouts that users may have."""
    shards = [[picture(i) for i in part] for part in ([0, 1, 2], [3, 4, 5, 6, 7, 8], [9, 10])]
    flat = joined(shards)
    if kind == "folder":  # other files in it do not matter
        files = {f"{i:02d}.PNG": content for i, content in enumerate(flat)}
        return config(folder(path, files | {".DS_Store": b"x", "notes.txt": b"hello", "deep/.DS_Store": b"x"}))
    if kind == "class folders":
        return config(folder(path, {f"{LABELS[i % 2]}/{i:02d}.png": content for i, content in enumerate(flat)}))
    if kind == "folder with metadata":
        rows = "".join(f"{i:02d}.png,face {i}\n" for i in range(11))
        files = {f"{i:02d}.png": content for i, content in enumerate(flat)}
        return config(folder(path, files | {"metadata.csv": b"file_name,text\n" + rows.encode()}))
    if kind == "parquet":
        return config(parquet(path, shards))
    if kind == "odd column":
        return config(parquet(path, shards, column="the picture"))
    if kind == "tars":
        return config(tars(path, shards))
    if kind == "data_files":
        parquet(path, shards)
        parquet(path, [[picture(99)]], split="other")
        return config(path, data_files="train-*.parquet")
    table(flat).save_to_disk(path / "saved")
    if kind == "saved":
        return config(path / "saved")
    if kind == "arrow files":
        return config("arrow", data_files=str(path / "saved" / "*.arrow"))
    raise AssertionError(kind)


KINDS = [
    "folder",
    "class folders",
    "folder with metadata",
    "parquet",
    "odd column",
    "tars",
    "data_files",
    "saved",
    "arrow files",
]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pictures_from_every_kind_of_source(kind, streaming, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)  # tars are read without that package, which is not a requirement
    data = replace(make_source(kind, tmp_path), streaming=streaming)
    source = open_part(data, "train")[0]
    assert source.image_column == {"odd column": "the picture", "tars": "png"}.get(kind, "image")
    listed = kind in ("folder", "class folders", "folder with metadata", "saved")  # no need to stream
    assert source.streamed == (streaming and not listed) and source.length() == 11
    actual = in_order(source)
    assert sorted(actual) == list(range(11))
    # Finally: shuffled batches of the training part, and the held-out part.
    train, held_out = open_sources(replace(data, eval_fraction=0.4), 1)
    assert held_out.length() and sorted(in_order(train) + in_order(held_out)) == list(range(11))
    stream = ImageBatches(Images(train, 8, 2), 0, train.length())
    with contextlib.closing(stream()) as batches:
        assert sorted(numbers(next(batches).x)) == sorted(in_order(train))
        next(batches)
    assert stream.length == train.length()  # counted while reading


@pytest.mark.parametrize("streaming", [True, False])
def test_columns(streaming, tmp_path):
    cells = {"id": [0, 1], "file": [picture(0), picture(1)], "nested": [{"bytes": picture(i), "path": None} for i in (0, 1)]}
    (tmp_path / "plain").mkdir()
    datasets.Dataset.from_dict(cells).to_parquet(tmp_path / "plain" / "x.parquet")
    for column in ("file", "nested", None):  # without the type Image, but named by the user, or bytes and path
        assert in_order(whole(tmp_path / "plain", streaming=streaming, image_column=column)) == [0, 1]
    for column, words in (
        ("files", "no column 'files'.*id, file, nested"),
        ("id", "'id'.*int64.*not encoded images"),
    ):
        with pytest.raises(UserError, match=words):
            whole(tmp_path / "plain", streaming=streaming, image_column=column)
    folder(tmp_path, {"a.png": picture(3), "list.csv": f"y,path\n1,{tmp_path}/a.png\n2,a.png\n".encode()})
    assert in_order(whole(tmp_path / "list.csv", streaming=streaming, image_column="path")) == [3, 3]


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "faces", {"a.png": picture(3)})
    assert in_order(whole("~/faces")) == [3]


@pytest.mark.parametrize("streaming", [True, False])
def test_unreadable_data_sets_give_one_line_errors(streaming, tmp_path):
    good = parquet(tmp_path / "good", [[picture(0)]])
    (tmp_path / "empty").mkdir()
    folder(tmp_path / "texts", {"a.txt": b"no picture"})
    folder(tmp_path / "damaged", {"0.parquet": (good / "train-00000-of-00001.parquet").read_bytes()[:-9]})
    folder(tmp_path / "tar", {"0.tar": b"no tar at all" * 100})
    for name, words in {
        "missing": "does not exist.*a folder",
        "empty": "holds no pictures.*a folder with images",
        "texts": "holds no pictures but 1 .txt.*a folder with images",
        "damaged": "cannot be read",
        "tar": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            whole(tmp_path / name, streaming=streaming)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"test.*\['train'\].*data.split"):
        open_sources(config(good, split="test", streaming=streaming), 0)
    with pytest.raises(UserError, match=r"valid.*\['train'\].*data.eval_split"):
        open_sources(config(good, eval_split="valid", streaming=streaming), 0)
    with pytest.raises(UserError, match=r"'someone/faces' cannot be reached .*: check the network"):
        whole("someone/faces", streaming=streaming)  # conftest.py blocks the network


def test_toyfaces():
    with pytest.raises(UserError, match=r"no split 'test'.*'train', 'validation'.*data.split"):
        open_sources(config("toyfaces", split="test"), 0)
    with pytest.raises(UserError, match=r"data.streaming"):
        open_sources(config("toyfaces", streaming=False), 0)
    train, held_out = open_sources(DataConfig(resolution=16, eval_split="validation"), 0)
    assert first_images(Images(train, 16, 2), 3).shape == first_images(Images(held_out, 16, 2), 3).shape == (3, 3, 16, 16)


def held_out_numbers(path, seed: int = 0, **changes) -> set[int]:
    train, held_out = open_sources(config(path, **changes), seed)
    parts = [numbers(torch.cat(list(one_pass(Images(part, 8, 2), 64)))) for part in (train, held_out)]
    assert not set(parts[0]) & set(parts[1])
    assert len(parts[0]) + len(parts[1]) == whole(path).length()
    return set(parts[1])


@pytest.mark.slow
def test_the_held_out_part_depends_only_on_contents_and_seed(tmp_path):
    contents = [picture(i) for i in range(400)]
    one = parquet(tmp_path / "one", [contents])
    held_out = held_out_numbers(one, eval_fraction=0.2)
    assert abs(len(held_out) - 80) < 4 * 8  # four standard deviations of a binomial
    uneven = parquet(tmp_path / "uneven", [contents[300:], contents[:7], contents[7:300]])
    files = folder(tmp_path / "folder", {f"{i:03d}.png": content for i, content in enumerate(contents[::-1])})
    tar = tars(tmp_path / "tars", [contents[:100], contents[100:]])
    for path, streaming in ((one, False), (uneven, True), (uneven, False), (files, True), (files, False), (tar, True)):
        assert held_out_numbers(path, eval_fraction=0.2, streaming=streaming) == held_out
    assert held_out < held_out_numbers(one, eval_fraction=0.4)
    other = held_out_numbers(one, seed=1, eval_fraction=0.2)
    assert other != held_out and abs(len(other & held_out) - 16) < 4 * 4  # independent: a fifth of a fifth


def test_copies_stay_together(tmp_path):
    contents = [picture(i // 3) for i in range(60)]
    held_out = held_out_numbers(
        parquet(tmp_path, [contents[::2], contents[1::2]]), eval_fraction=0.3
    )  # this checks that they are disjoint
    assert 0 < len(held_out) < 20


def test_an_eval_split_is_used_unchanged(tmp_path):
    parquet(tmp_path, [[picture(0), picture(1)]])
    parquet(tmp_path, [[picture(2), picture(3)]], split="validation")
    train, held_out = open_sources(config(tmp_path, eval_split="validation"), 0)
    assert (in_order(train), in_order(held_out)) == ([0, 1], [2, 3])
    assert first_images(Images(held_out, 8, 2), 99).shape[0] == 2


def test_file_names_do_not_make_splits_of_a_plain_folder(tmp_path):
    """`datasets` would read only train_01.png, as the split train, and silently ignore the others."""
    names = ["a.png", "train_01.png", "my-test-photo.png", "deep/er/validation 2.png"]
    contents = {name: picture(i) for i, name in enumerate(names)}
    for streaming in (True, False):
        assert whole(folder(tmp_path / "plain", contents), streaming=streaming).length() == 4
    split = {"train/a.png": picture(0), "test/b.png": picture(1), "test/train_2.png": picture(2)}
    assert whole(folder(tmp_path / "split", split)).length() == 1


@pytest.mark.parametrize("seed", [None, 0])
def test_a_large_parquet_file_is_not_read_ahead_to_its_end(seed, tmp_path):
    rows = [picture(i) + bytes(20_000) for i in range(1000)]  # 20 MB in 100 row groups
    table(rows).to_parquet(tmp_path / "train.parquet", batch_size=10)
    source = replace(whole(tmp_path), shuffle_buffer=20)
    before = pa.total_allocated_bytes()
    with contextlib.closing(source.epoch(seed, 0)) as examples:
        for _ in range(5):
            next(examples)
        time.sleep(0.3)  # Arrow's threads go on
        assert pa.total_allocated_bytes() - before < 4_000_000
        assert sum(1 for _ in examples) == 995
