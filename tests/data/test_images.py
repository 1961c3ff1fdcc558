"""Decoding and resizing images, and corrupt images."""

import itertools

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
    numbers,
    one_pass,
    parquet,
    picture,
    take,
    whole,
)
from tinyldm.data.images import ImageBatches, Images, collate, first_images, to_float, to_square, to_uint8
from tinyldm.data.sources import open_sources
from tinyldm.errors import UserError
from tinyldm.randomness import Rank


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
    # Sizes where torchvision crops at whole pixels; for others its crop is up to half a pixel off the centre.
    image = mosaic(width, height, 64)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    resized = tv.resize(pixels, [resolution], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    expected = tv.center_crop(resized, [resolution]).permute(1, 2, 0).numpy()
    difference = np.abs(to_square(image, resolution).astype(int) - expected)
    # Shrinking more than sixfold uses a box filter first (reducing_gap): faster, but less exact for fine detail.
    assert difference.max() <= (3 if min(width, height) <= 6 * resolution else 12) and difference.mean() < 1.5


@pytest.mark.parametrize(("width", "height", "resolution"), [(333, 200, 50), (151, 200, 32), (101, 100, 7), (40, 57, 64)])
def test_the_crop_is_central_whatever_the_size(width, height, resolution):
    # A linear gradient stays linear: each pixel of the result has the value at its place in the central square.
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    plane = (20 + 200 * (x + y) / (width + height)).astype(np.float32)
    square = to_square(Image.fromarray(plane.round().astype(np.uint8)), resolution)[..., 0]
    side = min(width, height)
    place = (np.arange(resolution) + 0.5) * side / resolution - 0.5
    columns, rows = place + (width - side) / 2, place + (height - side) / 2
    expected = 20 + 200 * (columns[None] + rows[:, None]) / (width + height)
    inner = slice(2, -2)  # at the edge of the image the filter has pixels on one side only
    assert np.abs(square - expected)[inner, inner].max() < 1.5 + 100 / (width + height)  # two roundings and half a pixel


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


DISPLAY = {  # EXIF orientation -> how to show the stored pixels
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
def test_photographs_are_oriented_by_exif(orientation, tmp_path):
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
def test_an_unreadable_picture_is_skipped_or_replaced_by_the_next(name, tmp_path, capsys):
    contents = {f"{i:02d}.jpg": picture(i) for i in range(25)} | {"03.jpg": UNREADABLE[name]}
    for path, streaming in itertools.product(
        (folder(tmp_path / "folder", contents), parquet(tmp_path / "parquet", [list(contents.values())])), (True, False)
    ):
        images = Images(whole(path, streaming=streaming), 8, 3)
        actual = [number for batch in one_pass(images, 4) for number in numbers(batch)]
        assert actual == [0, 1, 2, *range(4, 25)]
        filled = Images(whole(path, streaming=streaming), 8, 3)
        places = list(filled(filled.source.epoch(None, 0), fill=True))
        assert numbers(collate(places).x) == [0, 1, 2, 4, *range(4, 25)]
        assert capsys.readouterr().err.count("which is unreadable") == 2
        assert (images.seen, images.corrupt) == (25, 1)


def test_an_empty_cell_and_a_missing_file(tmp_path):
    assert in_order(whole(parquet(tmp_path / "p", [[picture(i) for i in range(20)] + [None] + [picture(20)]]))) == [*range(21)]
    path = folder(tmp_path / "f", {f"{i:02d}.png": picture(i) for i in range(21)})
    source = whole(path)
    (path / "05.png").unlink()
    assert in_order(source) == [0, 1, 2, 3, 4, *range(6, 21)]


@pytest.mark.parametrize("streaming", [True, False])
def test_more_than_five_percent_stop_the_run(streaming, tmp_path):
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
def test_only_corrupt_images(count, streaming, tmp_path):
    source = whole(folder(tmp_path, {f"{i}.png": corrupt(i) for i in range(count)}), streaming=streaming)
    for rank in (Rank(0, 1), Rank(1, 3)):
        with pytest.raises(UserError, match=r"(\d+) of \1 images"):
            take(ImageBatches(Images(source, 8, 2), 0, 4, rank)(), 1)
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
    content[4:400] = bytes(396)  # the footer is intact, so the damage only appears when images are read
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        in_order(whole(path))


@pytest.mark.parametrize("num_workers", [1, 5])
def test_no_thread_gives_the_images_of_threads(num_workers, tmp_path):
    """num_workers 0 means "in this thread", as PyTorch's users know it."""
    source = whole(folder(tmp_path, {f"{number:02}.png": picture(number) for number in range(40)}))
    alone, threaded = (list(Images(source, 8, count)(source.epoch(1, 0))) for count in (0, num_workers))
    assert len(alone) == 40 and all((a[0] == b[0]).all() for a, b in zip(alone, threaded, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_claims_to_be_huge_is_unreadable(num_workers, tmp_path, capsys):
    Image.new("1", (11_000, 11_000)).save(tmp_path / "bomb.png", compress_level=1)
    source = whole(folder(tmp_path, {f"{number:02}.png": picture(number) for number in range(40)}))
    images = Images(source, 8, num_workers)
    assert len(list(images(source.epoch(None, 0)))) == 40
    assert images.corrupt == 1 and "bomb.png" in capsys.readouterr().err
