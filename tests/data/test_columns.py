"""Which columns a data set has, what its description says, and where its cells and archives may lead."""

import io
import os
import tarfile
import zipfile

import datasets
import pyarrow.parquet
import pytest

from tests.support.sources import config, describe, folder, in_order, parquet, picture, pictures, read, table, values
from tinyldm.config.schema import DataConfig
from tinyldm.data.batch import UNKNOWN
from tinyldm.data.identity import cache_key
from tinyldm.data.layout import layout, natural
from tinyldm.data.sources import open_part, open_sources
from tinyldm.errors import UserError


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
        ([True, False, True, True], ["false", "true"]),
        (["x", None, "y", ""], ["x", "y"]),
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
    source = open_part(config(tmp_path, streaming=streaming, label_columns="kind"), "train")[0]
    assert source.labels[0].values == names
    numbers = [source.label(fetch()) for fetch in source.epoch(None, 0)]
    assert numbers == [[names.index(str(value).lower()) if value not in (None, "") else UNKNOWN] for value in values]
    assert source.label_numbers().tolist() == numbers


def test_numbered_class_folders_are_in_natural_order(tmp_path):
    folder(tmp_path, pictures(*(f"{i}/{i}.png" for i in range(12))))
    assert values(describe(tmp_path, label_columns="label")) == [str(i) for i in range(12)]
    assert sorted(["10", "9", "a2", "a10"], key=natural) == ["9", "10", "a2", "a10"]


def test_classes_of_webdataset_files(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i in range(4):
            for ending, member in (("png", picture(i)), ("cls", str(3 * (i % 2)).encode())):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    assert open_part(config(tmp_path, label_columns="cls"), "train")[0].labels[0].values == ["0", "3"]


@pytest.mark.parametrize(
    "column, words", [("y", "no column 'y'"), ("weight", "holds float64, not labels"), ("id", "1,000 values")]
)
def test_columns_that_hold_no_classes_are_refused(column, words, tmp_path):
    cells = {"weight": [0.5] * 1100, "id": list(range(1100)), "image": [{"bytes": picture(0), "path": None}] * 1100}
    features = datasets.Features(
        {"weight": datasets.Value("float64"), "id": datasets.Value("int32"), "image": datasets.Image()}
    )
    datasets.Dataset.from_dict(cells, features=features).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=words):
        open_part(config(tmp_path, label_columns=column), "train")


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


def test_pictures_without_a_label_are_counted_as_unknown(tmp_path):
    folder(tmp_path, pictures("stray.png", "cat/1.png", "dog/2.png"))
    assert read(tmp_path) == read(tmp_path, label_columns="label") == [0, 1, 2]
    found = describe(tmp_path, label_columns="label")["labels"]["label"]
    counts = [value["count"] for value in found["values"]]
    assert sum(counts) + found["unknown"] == 2 and max(counts) <= 1  # one of the three is held out


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
    train, held_out = open_sources(config(tmp_path, label_columns="label", eval_fraction=0.3), 0)
    before = train.description.to_json()
    assert (before["found"], before["read"], before["held_out"]["images"]) == (None, None, None)
    assert [value["count"] for value in before["labels"]["label"]["values"]] == [None, None]
    next(iter(train.epoch(0, 0)))  # a part of a pass tells nothing
    assert train.description.to_json() == before
    numbers = [in_order(part) for part in (train, held_out)]
    after = train.description.to_json()
    assert (after["found"], after["read"], after["held_out"]["images"]) == (50, 50, len(numbers[1]))
    counts = [value["count"] for value in after["labels"]["label"]["values"]]
    assert counts == [sum(n % 2 == k for n in numbers[0]) for k in (0, 1)]


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


# -------------------------------------------------------------------------------------------------------------------- caches


@pytest.mark.parametrize("change", ["linked folder", "single file", "files in a dict"])
def test_a_change_of_the_files_changes_the_key_of_caches(change, tmp_path):
    folder(tmp_path / "far", pictures("1.png"))
    folder(tmp_path / "data", pictures("0.png"))
    os.symlink(tmp_path / "far", tmp_path / "data/linked")
    file = parquet(tmp_path / "one", [[picture(0)]]) / "train-00000-of-00001.parquet"
    data = config(tmp_path / "data")
    if change == "single file":
        data = config(file)
    elif change == "files in a dict":
        data = config("parquet", data_files={"train": [str(file)], "test": str(tmp_path / "one/*.none")})
    before = cache_key(data, "train", 0)["files"]
    assert cache_key(data, "train", 0)["files"] == before
    if change == "linked folder":
        folder(tmp_path / "far", {"1.png": picture(7, 20, 20)})
    else:
        parquet(tmp_path / "one", [[picture(i) for i in range(5)]])
    assert cache_key(data, "train", 0)["files"] != before
