import errno
import itertools
import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import models
from tinyldm.config import DataConfig
from tinyldm.errors import UserError
from tinyldm.first_stage import FirstStage
from tinyldm.latents import LatentBatches, LatentStore, open_store
from tinyldm.sources import Source

COUNT, SIDE = 21, 16  # more than one batch of the encoder, and the last one not full


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
    (tmp_path / "images" / "a.png").write_bytes(b"a")  # stands for the files; the pixels come from `source`
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
    return open_store(data, source, part, seed, stage, torch.device("cpu"), mirrored)


def folders(data: DataConfig) -> list[Path]:
    return sorted((Path(data.cache_dir) / "latents").glob("*")) + sorted((Path(data.cache_dir) / "latents").glob(".*"))


def test_the_store_holds_what_encoding_gives(data, source, stage, pixels):
    store = open_it(data, source, stage, mirrored=True)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    indices = np.array([20, 0, 7, 7])
    for view, wanted in enumerate((images, images.flip(-1))):
        with torch.no_grad():
            encoded = stage.model.encode(wanted).latents
        assert store.get(indices, view).dtype == torch.float32
        torch.testing.assert_close(store.get(indices, view), encoded[indices], rtol=2e-3, atol=1e-3)  # float16
    both = store.get(indices, np.array([0, 1, 0, 1]))
    assert torch.equal(both[1], store.get(indices, 1)[1]) and torch.equal(both[2], store.get(indices, 0)[2])
    assert len(store) == COUNT and store.corrupt == 0
    assert store.std == pytest.approx(float(np.asarray(store.latents, np.float64).std()), rel=1e-6)


def test_a_second_run_does_not_encode_again(data, source, stage):
    first = open_it(data, source, stage)
    calls = stage.calls
    assert calls == 2
    second = open_it(data, source, stage)
    assert stage.calls == calls
    assert np.array_equal(first.latents, second.latents) and first.std == second.std
    stage.scaling_factor = 3.0  # the store is unscaled
    open_it(data, source, stage)
    assert stage.calls == calls and len(folders(data)) == 1


def test_what_changes_the_latents_makes_another_store(data, source, stage):
    def count_after(**changes) -> int:
        given = {"data": data, "source": source, "stage": stage, **changes}
        open_it(**given)
        return len(folders(data))

    assert count_after() == 1
    assert count_after(part="held-out") == 2
    assert count_after(seed=1) == 3  # another part is held out
    split = replace(data, eval_split="validation")
    assert count_after(data=split) == 4
    assert count_after(data=split, seed=1) == 4  # the seed holds nothing out here
    assert count_after(data=replace(data, split="other")) == 5
    assert count_after(data=replace(data, resolution=8)) == 6
    assert count_after(mirrored=True) == 7
    with torch.no_grad():
        stage.model.quant_conv.bias[0] += 1e-3
    assert count_after() == 8
    stage.model.register_to_config(norm_num_groups=2)  # the same weights, another function
    assert count_after() == 9
    (Path(data.name) / "a.png").write_bytes(b"ab")
    assert count_after() == 10
    elsewhere = Path(data.cache_dir) / "b.parquet"
    elsewhere.write_bytes(b"b")
    files = replace(data, name="parquet", data_files={"train": str(elsewhere)})
    assert count_after(data=files) == 11
    elsewhere.write_bytes(b"bc")
    assert count_after(data=files) == 12


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("name", ["latents.bin", "store.json"])
def test_a_damaged_store_is_named(data, source, stage, name):
    open_it(data, source, stage)
    file = folders(data)[0] / name
    whole = file.read_bytes()
    nonsense = [whole[:-1], b"", b"\xff\xfe"]
    if name == "store.json":
        about = json.loads(whole)
        nonsense += [
            b"[]",
            b"null",
            b"{}",
            json.dumps({**about, "std": None}).encode(),
            json.dumps({**about, "std": 0}).encode(),
        ]
        nonsense += [json.dumps({**about, "shape": shape}).encode() for shape in ("abc", [1, 2], None)]
    for damaged in nonsense:
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"latent store {file.parent} is damaged"):
            open_it(data, source, stage)
    if name == "latents.bin":
        file.unlink()
        with pytest.raises(UserError, match="is damaged"):
            open_it(data, source, stage)
    file.write_bytes(whole)
    open_it(data, source, stage)


def test_a_build_that_dies_leaves_nothing_and_the_next_one_succeeds(data, source, stage, monkeypatch):
    encode = FirstStage.encode

    def dies(self, images):
        if self.calls == 1:
            raise KeyboardInterrupt
        return encode(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(FirstStage, "encode", dies)
        with pytest.raises(KeyboardInterrupt):
            open_it(data, source, stage)
    assert folders(data) == []
    assert len(open_it(data, source, stage)) == COUNT


def test_a_full_disk_leaves_nothing(data, source, stage, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *how: Full(opened(self, *how)) if self.suffix == ".bin" else opened(self, *how)
    )
    with pytest.raises(OSError, match="No space left") as caught:
        open_it(data, source, stage)
    assert caught.value.errno == errno.ENOSPC  # one_line_errors makes one line of it
    assert folders(data) == []


def test_latents_that_are_not_numbers_are_refused(data, source, stage):
    with torch.no_grad():
        stage.model.quant_conv.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="are its weights whole"):
        open_it(data, source, stage)
    with torch.no_grad():
        stage.model.quant_conv.weight.fill_(0)  # each latent is the bias
        stage.model.quant_conv.bias.fill_(0.1)
    with pytest.raises(UserError, match="are its weights whole"):
        open_it(data, source, stage)
    with torch.no_grad():
        stage.model.quant_conv.weight.normal_(std=1e6)  # beyond float16
    with pytest.raises(UserError, match="are its weights whole"):
        open_it(data, source, stage)
    assert folders(data) == []


def test_an_empty_part_and_a_cache_that_cannot_be_written(data, source, stage, tmp_path):
    empty = replace(source, dataset=source.dataset.select([]))
    with pytest.raises(UserError, match="train part of 'noise' is empty"):
        open_it(data, empty, stage)
    assert folders(data) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data.cache_dir .*file/latents cannot be written"):
        open_it(replace(data, cache_dir=str(tmp_path / "file")), source, stage)


# --------------------------------------------------------------------------------------------------------- the batches


def numbered(count: int, views: int = 1) -> LatentStore:
    """Latent i is i + 1000 view."""
    values = np.arange(count)[:, None] + 1000 * np.arange(views)
    return LatentStore(values.astype(np.float16)[:, :, None, None, None], 1.0, 0)


def take(batches: LatentBatches, count: int, start: int = 0) -> list[int]:
    return torch.cat(list(itertools.islice(batches(start), count))).flatten().int().tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 25])
def test_each_epoch_is_another_permutation(batch_size):
    sequence = take(LatentBatches(numbered(10), 0, batch_size), -(-30 // batch_size))
    epochs = [sequence[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != take(LatentBatches(numbered(10), 1, 10), 1)  # another seed


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_what_one_sees(processes):
    alone = take(LatentBatches(numbered(10, 2), 5, 3 * processes), 7)
    shares = [take(LatentBatches(numbered(10, 2), 5, 3, (rank, processes)), 7) for rank in range(processes)]
    together = [share[3 * k : 3 * k + 3] for k in range(7) for share in shares]
    assert list(itertools.chain(*together)) == alone


@pytest.mark.parametrize("start", [1, 3, 4, 11])
def test_starting_late_is_dropping_the_first(start):
    batches = LatentBatches(numbered(10, 2), 0, 3, (1, 2))
    assert take(batches, 5, start) == take(batches, 5 + start)[3 * start :]


def test_half_of_the_views_are_mirrored_and_change_per_epoch():
    sequence = np.array(take(LatentBatches(numbered(1000, 2), 0, 100), 20)).reshape(2, 1000)
    mirrored = [dict(zip((epoch % 1000).tolist(), (epoch >= 1000).tolist(), strict=True)) for epoch in sequence]
    assert all(420 < sum(views.values()) < 580 for views in mirrored)  # five standard deviations of 16
    assert 420 < sum(mirrored[0][i] != mirrored[1][i] for i in range(1000)) < 580
    assert max(take(LatentBatches(numbered(10), 0, 10), 3)) < 10  # no second view: none is drawn
