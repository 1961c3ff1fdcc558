"""Training images that are decoded once."""

import contextlib
import itertools
from collections import Counter

import pytest
from accelerate import Accelerator

from tests.support.sources import corrupt, numbers, parquet, picture, whole
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainDDPM
from tinyldm.data import images, kept, toyfaces
from tinyldm.data.images import ImageBatches, Images
from tinyldm.data.kept import KeptImages
from tinyldm.data.sources import open_sources
from tinyldm.training.task import image_batches


@pytest.fixture
def decoded(monkeypatch) -> Counter[bytes]:
    """How often each file was decoded."""
    count, read = Counter[bytes](), images.read_square

    def counted(content: bytes, *args: int):
        count[content] += 1
        return read(content, *args)

    monkeypatch.setattr(images, "read_square", counted)
    return count


def seen(folder, streaming: bool, kept: KeptImages | None, position: int = 0) -> tuple[list[list[int]], list[str]]:
    """The numbers and labels of the pictures in some batches, and the unreadable files."""
    reader = Images(whole(folder, streaming=streaming, label_columns="label"), 8, 1)  # two threads may decode a file at once
    reader.kept = kept
    with contextlib.closing(ImageBatches(reader, 5, 4)(position)) as batches:
        read = [numbers(x) + c.labels.flatten().tolist() for x, c in itertools.islice(batches, 20 - position // 4)]
    return read, sorted(reader.unreadable)


@pytest.mark.parametrize("streaming", [True, False])
def test_kept_images_are_those_of_the_stream_and_decoded_once(streaming, tmp_path, decoded):
    files = [corrupt(i) if i == 3 else picture(i) for i in range(24)]
    folder = parquet(tmp_path, [files[:5], files[5:]])
    plain = seen(folder, streaming, None)
    assert max(decoded.values()) > 2 and len(plain[1]) == 1
    decoded.clear()
    keeping = KeptImages()
    assert seen(folder, streaming, keeping) == plain  # 80 images: more than three epochs
    assert {decoded[picture(i)] for i in range(24) if i != 3} == {1} and decoded[corrupt(3)] > 1
    assert keeping.left == kept.LIMIT - 23 * 8 * 8 * 3
    resumed = seen(folder, streaming, KeptImages(), position=36)
    assert resumed[0] == plain[0][9:]


def test_a_set_that_does_not_fit_is_not_kept(tmp_path, decoded, capsys):
    folder = parquet(tmp_path, [[picture(i) for i in range(24)]])
    plain = seen(folder, True, None)
    decoded.clear()
    keeping = KeptImages(10 * 8 * 8 * 3)
    assert seen(folder, True, keeping) == plain
    assert min(decoded.values()) > 1 and not keeping._squares
    assert capsys.readouterr().err.count("do not fit") == 1


@pytest.mark.parametrize(
    ("args", "stays"),
    [
        (["--train.max_steps", "400", "--train.batch_size", "32"], "7.7 MB"),
        (["--train.max_steps", "200", "--train.batch_size", "32"], None),  # not one epoch of 10,000
        (["--train.num_epochs", "1"], None),
        (["--train.num_epochs", "1.5"], "7.7 MB"),
        (["--train.num_epochs", "2", "--data.resolution", "256"], None),  # 2 GB
        (["--train.max_steps", "9", "--data.eval_split", "null", "--data.split", "validation"], "at most 1 GiB"),  # not counted
    ],
)
def test_what_fits_and_is_needed_again_is_kept(args, stays, capsys):
    base = ["--output_dir", "", "--data.resolution", "16", "--data.eval_split", "validation"]
    config = parse(TrainDDPM, "", [*base, *args])
    batches = image_batches(config, open_sources(config.data, 0)[0], Accelerator(cpu=True))
    assert (batches.images.kept is not None) == (stays is not None)
    assert capsys.readouterr().out == (f"the training images stay in memory once they are decoded: {stays}\n" if stays else "")


def test_small_faces_are_drawn_once(monkeypatch):
    toyfaces._drawn_once.cache_clear()
    faces = toyfaces.load("train", 16, num_examples=8).with_format(None)
    first = [example["image"].tobytes() for example in faces]
    monkeypatch.setattr(toyfaces, "draw", lambda *args: pytest.fail("drawn again"))
    assert [example["image"].tobytes() for example in faces] == first
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        next(iter(toyfaces.load("train", 65)))
