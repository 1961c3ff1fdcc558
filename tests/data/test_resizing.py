"""The central square of an image: torch and torchvision against Pillow, for every kind of file."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.support.sources import encode
from tinyldm.data import images, resizing
from tinyldm.data.images import read_square
from tinyldm.data.resizing import central_square

pytestmark = pytest.mark.skipif(not resizing.FAST, reason="Pillow does all of it on this CPU")
RANDOM = np.random.default_rng(0)


def by_pillow(function, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resizing, "FAST", False)  # neither resizing nor decoding by others
        return function(*args)


def photo(width: int, height: int) -> Image.Image:
    """Smooth shades with sharp edges and grain."""
    colours = np.asarray(Image.fromarray(RANDOM.integers(0, 256, (7, 7, 3), np.uint8)).resize((width, height)), np.int16)
    edges = 60 * (np.add.outer(np.arange(height) // 9, np.arange(width) // 13) % 2)[..., None]
    return Image.fromarray((colours + edges + RANDOM.normal(0, 6, (height, width, 1))).clip(0, 255).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    """Black and white values: every overshoot of the filter is clipped."""
    return Image.fromarray(RANDOM.integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255))


SIZES = [(160, 160), (201, 187), (187, 201), (67, 64), (64, 64), (64, 99), (380, 64), (383, 383), (150, 155)]


@pytest.mark.parametrize("kind", [photo, noise])
@pytest.mark.parametrize("size", SIZES)
def test_torch_resizes_as_pillow_does(size, kind):
    image = kind(*size)
    for resolution in (2, 7, 32, 64):
        difference = np.abs(central_square(image, resolution).astype(int) - by_pillow(central_square, image, resolution))
        assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize("size", SIZES)
def test_one_colour_stays_the_same(size):
    for colour, resolution in itertools.product([(255, 255, 255), (0, 128, 77)], (7, 64)):
        assert (central_square(Image.new("RGB", size, colour), resolution) == colour).all()


@pytest.mark.parametrize(
    ("size", "fast"), [((150, 150), True), ((150, 236), True), ((150, 237), False), ((63, 63), False), ((384, 384), False)]
)
def test_where_torch_resizes(size, fast, monkeypatch):
    """Not where Pillow enlarges, shrinks sixfold or starts with the columns."""
    monkeypatch.setattr(resizing, "shrink", lambda pixels, resolution: "torch")
    assert isinstance(central_square(Image.new("RGB", size), 64), str) == fast


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)


PICTURE, SRGB = photo(200, 211), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FILES = {
    "JPEG, 4:2:0": encode(PICTURE, "JPEG"),
    "JPEG, 4:4:4": encode(PICTURE, "JPEG", subsampling=0, quality=95),
    "JPEG, progressive": encode(PICTURE, "JPEG", progressive=True),
    "JPEG, grey": encode(PICTURE.convert("L"), "JPEG"),
    "JPEG, CMYK": encode(PICTURE.convert("CMYK"), "JPEG"),
    "JPEG with a profile": encode(PICTURE, "JPEG", icc_profile=SRGB),
    **{f"JPEG, orientation {number}": encode(PICTURE, "JPEG", exif=oriented(number)) for number in range(1, 9)},
    "JPEG, large": encode(PICTURE.resize((1600, 1800)), "JPEG"),
    "PNG": encode(PICTURE),
    "PNG, grey": encode(PICTURE.convert("L")),
    "PNG, palette": encode(PICTURE.quantize()),
    "PNG with alpha": encode(PICTURE.convert("RGBA")),
    "PNG, 16 bits": encode(deep(PICTURE)),
    "PNG with a profile": encode(PICTURE, icc_profile=SRGB),
    "PNG, small": encode(PICTURE.resize((20, 31))),
    "PNG, a strip": encode(PICTURE.resize((3000, 70))),
    "PNG, a pixel": encode(PICTURE.resize((1, 1))),
    "WebP": encode(PICTURE, "WEBP"),
    "BMP": encode(PICTURE, "BMP"),
    "TIFF": encode(PICTURE, "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_looks_as_pillow_makes_it(name, channels):
    square, expected = read_square(FILES[name], 64, channels), by_pillow(read_square, FILES[name], 64, channels)
    difference = np.abs(square.astype(int) - expected)
    assert square.shape == (64, 64, channels) and difference.max() <= 1 and difference.mean() < 0.01


def test_which_files_torchvision_decodes(monkeypatch):
    decoded = []
    for name, content in FILES.items():
        monkeypatch.setattr(images, "shrink", lambda *_, name=name: decoded.append(name))
        read_square(content, 64)
    assert decoded == ["JPEG, 4:2:0", "JPEG, 4:4:4", "JPEG, progressive", "JPEG, orientation 1"]


def test_damaged_files_are_refused_or_shown_as_by_pillow():
    def outcome(content: bytes) -> list | str:
        try:
            return read_square(content, 64).tolist()
        except Exception as error:
            return f"{type(error).__name__}: {error}".split(" at 0x")[0]

    texts = set()
    for number, name in itertools.product(range(60), ("JPEG, 4:2:0", "JPEG, progressive")):
        content = bytearray(FILES[name])
        if number % 3:
            content[RANDOM.integers(600 if number % 3 == 1 else len(content))] ^= 1 << RANDOM.integers(8)
        else:
            content = content[: RANDOM.integers(len(content))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images, "decode_jpeg", None)
            expected = outcome(bytes(content))
        assert outcome(bytes(content)) == expected
        texts.add(expected if isinstance(expected, str) else "shown")
    assert len(texts) > 3  # several errors, and images
