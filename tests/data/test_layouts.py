"""Which pictures a data set's folders and tables give, and what the description says about them."""

import csv
import io
import json
import os
import zipfile

import datasets
import pytest

from tests.support.sources import config, describe, folder, parquet, picture, pictures, read, table, values
from tinyldm.data.layout import layout_of_tables, split_of
from tinyldm.data.sources import open_part, open_sources
from tinyldm.errors import UserError

# -------------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("training_set", "test_set"),
        ("TRAIN", "Val"),
        ("Training-Images", "Validation-Images"),
        ("train2017", "val2017"),
        ("faces_train", "faces_test"),
        ("data.training", "data.eval"),
        ("deep/er/train", "deep/er/dev"),
    ],
)
def test_folders_named_like_splits_are_splits(train, test, tmp_path):
    folder(tmp_path, pictures(f"{train}/a.png", f"{train}/b.png", f"{test}/c.png"))
    assert read(tmp_path) == [0, 1]
    (other,) = split_of([test.rsplit("/")[-1].removeprefix("faces_")]).values()
    assert read(tmp_path, other) == [2]
    assert describe(tmp_path)["ignored"] == {"in other splits": 1}


@pytest.mark.parametrize("names", [("bus", "car", "train"), ("anna", "dev"), ("train_station", "test_tube"), ("eval", "evan")])
def test_a_class_named_like_a_split_is_a_class(names, tmp_path):
    folder(tmp_path, pictures(*(f"{name}/{i}.png" for name in names for i in range(3))))
    assert read(tmp_path) == list(range(3 * len(names)))
    found = describe(tmp_path, label_columns="label")
    assert values(found) == sorted(names) and found["found"] == found["read"] == 3 * len(names)
    counts = [value["count"] for value in found["labels"]["label"]["values"]]
    assert sum(counts) == 3 * len(names) - found["held_out"]["images"]


def test_a_class_named_like_a_split_is_mentioned(tmp_path):
    folder(tmp_path, pictures("bus/1.png", "train/2.png"))
    assert "train" in " ".join(open_sources(config(tmp_path), 0)[0].description.notes)


def test_splits_below_the_class_folders_are_splits(tmp_path):
    folder(tmp_path, pictures("cat/train/1.png", "dog/train/2.png", "cat/test/3.png", "dog/test/4.png"))
    assert (read(tmp_path), read(tmp_path, "test")) == ([0, 1], [2, 3])
    assert values(describe(tmp_path, label_columns="label")) == ["cat", "dog"]


def test_pictures_beside_a_test_folder_are_the_training_split(tmp_path):
    folder(tmp_path, pictures("me.png", "you.png", "test/her.png"))
    assert (read(tmp_path), read(tmp_path, "test")) == ([0, 1], [2])
    folder(tmp_path, pictures("x.png", "y.png", "z.png", "train/a.png"))
    assert read(tmp_path) == [3] and describe(tmp_path)["ignored"]["beside the folders of the splits"] == 5


def test_stray_pictures_do_not_hide_the_splits_below_the_classes(tmp_path):
    folder(tmp_path, pictures("stray.png", "cats/train/1.png", "cats/val/2.png", "dogs/train/3.png"))
    assert (read(tmp_path), read(tmp_path, "validation")) == ([1, 3], [2])
    assert describe(tmp_path)["ignored_names"]["beside the folders of the splits"] == ["stray.png"]


def test_a_missing_split_lists_the_splits_there_are(tmp_path):
    folder(tmp_path, pictures("validation/1.png"))
    with pytest.raises(UserError, match=r"no split 'train', it has \['validation'\]"):
        read(tmp_path)


@pytest.mark.parametrize("split, numbers", [("train[:2]", [0, 1]), ("train[50%:]", [2, 3]), ("train+test", [0, 1, 2, 3, 4])])
def test_parts_of_splits(split, numbers, tmp_path):
    folder(tmp_path, pictures(*(f"train/{i}.png" for i in range(4)), "test/5.png"))
    assert read(tmp_path, split) == numbers


@pytest.mark.parametrize(
    "split, other",
    [
        ("train", "train[:25%]"),
        ("train", "TRAINING"),
        ("train[:3]", "train[2:]"),
        ("copies", ""),
        ("train+test", "test"),
    ],
)
def test_splits_that_share_images_are_refused(split, other, tmp_path):
    files = pictures(*(f"train/{i}.png" for i in range(4)), "test/5.png")
    folder(tmp_path, files)
    if split == "copies":  # two splits of equal content
        split, other = "train", "test"
        folder(tmp_path, {f"test/copy{i}.png": picture(i) for i in range(4)})
    with pytest.raises(UserError, match="are also in"):
        open_sources(config(tmp_path, split=split, eval_split=other), 0)


def test_splits_of_tables_that_share_images_are_refused(tmp_path):
    parquet(tmp_path, [[picture(i) for i in range(9)]])
    parquet(tmp_path, [[picture(i) for i in range(5, 12)]], split="validation")
    for streaming in (True, False):
        with pytest.raises(UserError, match="4 of 7 images of the split 'validation' are also in 'train'"):
            open_sources(config(tmp_path, eval_split="validation", streaming=streaming), 0)


@pytest.mark.parametrize(
    "files, splits",
    [
        (["a.parquet", "b.parquet"], ["train", "train"]),
        (["faces.parquet", "test.parquet"], ["train", "test"]),
        (["data/train-00000-of-00002.parquet", "data/odd-00000-of-00001.parquet"], ["train", "odd"]),
        (["Train/a.parquet", "VALID/b.parquet"], ["train", "validation"]),
        (["my.training.set.csv", "my.dev.set.csv"], ["train", "validation"]),
    ],
)
def test_splits_of_tables(files, splits):
    assert layout_of_tables(files).splits == dict(zip(files, splits, strict=True))


def test_a_table_of_no_split_beside_those_of_splits_is_named(tmp_path):
    parquet(tmp_path, [[picture(0)]])
    table([picture(1)]).to_parquet(tmp_path / "more.parquet")
    assert read(tmp_path) == [0]
    assert describe(tmp_path)["ignored_names"] == {"tables of no split beside those of splits": ["more.parquet"]}


# ----------------------------------------------------------------------------------------------------- what is read, and not


def test_a_class_folder_that_is_a_link_is_followed_once(tmp_path):
    folder(tmp_path / "far", pictures("1.png", "2.png"))
    folder(tmp_path / "data", {"cat/3.png": picture(7)})
    os.symlink(tmp_path / "far", tmp_path / "data/dog")
    os.symlink(tmp_path / "data", tmp_path / "data/cat/loop")
    os.symlink(tmp_path / "far", tmp_path / "data/zebra")  # the same pictures again
    assert read(tmp_path / "data") == [0, 1, 7]


def test_other_files_are_counted_by_ending_and_named(tmp_path):
    files = {f"{i}.heic": b"x" for i in range(20)} | {"plan.pdf": b"x", "x.psd1": b"", ".DS_Store": b"x", "._1.png": b"x"}
    folder(tmp_path, {**pictures("a.png", "b.jpg", "c.webp"), **files})
    found = describe(tmp_path)
    heic = next(reason for reason in found["ignored"] if "heic" in reason)
    assert (found["found"], found["read"], found["ignored"][heic], found["ignored"][".pdf"]) == (23, 3, 20, 1)
    assert "pillow-heif" in heic and found["ignored_names"][heic] == [f"{i}.heic" for i in range(5)]
    assert found["ignored"]["hidden"] == 1


def metadata(rows: list[tuple], heading: tuple = ("file_name", "text")) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([heading, *rows])
    return text.getvalue().encode()


def test_metadata_that_lists_a_part_or_lists_twice(tmp_path):
    rows = [(f"{i}.png", f"face {i}") for i in (0, 1, 1, 1, 9)]
    folder(tmp_path, pictures("0.png", "1.png", "2.png") | {"metadata.csv": metadata(rows)})
    found = describe(tmp_path)
    assert (found["found"], found["read"]) == (3, 2)
    assert found["ignored_names"] == {
        "listed in metadata.csv more than once": ["1.png"],
        "listed in metadata.csv, but not there": ["9.png"],
        "not listed in metadata.csv": ["2.png"],
    }
    assert read(tmp_path, duplicates=True) == [0, 1, 1, 1]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_of_each_split_folder(kind, tmp_path):
    for split, number in (("train", 0), ("test", 5)):
        rows = [{"file_name": f"{number + i}.png", "mood": f"m{10 - i}", "year": 1990 + i} for i in range(3)]
        folder(tmp_path / split, {f"{number + i}.png": picture(number + i) for i in range(3)})
        file = tmp_path / split / f"metadata.{kind}"
        if kind == "csv":
            file.write_bytes(metadata([tuple(row.values()) for row in rows], tuple(rows[0])))
        elif kind == "jsonl":
            file.write_text("\n".join(map(json.dumps, rows)))
        else:
            datasets.Dataset.from_list(rows).to_parquet(file)
    assert (read(tmp_path), read(tmp_path, "test")) == ([0, 1, 2], [5, 6, 7])
    for column, names in (("mood", ["m8", "m9", "m10"]), ("year", ["1990", "1991", "1992"])):
        assert values(describe(tmp_path, label_columns=column)) == names


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_metadata_as_spreadsheets_write_them(separator, tmp_path):
    lines = [separator.join(row) for row in [("file_name", "kind"), ("a\\1.png", "x"), ("a/2.png", "y")]]
    folder(tmp_path, pictures("a/1.png", "a/2.png") | {"metadata.csv": ("\ufeff" + "\r\n".join(lines)).encode()})
    assert read(tmp_path) == [0, 1]
    assert values(describe(tmp_path, label_columns="kind")) == ["x", "y"]


def test_metadata_without_file_names_is_refused(tmp_path):
    folder(tmp_path, pictures("0.png") | {"metadata.csv": metadata([("0.png", "x")], ("name", "text"))})
    with pytest.raises(UserError, match=r"metadata.csv.*file_name"):
        read(tmp_path)


def test_captions_beside_the_pictures_are_a_column(tmp_path):
    folder(tmp_path, pictures("a.png", "b.png", "c.png") | {"a.txt": b"ein Hut", "b.txt": b"\x89PNG", "c.json": b"{}"})
    source = open_part(config(tmp_path), "train")[0]
    assert source.dataset["caption"][0] == "ein Hut" and len(source.dataset) == 3
    assert describe(tmp_path)["ignored"] == {}


def test_archives_and_odd_names(tmp_path):
    names = ("cat/1.png", "cat/2.png", "dog/3.png")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as file:
        for name, content in pictures(*names).items():
            file.writestr(f"pets/{name}", content)
    cache = str(tmp_path / "cache")
    for path in (tmp_path / "pets.zip", tmp_path):
        assert read(path, cache_dir=cache) == [0, 1, 2]
        assert values(describe(path, label_columns="label", cache_dir=cache)) == ["cat", "dog"]
    odd = tmp_path / "faces [v2] {x} *"
    assert read(folder(odd, pictures("a.png", "[b].png"))) == [0, 1]
    assert read(parquet(odd / "tables [1]", [[picture(4)]])) == [4]
    file = parquet(tmp_path / "one", [[picture(3)]]) / "train-00000-of-00001.parquet"
    assert read(file) == [3]


def test_pictures_beside_many_tables_are_refused_or_named(tmp_path):
    folder(tmp_path, pictures("banner.png"))
    parquet(tmp_path, [[picture(4)]])
    assert read(tmp_path) == [4] and describe(tmp_path)["ignored"] == {"pictures beside tables": 1}
    folder(tmp_path, pictures("a.png", "b.png", "c.png"))
    with pytest.raises(UserError, match=r"4 pictures and 1 tables.*data.data_files"):
        read(tmp_path)
    assert read(tmp_path, data_files="*.png") == [0, 0, 1, 2] and read(tmp_path, data_files="*.parquet") == [4]


def test_tables_in_json(tmp_path):
    rows = [{"file": f"{i}.png", "y": i} for i in range(3)]
    folder(tmp_path, pictures("0.png", "1.png", "2.png"))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert read(tmp_path, image_column="file", data_files="*.json") == [0, 1, 2]
    assert read(tmp_path) == [0, 1, 2]  # the pictures themselves


def test_an_existing_folder_goes_before_a_built_in_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "digits", pictures("a.png"))
    folder(tmp_path / "toyfaces", pictures("x.png", "b.png"))
    assert (read("digits"), read("toyfaces")) == ([0], [0, 1])
    assert "not the built-in" in open_sources(config("digits"), 0)[0].description.notes[-1]
