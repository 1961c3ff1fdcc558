"""Which pictures a data set's folders and tables give, and what the description says about them."""

import csv
import io
import json
import os
import tarfile
import zipfile

import datasets
import pyarrow.parquet
import pytest

from tests.support.sources import config, folder, in_order, parquet, picture, table
from tinyldm.config.schema import DataConfig
from tinyldm.data.layout import layout, layout_of_tables, natural, split_of
from tinyldm.data.sources import open_part, open_sources
from tinyldm.errors import UserError


def pictures(*names: str) -> dict[str, bytes]:
    """Picture i by the i-th name."""
    return {name: picture(i) for i, name in enumerate(names)}


def read(path, split: str = "train", **changes) -> list[int]:
    return sorted(in_order(open_part(config(path, **changes), split)[0]))


def describe(path, **changes) -> dict:
    return open_sources(config(path, **{"eval_fraction": 1e-9, **changes}), 0)[0].description.to_json()


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
    found = describe(tmp_path, label_column="label")
    assert [entry["name"] for entry in found["classes"]] == sorted(names) and found["found"] == found["read"] == 3 * len(names)
    assert sum(entry["count"] for entry in found["classes"]) == 3 * len(names) - found["held_out"]["images"]


def test_a_class_named_like_a_split_is_mentioned(tmp_path):
    folder(tmp_path, pictures("bus/1.png", "train/2.png"))
    assert "train" in " ".join(open_sources(config(tmp_path), 0)[0].description.notes)


def test_splits_below_the_class_folders_are_splits(tmp_path):
    folder(tmp_path, pictures("cat/train/1.png", "dog/train/2.png", "cat/test/3.png", "dog/test/4.png"))
    assert (read(tmp_path), read(tmp_path, "test")) == ([0, 1], [2, 3])
    assert [entry["name"] for entry in describe(tmp_path, label_column="label")["classes"]] == ["cat", "dog"]


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
        assert [entry["name"] for entry in describe(tmp_path, label_column=column)["classes"]] == names


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_metadata_as_spreadsheets_write_them(separator, tmp_path):
    lines = [separator.join(row) for row in [("file_name", "kind"), ("a\\1.png", "x"), ("a/2.png", "y")]]
    folder(tmp_path, pictures("a/1.png", "a/2.png") | {"metadata.csv": ("\ufeff" + "\r\n".join(lines)).encode()})
    assert read(tmp_path) == [0, 1]
    assert [entry["name"] for entry in describe(tmp_path, label_column="kind")["classes"]] == ["x", "y"]


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
        classes = describe(path, label_column="label", cache_dir=cache)["classes"]
        assert [entry["name"] for entry in classes] == ["cat", "dog"]
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


# ------------------------------------------------------------------------------------------------------------ columns, classes


@pytest.mark.parametrize("streaming", [True, False])
def test_the_image_column_is_chosen_or_asked_for(streaming, tmp_path):
    def write(*columns: str) -> DataConfig:
        features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
        cells = {column: [{"bytes": picture(i), "path": None}] for i, column in enumerate(columns)}
        datasets.Dataset.from_dict(cells, features=features).to_parquet(tmp_path / "x.parquet")
        return config(tmp_path, streaming=streaming)

    assert in_order(open_part(write("conditioning_image", "image"), "train")[0]) == [1]
    with pytest.raises(UserError, match=r"several columns of images.*data.image_column.*'mask', 'photo'"):
        open_part(write("mask", "photo"), "train")


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    "values, names",
    [
        ([10, 9, 2, 10], ["2", "9", "10"]),
        (["c10", "c9", "a", "c10"], ["a", "c9", "c10"]),
        ([True, False, True, True], ["False", "True"]),
        (["x", None, "y", "x"], ["x", "y"]),
    ],
)
def test_integers_strings_and_booleans_are_classes(streaming, values, names, tmp_path):
    cells = [{"bytes": picture(i), "path": None} for i in range(4)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "kind": datasets.Value(
                "bool" if isinstance(values[0], bool) else "int64" if isinstance(values[0], int) else "string"
            ),
        }
    )
    datasets.Dataset.from_dict({"image": cells, "kind": values}, features=features).to_parquet(tmp_path / "x.parquet")
    source = open_part(config(tmp_path, streaming=streaming, label_column="kind"), "train")[0]
    assert source.class_names == names
    numbers = [source.number_of(fetch()["kind"]) for fetch in source.epoch(None, 0)]
    known = [None if value is None else names.index(str(value)) for value in values]
    assert numbers == (known if streaming else [number for number in known if number is not None])


def test_numbered_class_folders_are_in_natural_order(tmp_path):
    folder(tmp_path, pictures(*(f"{i}/{i}.png" for i in range(12))))
    assert [entry["name"] for entry in describe(tmp_path, label_column="label")["classes"]] == [str(i) for i in range(12)]
    assert sorted(["10", "9", "a2", "a10"], key=natural) == ["9", "10", "a2", "a10"]


def test_classes_of_webdataset_files(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i in range(4):
            for ending, member in (("png", picture(i)), ("cls", str(3 * (i % 2)).encode())):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    assert open_part(config(tmp_path, label_column="cls"), "train")[0].class_names == ["0", "3"]


@pytest.mark.parametrize(
    "column, words", [("y", "no column 'y'"), ("weight", "holds float64, not classes"), ("id", "1,000 values")]
)
def test_columns_that_hold_no_classes_are_refused(column, words, tmp_path):
    cells = {"weight": [0.5] * 1100, "id": list(range(1100)), "image": [{"bytes": picture(0), "path": None}] * 1100}
    features = datasets.Features(
        {"weight": datasets.Value("float64"), "id": datasets.Value("int32"), "image": datasets.Image()}
    )
    datasets.Dataset.from_dict(cells, features=features).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=words):
        open_part(config(tmp_path, label_column=column), "train")


@pytest.mark.parametrize("streaming", [True, False])
def test_groups_are_held_out_whole(streaming, tmp_path):
    cells = [{"bytes": picture(i), "path": None} for i in range(200)]
    features = datasets.Features({"image": datasets.Image(), "person": datasets.Value("int64")})
    rows = {"image": cells, "person": [i // 4 for i in range(200)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    train, held_out = open_sources(config(tmp_path, streaming=streaming, group_column="person", eval_fraction=0.3), 0)
    people = [{number // 4 for number in in_order(part)} for part in (train, held_out)]
    assert not people[0] & people[1] and len(people[0] | people[1]) == 50 and 5 < len(people[1]) < 25
    assert len(in_order(held_out)) == 4 * len(people[1])
    if not streaming:
        assert train.description.to_json()["held_out"]["groups"] == len(people[1])


def test_pictures_without_a_label_are_counted_and_left_out(tmp_path):
    folder(tmp_path, pictures("stray.png", "cat/1.png", "dog/2.png"))
    assert read(tmp_path) == [0, 1, 2] and read(tmp_path, label_column="label") == [1, 2]
    found = describe(tmp_path, label_column="label")
    assert (found["found"], found["read"], found["ignored_names"]) == (3, 2, {"without a label": ["stray.png"]})


def test_a_small_data_set_holds_out_at_least_one(tmp_path):
    folder(tmp_path, pictures(*(f"{i}.png" for i in range(6))))
    numbers = [in_order(part) for part in open_sources(config(tmp_path, eval_fraction=1e-6), 0)]
    assert len(numbers[1]) == 1 and sorted(numbers[0] + numbers[1]) == list(range(6))
    renamed = folder(tmp_path / "renamed", {f"{9 - i}.png": picture(i) for i in range(6)})
    assert in_order(open_sources(config(renamed, eval_fraction=1e-6), 0)[1]) == numbers[1]


def test_images_as_bytes_and_path_without_a_type_are_a_column(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"photo": [{"bytes": picture(4), "path": "x"}], "y": [1]}), tmp_path / "x.parquet"
    )
    assert read(tmp_path) == [4]


# ------------------------------------------------------------------------------------------------------------------- trust


@pytest.mark.parametrize("streaming", [True, False])
def test_paths_in_cells_stay_inside_the_data_set(streaming, tmp_path):
    outside = folder(tmp_path / "outside", pictures("secret.png")) / "secret.png"
    os.mkfifo(tmp_path / "pipe.png")
    data = folder(tmp_path / "data", {"ok.png": picture(7)})
    os.symlink(outside, data / "link.png")
    os.symlink(tmp_path / "pipe.png", data / "pipe.png")
    paths = [str(outside), "../outside/secret.png", "link.png", "pipe.png", "/dev/zero", "http://127.0.0.1:9/x.png", "ok.png"]
    features = datasets.Features({"image": datasets.Image()})
    cells = [{"bytes": None, "path": path} for path in paths]
    arrow = pyarrow.table({"image": cells}, schema=features.arrow_schema)  # to_parquet would read the files
    pyarrow.parquet.write_table(arrow, data / "x.parquet")
    source = open_part(config(data, streaming=streaming, data_files="*.parquet"), "train")[0]
    results = []
    for fetch in source.epoch(None, 0):
        try:
            results.append(source.content(fetch()) == picture(7))
        except OSError as error:
            results.append("outside" in str(error))
    assert results == [True] * len(paths)


def test_a_fifo_in_a_folder_is_not_opened(tmp_path):
    folder(tmp_path, pictures("a.png", "b.png"))
    os.mkfifo(tmp_path / "c.png")
    source = open_part(config(tmp_path), "train")[0]
    cells = [fetch() for fetch in source.epoch(None, 0)]
    assert len(source.content(cells[0])) > 10
    with pytest.raises(OSError, match="no regular file"):
        source.content(cells[2])


@pytest.mark.parametrize("name", ["saved", "arrow", "folder"])
def test_a_damaged_arrow_file_does_not_end_the_interpreter(name, tmp_path):
    table([picture(i) for i in range(9)]).save_to_disk(tmp_path / "x")
    file = next((tmp_path / "x").glob("*.arrow"))
    content = bytearray(file.read_bytes())
    for at in range(len(content) // 2, len(content), 7):
        content[at] ^= 0x5A
    file.write_bytes(content)
    if name != "saved":
        for other in (tmp_path / "x").glob("*.json"):
            other.unlink()
    with pytest.raises(UserError, match=r"damaged|cannot be read"):
        if name == "arrow":
            in_order(open_part(config("arrow", data_files=str(file)), "train")[0])
        else:
            read(tmp_path / "x")


def test_archives_that_unpack_to_far_more_than_pictures_are_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("a.png", "w", force_zip64=True) as member,
    ):
        for _ in range(1100):
            member.write(bytes(2**20))
    with pytest.raises(UserError, match=r"bomb.zip cannot be unpacked .*it would grow from .* to"):
        read(tmp_path / "bomb.zip", cache_dir=str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "bomb.tar", "w") as tar:  # its header alone, as a cut one
        info = tarfile.TarInfo("0.png")
        info.size = 2**33
        tar.fileobj.write(info.tobuf())
    with pytest.raises(UserError, match=r"bomb.tar holds 0.png of 8,589,934,592 bytes"):
        read(tmp_path / "bomb.tar")


def test_layout_of_no_files():
    assert layout([]).splits == layout([]).classes == {}


# ------------------------------------------------------------------------------------------------------------- description


def test_what_a_stream_cannot_know_is_filled_in_by_a_whole_pass(tmp_path):
    parquet(tmp_path, [[picture(i) for i in range(30)], [picture(i) for i in range(30, 50)]])
    train, held_out = open_sources(config(tmp_path, label_column="label", eval_fraction=0.3), 0)
    before = train.description.to_json()
    assert (before["found"], before["read"], before["held_out"]["images"]) == (None, None, None)
    assert [entry["count"] for entry in before["classes"]] == [None, None]
    next(iter(train.epoch(0, 0)))  # a part of a pass tells nothing
    assert train.description.to_json() == before
    numbers = [in_order(part) for part in (train, held_out)]
    after = train.description.to_json()
    assert (after["found"], after["read"], after["held_out"]["images"]) == (50, 50, len(numbers[1]))
    assert [entry["count"] for entry in after["classes"]] == [sum(n % 2 == k for n in numbers[0]) for k in (0, 1)]


CARDS = ["configs: !!python/object:os.system {}", "configs: [a: b", "configs:\n- config_name: x\n  data_files: 7"]


@pytest.mark.parametrize("header", CARDS)
def test_a_card_that_cannot_be_read_is_no_traceback(header, tmp_path):
    folder(tmp_path, pictures("a.png") | {"README.md": f"---\n{header}\n---\n".encode()})
    try:
        assert read(tmp_path) == [0]
    except UserError as error:
        assert "\n" not in str(error)


def test_a_loading_script_is_never_run(tmp_path):
    script = f"open({str(tmp_path / 'ran')!r}, 'w')"
    folder(tmp_path / "data", pictures("a.png") | {"data.py": script.encode()})
    assert read(tmp_path / "data") == [0] and not (tmp_path / "ran").exists()
    folder(tmp_path / "script", {"script.py": script.encode()})
    with pytest.raises(UserError, match=r"holds no pictures but 1 \.py"):
        read(tmp_path / "script")
    assert not (tmp_path / "ran").exists()
