import contextlib
import errno
import itertools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock
from PIL import Image

from tests.support import models
from tests.support.sources import encode
from tinyldm.config.schema import DataConfig
from tinyldm.data.batch import UNKNOWN
from tinyldm.data.columns import LabelColumn
from tinyldm.data.images import ImageBatches, Images, to_float
from tinyldm.data.sources import Source
from tinyldm.errors import UserError
from tinyldm.first_stage import latent_store as latents
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.first_stage.latent_batches import EncodedBatches, LatentBatches
from tinyldm.first_stage.latent_store import LatentStore, open_store
from tinyldm.randomness import Rank

COUNT, SIDE = 21, 16  # more than two shards; the last one is not full


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 8)
    monkeypatch.setattr(latents, "ENCODED_AT_ONCE", 3)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def source(pixels) -> Source:
    images = {"image": [Image.fromarray(image) for image in pixels]}
    dataset = datasets.Dataset.from_dict(images, features=datasets.Features({"image": datasets.Image()}))
    return Source(dataset.cast_column("image", datasets.Image(decode=False)), "image", "noise", 8)


@pytest.fixture
def data(tmp_path) -> DataConfig:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")  # for the cache key only; the pixels come from `source`
    return DataConfig(name=str(tmp_path / "images"), resolution=SIDE, num_workers=1, cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def stage(monkeypatch) -> FirstStage:
    stage, encode = FirstStage(models.vq_model()), FirstStage.encode
    stage.calls = 0

    def counted(self: FirstStage, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return encode(self, images)

    monkeypatch.setattr(FirstStage, "encode", counted)
    return stage


def open_it(data, source, stage, part="train", seed=0, mirrored=False) -> LatentStore:
    return open_store(data, source, part, seed, stage, Accelerator(cpu=True), mirrored)


def folders(data: DataConfig) -> list[Path]:
    return sorted((Path(data.cache_dir) / "latents").glob("*")) + sorted((Path(data.cache_dir) / "latents").glob(".*"))


def test_the_store_holds_the_encoded_latents(data, source, stage, pixels):
    store = open_it(data, source, stage, mirrored=True)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    indices = np.array([20, 0, 7, 7])
    for view, expected in enumerate((images, images.flip(-1))):
        with torch.no_grad():
            encoded = stage.model.encode(expected).latents
        assert store.get(indices, view).dtype == torch.float32
        torch.testing.assert_close(store.get(indices, view), encoded[indices], rtol=2e-3, atol=1e-3)  # rounded to float16
    both = store.get(indices, np.array([0, 1, 0, 1]))
    assert torch.equal(both[1], store.get(indices, 1)[1]) and torch.equal(both[2], store.get(indices, 0)[2])
    assert len(store) == COUNT and store.corrupt == 0
    assert [len(shard) for shard in store.shards] == [8, 8, 5]
    assert store.std == pytest.approx(float(np.concatenate(store.shards).astype(np.float64).std()), rel=1e-6)


def test_shards_are_written_beside_the_encoding(data, source, stage, monkeypatch):
    names, fsync = [], latents.os.fsync

    def full(number: int) -> None:
        names.append(threading.current_thread().name)
        if len(names) == 2:
            raise OSError("No space left on device")
        fsync(number)

    monkeypatch.setattr(latents.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        open_it(data, source, stage)
    assert len(names) == 2 and all(name.startswith("write") for name in names)
    monkeypatch.setattr(latents.os, "fsync", fsync)
    calls = stage.calls
    open_it(data, source, stage)
    assert stage.calls < 2 * calls  # the first shard was kept


def test_a_second_run_does_not_encode_again(data, source, stage):
    first = open_it(data, source, stage)
    calls = stage.calls
    assert calls == 3 + 3 + 2
    second = open_it(data, source, stage)
    assert stage.calls == calls
    assert np.array_equal(*(np.concatenate(store.shards) for store in (first, second))) and first.std == second.std
    stage.scaling_factor = 3.0  # stored latents are unscaled
    open_it(data, source, stage)
    assert stage.calls == calls and len(folders(data)) == 1


def test_changes_of_the_latents_make_another_store(data, source, stage):
    def count_after(**changes) -> int:
        given = {"data": data, "source": source, "stage": stage, **changes}
        open_it(**given)
        return len(folders(data))

    assert count_after() == 1
    assert count_after(part="held-out") == 2
    assert count_after(seed=1) == 3  # other images are held out
    split = replace(data, eval_split="validation")
    assert count_after(data=split) == 4
    assert count_after(data=split, seed=1) == 4  # with a split, the seed does not matter
    assert count_after(data=replace(data, split="other")) == 5
    assert count_after(data=replace(data, resolution=8)) == 6
    assert count_after(mirrored=True) == 7
    with torch.no_grad():
        stage.model.quant_conv.bias[0] += 1e-3
    assert count_after() == 8
    stage.model.register_to_config(norm_num_groups=2)  # the same weights with another config
    assert count_after() == 9
    (Path(data.name) / "a.png").write_bytes(b"ab")
    assert count_after() == 10
    elsewhere = Path(data.cache_dir) / "b.parquet"
    elsewhere.write_bytes(b"b")
    files = replace(data, name="parquet", data_files={"train": str(elsewhere)})
    assert count_after(data=files) == 11
    elsewhere.write_bytes(b"bc")
    assert count_after(data=files) == 12


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["shard-00001.npy", "store.json", "made_of.json"])
def test_a_damaged_store_is_named(data, source, stage, name):
    open_it(data, source, stage)
    file = folders(data)[0] / name
    whole = file.read_bytes()
    nonsense = [whole[:-1], b"", b"\xff\xfe"]
    if name == "store.json":
        about = json.loads(whole)
        nonsense += [b"[]", b"null", b"{}", json.dumps({**about, "std": None}).encode()]
        nonsense += [json.dumps({**about, "std": 0}).encode(), json.dumps({**about, "shards": 4}).encode()]
    if name == "made_of.json":
        nonsense += [b"null", whole.replace(b'"resolution"', b'"revolution"')]
    for damaged in nonsense:
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"latent store {file.parent} is damaged"):
            open_it(data, source, stage)
    if name == "shard-00001.npy":
        np.save(file, np.zeros((8, 1, 3, 8, 8)))
        with pytest.raises(UserError, match="must be float16"):
            open_it(data, source, stage)
        file.unlink()
        with pytest.raises(UserError, match="is damaged"):
            open_it(data, source, stage)
    file.write_bytes(whole)
    open_it(data, source, stage)


@pytest.mark.parametrize("kills", [[1], [4], [7], [1, 1, 1, 1], [3, 2, 1]])
def test_a_killed_build_resumes_with_the_missing_shards(data, source, stage, monkeypatch, kills):
    """It dies at the k-th call of the encoder; a shard needs three calls."""
    whole = open_it(replace(data, cache_dir=data.cache_dir + "-whole"), source, stage)
    encode, needed, stage.calls = FirstStage.encode, 0, 0
    for kill in kills:
        with monkeypatch.context() as patched:
            stage.calls, last = 0, kill

            def dies(self, images, last=last):
                if self.calls == last - 1:
                    raise KeyboardInterrupt
                return encode(self, images)

            patched.setattr(FirstStage, "encode", dies)
            with pytest.raises(KeyboardInterrupt):
                open_it(data, source, stage)
            needed += (kill - 1) // 3  # complete shards
    stage.calls = 0
    store = open_it(data, source, stage)
    assert stage.calls == [8, 5, 2][needed]
    assert np.array_equal(np.concatenate(store.shards), np.concatenate(whole.shards)) and store.std == whole.std


def test_two_ranks_encode_every_other_shard(data, source, stage, tmp_path):
    whole, alone = open_it(data, source, stage), Accelerator(cpu=True)
    for rank in (0, 1):
        stage.calls = 0
        share = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0, device=alone.device)
        latents._Builder(tmp_path, Images(source, SIDE, 1), stage, share, False).build("")
        assert stage.calls == (5, 3)[rank]
    latents._finish(tmp_path, "train", Images(source, SIDE, 1))
    built = [np.load(tmp_path / f"shard-0000{number}.npy") for number in range(3)]
    assert np.array_equal(np.concatenate(built), np.concatenate(whole.shards))
    assert json.loads((tmp_path / "store.json").read_text())["std"] == whole.std


def test_unreadable_images_are_skipped_and_counted(data, source, stage):
    rows, features = source.dataset.to_list() * 3, datasets.Features({"image": datasets.Image(decode=False)})
    for index in (0, 9):
        rows[index] = {"image": {"bytes": b"no picture", "path": None}}
    store = open_it(data, replace(source, dataset=datasets.Dataset.from_list(rows, features=features)), stage)
    whole = open_it(replace(data, cache_dir=data.cache_dir + "-whole"), source, stage)
    kept = np.array([index for index in range(3 * COUNT) if index not in (0, 9)])
    assert (len(store), store.corrupt) == (len(kept), 2)
    assert torch.equal(store.get(np.arange(len(kept))), whole.get(kept % COUNT))

    rows[10:12] = [rows[0]] * 2
    with pytest.raises(UserError, match="4 of 63 images of 'noise' cannot be read, more than 5%"):
        open_it(data, replace(source, dataset=datasets.Dataset.from_list(rows, features=features)), stage, seed=1)


def test_a_run_waits_for_another_one_that_builds_the_same_latents(data, source, stage, capfd):
    whole = open_it(data, source, stage)
    folder = folders(data)[0]
    (folder / "store.json").unlink()
    (folder / "shard-00001.json").unlink()
    with ThreadPoolExecutor(1) as pool:
        with FileLock(folder / ".lock"):
            waiting = pool.submit(open_it, data, source, stage)
            time.sleep(0.5)
            assert not waiting.done()
        store = waiting.result()
    assert "waiting for another run, which encodes the same images" in capfd.readouterr().err
    assert np.array_equal(np.concatenate(store.shards), np.concatenate(whole.shards))


def test_a_message_explains_why_stored_latents_cannot_be_used(data, source, stage, capfd):
    open_it(data, source, stage)
    open_it(data, source, stage, part="held-out")
    assert "encoding again" not in capfd.readouterr().err
    with torch.no_grad():
        stage.model.quant_conv.bias[0] += 1e-3
    open_it(data, source, stage)
    assert "do not fit (first stage: " in capfd.readouterr().err
    open_it(replace(data, resolution=8), source, stage)
    assert "do not fit (resolution: 16 there, 8 now): encoding again" in capfd.readouterr().err
    open_it(replace(data, split="all"), source, stage)
    assert "do not fit (splits: " in capfd.readouterr().err


def test_shards_keep_no_files_open(data, source, stage):
    first = open_it(data, source, stage).shards[0]
    held = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    shards = [latents.mapped(folders(data)[0] / "shard-00000.npy") for _ in range(20)]
    assert all(np.array_equal(shard, first) for shard in shards)
    assert held is None or len(os.listdir("/proc/self/fd")) == held


def test_a_full_disk_keeps_the_shards_that_are_done(data, source, stage, monkeypatch):
    save, shards = np.save, itertools.count()

    def full(file, array):
        if next(shards) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array)

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space left") as caught:
            open_it(data, source, stage)
    assert caught.value.errno == errno.ENOSPC  # one_line_errors prints it as one line
    stage.calls = 0
    assert len(open_it(data, source, stage)) == COUNT and stage.calls == 5


def test_latents_that_are_not_numbers_are_refused(data, source, stage):
    with torch.no_grad():
        stage.model.quant_conv.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="are its weights damaged"):
        open_it(data, source, stage)
    with torch.no_grad():
        stage.model.quant_conv.weight.fill_(0)  # all latents equal the bias
        stage.model.quant_conv.bias.fill_(0.1)
    with pytest.raises(UserError, match="are its weights damaged"):
        open_it(data, source, stage)
    with torch.no_grad():
        stage.model.quant_conv.weight.normal_(std=1e6)  # exceeds the range of float16
    with pytest.raises(UserError, match="are its weights damaged"):
        open_it(data, source, stage)
    with torch.no_grad():
        stage.model.quant_conv.weight.normal_()
    assert len(open_it(data, source, stage)) == COUNT  # the bad shards were deleted


def test_an_empty_part_and_a_cache_that_cannot_be_written(data, source, stage, tmp_path):
    empty = replace(source, dataset=source.dataset.select([]))
    with pytest.raises(UserError, match="train part of 'noise' is empty"):
        open_it(data, empty, stage)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data.cache_dir .*file/latents cannot be written"):
        open_it(replace(data, cache_dir=str(tmp_path / "file")), source, stage)


def test_labels_in_another_order_have_a_store_of_their_own(data, pixels, stage):
    cells = [{"bytes": encode(Image.fromarray(image)), "path": None} for image in pixels]
    values = {"hat": [0] * COUNT, "beard": [1] * COUNT}
    features = {name: datasets.ClassLabel(num_classes=2) for name in values}
    table = datasets.Dataset.from_dict(
        {"image": cells, **values}, features=datasets.Features({"image": datasets.Image(decode=False), **features})
    )
    for names in (["hat", "beard"], ["beard", "hat"]):
        columns = [LabelColumn(name, ["no", "yes"]) for name in names]
        store = open_it(data, Source(table, "image", "noise", 8, labels=columns), stage)
        assert store.labels[0].tolist() == [values[name][0] for name in names]


def test_labels_are_stored_with_the_latents(data, pixels, stage):
    """Only of readable images, in a separate store, and in the batches."""
    labels = [None if i == 7 else i % 3 for i in range(COUNT)]
    cells = [{"bytes": encode(Image.fromarray(image)), "path": None} for image in pixels]
    cells[4] = {"bytes": b"no image", "path": None}
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(num_classes=3)})
    table = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    plain = open_it(data, Source(table, "image", "noise", 8), stage)
    labelled = Source(table, "image", "noise", 8, labels=[LabelColumn("label", ["a", "b", "c"])])
    store = open_it(data, labelled, stage)
    assert plain.labels is None and plain.batch(np.arange(3)).condition.labels is None
    assert store.labels.tolist() == [[UNKNOWN if label is None else label] for label in labels[:4] + labels[5:]]
    assert len(list(Path(data.cache_dir, "latents").iterdir())) == 2
    batch = next(LatentBatches(store, 0, 20)())
    order = [int(np.abs(store.get(np.arange(20)) - x).sum((1, 2, 3)).argmin()) for x in batch.x]
    assert batch.condition.labels.tolist() == store.labels[order].tolist()


# ---------------------------------------------------------------------------------------------------- nothing is stored


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_encoding_at_each_step_gives_the_latents_of_the_images(source, stage, mirrored, rank):
    images = ImageBatches(Images(source, SIDE, 1), 3, 4, Rank(rank, 2))
    with contextlib.closing(EncodedBatches(images, stage, torch.device("cpu"), mirrored, 3)(16)) as batches:
        encoded = [next(batches).x for _ in range(4)]
    with contextlib.closing(ImageBatches(Images(source, SIDE, 1), 3, 4, Rank(rank, 2))(16)) as plain:
        pixels = [to_float(next(plain).x) for _ in range(4)]
    flipped = 0
    for latent, image in zip(torch.cat(encoded), torch.cat(pixels), strict=True):
        views = [stage.encode(view[None])[0] for view in (image, image.flip(-1))]
        errors = [(latent - view).abs().max() for view in views]
        assert min(errors) < 1e-5
        flipped += errors[1] < errors[0]
    assert 3 <= flipped <= 13 if mirrored else not flipped


@pytest.mark.parametrize("left", [-2, 100, 90, 5, 0])
def test_a_shard_of_another_size_than_its_header_says(left, tmp_path):
    """Reading past the end of a memory map would kill the program."""
    file = tmp_path / "shard-00000.npy"
    np.save(file, np.ones((8, 1, 3, 4, 4), np.float16))
    assert (latents.mapped(file) == 1).all()
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError):
        latents.mapped(file)
    np.save(file, np.array([{}], object))
    with pytest.raises(ValueError, match="pickled objects"):
        latents.mapped(file)
