"""Images, their order, and the threads that read ahead."""

import contextlib
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image

from tests.support.sources import (
    config,
    corrupt,
    encode,
    folder,
    in_order,
    joined,
    numbers,
    parquet,
    picture,
    whole,
)
from tinyldm.data import ImageBatches, Images, collate, first_images, one_pass, read_ahead, to_float, to_square, to_uint8
from tinyldm.errors import UserError
from tinyldm.sources import Source, open_sources


def take(batches, count: int) -> list[list[int]]:
    """The numbers in the next batches of a generator, which is closed afterwards."""
    with contextlib.closing(batches):
        return [numbers(batch.images) for batch in itertools.islice(batches, count)]


def mosaic(width: int, height: int, cells: int = 6) -> Image.Image:
    """A smooth random picture."""
    colours = np.random.default_rng(0).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


# --------------------------------------------------------------------------------------------------------- one image


@pytest.mark.parametrize(
    ("width", "height", "resolution"),
    [(96, 64, 32), (64, 96, 32), (64, 64, 64), (30, 20, 64), (1, 1, 16), (9000, 20, 20), (9000, 20, 32), (1200, 800, 40)],
)
def test_to_square_is_torchvisions_resize_and_centre_crop(width, height, resolution):
    # Shapes where torchvision's crop falls on whole pixels; elsewhere it is up to half a pixel off the centre.
    image = mosaic(width, height, 64)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    resized = tv.resize(pixels, [resolution], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    expected = tv.center_crop(resized, [resolution]).permute(1, 2, 0).numpy()
    difference = np.abs(to_square(image, resolution).astype(int) - expected)
    # Shrinking more than sixfold goes through a box filter first (reducing_gap): faster, and a little off on sharp detail.
    assert difference.max() <= (3 if min(width, height) <= 6 * resolution else 12) and difference.mean() < 1.5


@pytest.mark.parametrize(("width", "height", "resolution"), [(333, 200, 50), (151, 200, 32), (101, 100, 7), (40, 57, 64)])
def test_the_crop_is_central_whatever_the_size(width, height, resolution):
    # A plane stays a plane: its value at a pixel of the result is the one at that place of the central square.
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    plane = (20 + 200 * (x + y) / (width + height)).astype(np.float32)
    square = to_square(Image.fromarray(plane.round().astype(np.uint8)), resolution)[..., 0]
    side = min(width, height)
    place = (np.arange(resolution) + 0.5) * side / resolution - 0.5
    columns, rows = place + (width - side) / 2, place + (height - side) / 2
    expected = 20 + 200 * (columns[None] + rows[:, None]) / (width + height)
    inner = slice(2, -2)  # at the rim of the image the filter has pixels on one side only
    assert np.abs(square - expected)[inner, inner].max() < 1.5 + 100 / (width + height)  # rounding twice, half a pixel


def halves(left, right, mode: str) -> Image.Image:
    image = Image.new(mode, (16, 16), right)
    image.paste(Image.new(mode, (8, 16), left), (0, 0))
    return image


def palette(alpha: bytes | int | None = None) -> bytes:
    image = halves(0, 1, "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    return encode(image) if alpha is None else encode(image, transparency=alpha)


def deep(left: float, right: float, kind: type) -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(np.array([[left, right]], kind), 8, 1), 16, 0))


FILES = {  # name: (file, colour of its left half, of its right half, tolerance)
    "grey": (encode(halves(7, 200, "L")), [7] * 3, [200] * 3, 0),
    "grey, a colour is transparent": (encode(halves(7, 200, "L"), transparency=7), [255] * 3, [200] * 3, 0),
    "one bit": (encode(halves(0, 1, "1")), [0] * 3, [255] * 3, 0),
    "grey and alpha": (encode(halves((40, 128), (40, 255), "LA")), [147] * 3, [40] * 3, 1),
    "RGBA": (encode(halves((0, 100, 200, 0), (0, 100, 200, 51), "RGBA")), [255] * 3, [204, 224, 244], 1),
    "RGB, a colour is transparent": (
        encode(halves((1, 2, 3), (4, 5, 6), "RGB"), transparency=(1, 2, 3)), [255] * 3, [4, 5, 6], 0,
    ),
    "palette": (palette(), [10, 20, 30], [200, 100, 50], 0),
    "palette, an entry is transparent": (palette(1), [10, 20, 30], [255] * 3, 0),
    "palette with alpha": (palette(bytes([51, 255])), [206, 208, 210], [200, 100, 50], 1),
    "GIF": (encode(halves((250, 0, 0), (0, 0, 250), "RGB"), "GIF"), [250, 0, 0], [0, 0, 250], 0),
    "CMYK JPEG": (encode(halves((0, 255, 255, 0), (0, 0, 0, 155), "CMYK"), "JPEG"), [255, 0, 0], [100] * 3, 4),
    "16-bit PNG": (encode(deep(257 * 7, 65535, np.uint16)), [7] * 3, [255] * 3, 0),
    "16-bit PGM": (encode(deep(257 * 7, 257 * 90, np.uint16), "PPM"), [7] * 3, [90] * 3, 0),
    "16-bit TIFF": (encode(deep(257 * 7, 257 * 90, np.uint16), "TIFF"), [7] * 3, [90] * 3, 0),
    "32-bit TIFF of 16-bit values": (encode(deep(257 * 7, 257 * 90, np.int32), "TIFF"), [7] * 3, [90] * 3, 0),
    "float TIFF": (encode(deep(0.2, 1.5, np.float32), "TIFF"), [51] * 3, [255] * 3, 0),
    "WebP": (encode(halves((1, 2, 3), (250, 5, 6), "RGB"), "WEBP", lossless=True), [1, 2, 3], [250, 5, 6], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_image_becomes_rgb(name, tmp_path):
    content, left, right, tolerance = FILES[name]
    square = next(iter(one_pass(Images(whole(parquet(tmp_path, [[content]])), 16, 1), 1)))[0]  # (3, 16, 16)
    expected = torch.tensor([[left] * 8 + [right] * 8] * 16).permute(2, 0, 1)
    inner = [c for c in range(16) if not tolerance or c not in (7, 8)]  # JPEG smears the edge
    assert (square.int() - expected)[..., inner].abs().max() <= tolerance


DISPLAY = {  # EXIF's orientation: how the stored pixels are to be shown
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", DISPLAY)
def test_photographs_are_turned_as_exif_says(orientation, tmp_path):
    image = mosaic(24, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = whole(folder(tmp_path, {"photo.png": encode(image, exif=exif)}))
    shown = next(one_pass(Images(source, 24, 1), 1))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, DISPLAY[orientation](np.asarray(image)))


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    (tmp_path / "large.jpg").write_bytes(encode(mosaic(2400, 1600), "JPEG", quality=95))
    with Image.open(tmp_path / "large.jpg") as image, Image.open(tmp_path / "large.jpg") as full:
        square = to_square(image, 64).astype(int)
        assert image.size == (300, 200)  # an eighth: a 64th of the work
        expected = to_square(full.convert("RGB"), 64)
    assert np.abs(square - expected).max() <= 4


def test_floats_and_bytes():
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(pixels)
    assert floats.dtype == torch.float32 and floats[0] == -1 and floats[255] == 1
    assert torch.equal(to_uint8(floats), pixels)
    assert to_uint8(torch.tensor([-1.3, 1.3, 0.001])).tolist() == [0, 255, 128]


# ---------------------------------------------------------------------------------------------------- corrupt images

JPEG = encode(mosaic(64, 48), "JPEG")
UNREADABLE = {
    "cut off JPEG": JPEG[: len(JPEG) // 2],
    "cut off PNG": corrupt(0),
    "header only": picture(0)[:20],
    "damaged PNG": picture(0)[:30] + b"????" + picture(0)[34:],
    "empty": b"",
    "text": b"this is not a picture",
    "damaged AVIF": encode(mosaic(32, 32), "AVIF").replace(b"iloc", b"ilox"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_picture_is_left_out_or_its_place_is_taken_by_the_next(name, tmp_path, capsys):
    contents = {f"{i:02d}.jpg": picture(i) for i in range(25)} | {"03.jpg": UNREADABLE[name]}
    for path, streaming in itertools.product(
        (folder(tmp_path / "folder", contents), parquet(tmp_path / "parquet", [list(contents.values())])), (True, False)
    ):
        images = Images(whole(path, streaming=streaming), 8, 3)
        found = [number for batch in one_pass(images, 4) for number in numbers(batch)]
        assert found == [0, 1, 2, *range(4, 25)]
        filled = Images(whole(path, streaming=streaming), 8, 3)
        places = list(filled(filled.source.epoch(None, 0), fill=True))
        assert numbers(collate(places).images) == [0, 1, 2, 4, *range(4, 25)]
        assert capsys.readouterr().err.count("skipped an unreadable image") == 2
        assert (images.seen, images.corrupt) == (25, 1)


def test_an_empty_cell_and_a_lost_file(tmp_path):
    assert in_order(whole(parquet(tmp_path / "p", [[picture(i) for i in range(20)] + [None] + [picture(20)]]))) == [*range(21)]
    path = folder(tmp_path / "f", {f"{i:02d}.png": picture(i) for i in range(21)})
    source = whole(path)
    (path / "05.png").unlink()
    assert in_order(source) == [0, 1, 2, 3, 4, *range(6, 21)]


@pytest.mark.parametrize("streaming", [True, False])
def test_more_than_five_in_a_hundred_stop_the_run(streaming, tmp_path):
    bad = {10, 30, 50, 70, 90}
    contents = [corrupt(i) if i in bad else picture(i) for i in range(110)]
    images = Images(whole(parquet(tmp_path / "5", [contents]), streaming=streaming), 8, 2)
    assert sum(map(len, one_pass(images, 4))) == 105 and images.corrupt == 5
    contents[100] = corrupt(100)
    images = Images(whole(parquet(tmp_path / "6", [contents]), streaming=streaming), 8, 2)
    with pytest.raises(UserError, match=r"6 of 101 images .* more than 5%.*data.image_column"):
        list(one_pass(images, 4))
    with pytest.raises(UserError, match=r"\d+ of \d\d\d images"):
        take(ImageBatches(Images(images.source, 8, 2), 0, 4)(), 200)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("count", [1, 30, 150])
def test_nothing_but_corrupt_images(count, streaming, tmp_path):
    source = whole(folder(tmp_path, {f"{i}.png": corrupt(i) for i in range(count)}), streaming=streaming)
    for process in ((0, 1), (1, 3)):
        with pytest.raises(UserError, match=r"(\d+) of \1 images"):
            take(ImageBatches(Images(source, 8, 2), 0, 4, process)(), 1)
    with pytest.raises(UserError, match=r"(\d+) of \1 images"):
        list(one_pass(Images(source, 8, 2), 4))
    with pytest.raises(UserError, match=r"no readable image|(\d+) of \1 images"):
        first_images(Images(source, 8, 2), 4)


def test_nothing_left_to_train_on(tmp_path):
    train, held_out = open_sources(config(parquet(tmp_path, [[picture(0)]]), eval_fraction=1 - 1e-9), 0)
    assert held_out.length() == 1
    with pytest.raises(UserError, match=r"training part.*empty.*data.eval_fraction"):
        take(ImageBatches(Images(train, 8, 2), 0, 4)(), 1)
    train, held_out = open_sources(config(tmp_path, eval_fraction=1e-9), 0)
    with pytest.raises(UserError, match=r"held-out part.*raise data.eval_fraction"):
        first_images(Images(held_out, 8, 2), 4)


def test_a_stream_that_breaks_off(tmp_path):
    path = parquet(tmp_path, [[picture(i) for i in range(20)], [picture(i) for i in range(20, 40)]])
    damaged = path / "train-00001-of-00002.parquet"
    content = bytearray(damaged.read_bytes())
    content[4:400] = bytes(396)  # the footer is whole, so that it shows only when the images are read
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        in_order(whole(path))


# ------------------------------------------------------------------------------------------------------------- order

SIZES = (3, 11, 1, 8)  # shards; 23 pictures in all


def uneven(path, streaming: bool, bad: set[int] = frozenset()) -> Source:
    contents = iter([corrupt(i) if i in bad else picture(i) for i in range(sum(SIZES))])
    return whole(parquet(path, [list(itertools.islice(contents, size)) for size in SIZES]), streaming=streaming)


def batches_of(source: Source, batch_size: int, count: int, start: int = 0, process=(0, 1), seed: int = 5) -> list[list[int]]:
    return take(ImageBatches(Images(source, 8, 2), seed, batch_size, process)(start), count)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_what_one_would_see(processes, streaming, tmp_path):
    source = uneven(tmp_path, streaming)
    alone = batches_of(source, 4 * processes, 7)  # more than two epochs
    shares = [batches_of(source, 4, 7, process=(rank, processes)) for rank in range(processes)]
    assert [joined(parts) for parts in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize("streaming", [True, False])
def test_each_epoch_is_another_permutation(streaming, tmp_path):
    source = uneven(tmp_path, streaming)
    order = joined(batches_of(source, 4, 23))  # 92 = 4 * 23
    epochs = [order[i : i + 23] for i in range(0, 92, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4 and list(range(23)) not in epochs
    assert order == joined(batches_of(source, 23, 4))  # not a matter of the batch size
    assert order[:23] == batches_of(uneven(tmp_path, streaming), 23, 1)[0]  # nor of what was read before
    assert order[:23] != batches_of(source, 23, 1, seed=6)[0]
    assert sorted(in_order(source)) == list(range(23))


@pytest.mark.parametrize("bad", [set(), {0}, {9}, {22}])
@pytest.mark.parametrize("streaming", [True, False])
def test_starting_later_is_dropping_the_first_batches(streaming, bad, tmp_path):
    # A 23rd is less than 5%. The corrupt picture stands elsewhere in each epoch: before, after and at the start.
    source = uneven(tmp_path, streaming, bad)
    unbroken = batches_of(source, 3, 20)
    assert not bad & set(joined(unbroken))
    for start in range(20):
        assert batches_of(source, 3, 20 - start, start) == unbroken[start:]
    for rank in range(2):
        assert batches_of(source, 3, 5, 4, (rank, 2)) == batches_of(source, 3, 9, 0, (rank, 2))[4:]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_batch_may_be_larger_than_the_data_set(streaming, tmp_path):
    source = whole(parquet(tmp_path, [[picture(0), picture(1)], [picture(2)]]), streaming=streaming)
    first, second = batches_of(source, 8, 2)
    order = first + second
    assert len(order) == 16 and all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(0, 15, 3))
    assert batches_of(source, 8, 1, 1) == [second]


# -------------------------------------------------------------------------------------------------------- read ahead


def helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "read_ahead"))]


@pytest.mark.parametrize("streaming", [True, False])
def test_no_thread_outlives_its_stream(streaming, tmp_path, capfd):
    batches = ImageBatches(Images(uneven(tmp_path, streaming), 8, 3), 0, 2)()
    next(batches)
    assert "read_ahead" in helpers() and any(name.startswith("decode") for name in helpers())
    batches.close()
    assert helpers() == []
    assert capfd.readouterr().err == ""


def test_a_script_may_end_in_the_middle_of_a_stream(tmp_path):
    """Without care, the interpreter takes the reading thread out of pyarrow and aborts or hangs (6 of 7 times here)."""
    parquet(tmp_path, [[picture(i) for i in range(23)]])
    script = f"""
import itertools
from tinyldm.config import DataConfig
from tinyldm.data import read_ahead
from tinyldm.sources import open_sources
source, _ = open_sources(DataConfig(name={str(tmp_path)!r}, resolution=8), 0)
busy = read_ahead((example for epoch in itertools.count() for example in source.epoch(0, epoch)), depth=1000000)
print(len(list(itertools.islice(busy, 40))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "40\n", "")


def test_errors_pass_through_read_ahead_as_they_are():
    error = ZeroDivisionError("as it was")

    def batches():
        yield torch.zeros(1)
        raise error

    ahead = read_ahead(batches())
    assert torch.equal(next(ahead), torch.zeros(1))
    with pytest.raises(ZeroDivisionError) as caught:
        next(ahead)
    assert caught.value is error and helpers() == []


def test_read_ahead_gives_all_in_order_and_ends():
    assert [int(item) for item in read_ahead((torch.tensor(i) for i in range(50)), depth=2)] == list(range(50))


def test_a_stalled_source_is_given_up():
    go_on = threading.Event()

    def batches():
        yield torch.zeros(1)
        go_on.wait(0.4)
        yield torch.zeros(1)

    ahead = read_ahead(batches(), timeout=0.1)
    next(ahead)
    with pytest.raises(UserError, match=r"gave nothing for .* s: check the network"):
        next(ahead)
    go_on.set()


def test_a_stream_that_stalls_is_opened_anew_where_it_stopped(tmp_path, monkeypatch, capsys):
    source, asleep = uneven(tmp_path, streaming=True), threading.Event()
    expected = batches_of(source, 4, 8)
    whole_epoch, stalls = Source.epoch, iter([5, 2, None])

    def epoch(self, seed, number, start=0):
        stop = next(stalls, None)
        for i, example in enumerate(whole_epoch(self, seed, number, start)):
            if i == stop:
                asleep.wait(30)
            yield example

    monkeypatch.setattr(Source, "epoch", epoch)
    batches = ImageBatches(Images(source, 8, 2), 5, 4, timeout=0.3)
    try:
        assert take(batches(), 8) == expected
        assert capsys.readouterr().err.count("gave nothing for 0 s: check the network; opening it anew") == 2
        stalls = iter([0, 0, 0, 0])
        with pytest.raises(UserError, match="gave nothing"):
            next(batches())
    finally:
        asleep.set()


def test_a_decoder_that_dies_ends_the_stream(tmp_path, monkeypatch):
    """What is no error of an image, such as a kill of the thread, is not counted as a corrupt one."""

    def die(self, fetch):
        raise SystemExit("killed")

    monkeypatch.setattr(Images, "decode", die)
    with pytest.raises(SystemExit):
        take(ImageBatches(Images(uneven(tmp_path, True), 8, 2), 5, 4)(), 1)
