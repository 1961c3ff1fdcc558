"""What the numbers in an image file mean: which of them is white, and which colours they are. images.py makes squares."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

BIT_DEPTHS = (8, 10, 12, 14, 16)
MOST_IN_UNIT_RANGE = 2.0  # floats up to here are in [0, 1], with some overshoot; others use the numbers of a bit depth
DECLARED = ((340, 341), (280, 281))  # TIFF's tags of the values of black and white: SMinSampleValue, MinSampleValue ...
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a profile's colour space


def to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of mode I, I;16 or F in mode L.

    A TIFF may declare its black and white: by the tags in `DECLARED`, or by 10, 12 or 14 bits per sample. Other files do not
    say, so their values do. If some are negative, the smallest is black and the largest white. Otherwise black is 0. White is
    1 for floats up to 2, else the largest number of the first of `BIT_DEPTHS` that holds all values.

    Raises:
        ValueError: for values that are not finite.
    """
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("some values are not finite")
    black, white = _declared(image) or _measured(values, image.mode == "F")
    scaled = (values - black) * (255 / max(white - black, 1e-9))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _declared(image: Image.Image) -> tuple[float, float] | None:
    tags = getattr(image, "tag_v2", {})
    numbers = {tag: float(np.ravel(tags[tag])[0]) for tag in (258, *sum(DECLARED, ())) if tag in tags}
    for low, high in DECLARED:
        if high in numbers:
            return numbers.get(low, 0.0), numbers[high]
    bits = int(numbers.get(258, 16))
    return None if bits % 8 == 0 else (0.0, 2.0**bits - 1)


def _measured(values: np.ndarray, floats: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if low < 0:
        return low, high
    if floats and high <= MOST_IN_UNIT_RANGE:
        return 0.0, 1.0
    return 0.0, next((white for bits in BIT_DEPTHS if high <= (white := 2.0**bits - 1)), high)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of mode L, RGB or CMYK to sRGB by its ICC profile. One that is broken or does not fit is ignored."""
    found = _transform(profile) if profile else None
    if found is None or image.mode not in (found.input_mode, "L"):
        return image
    if image.mode != found.input_mode:  # grey in a file with a profile of colours
        if found.input_mode != "RGB":
            return image
        image = image.convert("RGB")
    return ImageCms.applyTransform(image, found) or image


@functools.lru_cache(16)  # building one takes longer than a small image
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(opened):  # nothing to convert, and no rounding
            return None
        mode = MODES[opened.profile.xcolor_space.strip()]
        return ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")  # type: ignore[arg-type]
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return None
