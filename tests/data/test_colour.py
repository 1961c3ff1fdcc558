"""Which number is white, and which colours the numbers are."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tinyldm.data.images import to_square


def reopened(image: Image.Image, kind: str = "TIFF", **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def flat(numbers: list[float], kind: type) -> Image.Image:
    """Vertical stripes of eight pixels, so that the middle of each keeps its number."""
    return Image.fromarray(np.tile(np.repeat(np.array(numbers, kind), 8), (8 * len(numbers), 1)))


def stripes(image: Image.Image, count: int, channels: int = 1) -> list[int]:
    square = to_square(image, 8 * count, channels)
    return square[4 * count, 4::8].squeeze().tolist()


# --------------------------------------------------------------------------------------------------------------- bit depths


@pytest.mark.parametrize(
    ("kind", "white"),
    [
        *((kind, white) for kind in (np.uint16, np.int32, np.float32) for white in (255, 1023, 4095, 16383, 65535)),
        (np.float32, 1.0),
        (np.int32, 1_000_000),
    ],
)
def test_white_is_the_largest_number_of_the_bit_depth_that_is_used(kind, white):
    numbers = [0, white * 0.2, white * 0.6, white]
    assert stripes(reopened(flat(numbers, kind)), 4) == pytest.approx([0, 51, 153, 255], abs=1)


def test_an_image_without_white_has_the_scale_of_its_bit_depth():
    assert stripes(reopened(flat([0, 1000, 3000], np.uint16)), 3) == pytest.approx([0, 62, 187], abs=1)
    assert stripes(reopened(flat([0, 40, 90], np.float32)), 3) == [0, 40, 90]
    assert stripes(reopened(flat([0, 0.25, 0.5], np.float32)), 3) == pytest.approx([0, 64, 128], abs=1)
    assert stripes(reopened(flat([0, 1000, 3000], np.uint16), "PNG"), 3) == pytest.approx([0, 62, 187], abs=1)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_negative_values_are_scaled_from_the_smallest_to_the_largest(kind):
    assert stripes(reopened(flat([-1000, 0, 1000], kind)), 3) == pytest.approx([0, 128, 255], abs=1)


@pytest.mark.parametrize(("low", "high"), [(340, 341), (280, 281)])
def test_a_declared_range_goes_before_the_measured_one(low, high):
    image = reopened(flat([100, 200, 300], np.uint16), tiffinfo={low: 100, high: 500})
    assert stripes(image, 3) == pytest.approx([0, 64, 128], abs=1)
    image = reopened(flat([0, 0.5, 1], np.float32), tiffinfo={341: 2.0} if high == 341 else {281: 2})
    assert stripes(image, 3) == pytest.approx([0, 64, 128], abs=1)


def test_values_that_are_not_finite_are_no_image():
    with pytest.raises(ValueError, match="not finite"):
        to_square(reopened(flat([0, np.nan], np.float32)), 8)


# ----------------------------------------------------------------------------------------------------------------- profiles


def icc(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2, of a display or printer."""
    tags = {b"desc": text(b"desc", b"own"), b"cprt": text(b"text", b"none"), b"wtpt": xyz(0.9642, 1, 0.8249), **tags}
    body, table = b"", struct.pack(">I", len(tags))
    for name, content in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = 128 + len(table) + len(body)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, kind, space, connection) + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    return header.ljust(128, b"\0") + table + body


def text(kind: bytes, content: bytes) -> bytes:
    if kind == b"text":
        return kind + bytes(4) + content + b"\0"
    return kind + bytes(4) + struct.pack(">I", len(content) + 1) + content + b"\0" + bytes(78)


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


WIDE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])  # Adobe RGB, D50
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])  # sRGB, D50


def wide() -> bytes:
    columns = {name: xyz(*WIDE[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return icc(b"RGB ", b"XYZ ", {**columns, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(2.2))})


def wide_to_srgb(colour: tuple[int, ...]) -> np.ndarray:
    linear = np.linalg.solve(SRGB, WIDE @ (np.array(colour) / 255) ** 2.2).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * encoded


COLOURS = [(200, 100, 50), (40, 160, 90), (128, 128, 128), (90, 60, 180)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("colour", COLOURS)
def test_colours_become_srgb_by_the_profile_of_the_file(kind, colour):
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    image = reopened(Image.new("RGB", (40, 40), colour), kind, icc_profile=wide(), **options)
    assert np.abs(to_square(image, 8)[4, 4] - wide_to_srgb(colour)).max() <= 2.5
    grey = to_square(reopened(Image.new("RGB", (40, 40), colour), kind, icc_profile=wide(), **options), 8, 1)
    assert abs(grey[4, 4, 0] - wide_to_srgb(colour) @ (0.299, 0.587, 0.114)) <= 2.5


def test_palettes_transparency_and_grey_have_profiles_too():
    colour = COLOURS[0]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *colour])
    for image in (palette, Image.new("RGBA", (8, 8), (*colour, 255))):
        assert np.abs(to_square(reopened(image, "PNG", icc_profile=wide()), 8)[4, 4] - wide_to_srgb(colour)).max() <= 2.5
    hidden = Image.new("RGBA", (8, 8), (*colour, 0))
    assert (to_square(reopened(hidden, "PNG", icc_profile=wide()), 8) == 255).all()  # white stays white
    grey = icc(b"GRAY", b"XYZ ", {b"kTRC": gamma(1.0)})
    linear = to_square(reopened(Image.new("L", (8, 8), 55), "PNG", icc_profile=grey), 8)
    assert np.abs(linear.astype(int) - 128).max() <= 2  # 0.2159 of the light is 128 in sRGB


def inks() -> bytes:
    """A printer whose first ink is red, though CMYK's is cyan: mft1 tables from CMYK to Lab with two points an axis."""
    table = b"mft1" + bytes(4) + struct.pack(">BBBx9i", 4, 3, 2, *(65536, 0, 0, 0, 65536, 0, 0, 0, 65536))
    ramp = bytes(range(256))
    paper, red, black = bytes([255, 128, 128]), bytes([138, 209, 195]), bytes([0, 128, 128])  # L of 255 is 100; a, b + 128
    points = b"".join(black if i & 1 else red if i & 8 else paper for i in range(16))  # the last ink varies fastest
    return icc(b"CMYK", b"Lab ", {b"A2B0": table + 4 * ramp + points + 3 * ramp})


def test_inks_become_srgb_by_the_profile_of_the_file():
    for colour, expected in (((255, 0, 0, 0), (255, 0, 0)), ((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))):
        image = reopened(Image.new("CMYK", (8, 8), colour), "TIFF", icc_profile=inks())
        assert np.abs(to_square(image, 8)[4, 4].astype(int) - expected).max() <= 12


@pytest.mark.parametrize("profile", [b"", b"nonsense", wide()[:150], inks(), icc(b"GRAY", b"XYZ ", {b"kTRC": gamma(1.0)})])
def test_a_broken_profile_or_one_of_other_colours_is_ignored(profile):
    image = reopened(Image.new("RGB", (8, 8), (10, 20, 30)), "PNG", icc_profile=profile)
    assert to_square(image, 8)[4, 4].tolist() == [10, 20, 30]
