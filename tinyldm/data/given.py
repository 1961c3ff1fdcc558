"""Images that a user names on the command line: one file, or a folder of them."""

from pathlib import Path

import torch
from PIL import Image

from tinyldm.data.images import to_square
from tinyldm.errors import UserError, boundary
from tinyldm.limits import open_image


def files_in(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, sorted, without hidden ones."""
    endings = Image.registered_extensions()
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in endings and not file.name.startswith("."))


def image_files(path: str) -> list[Path]:
    """The image files of a folder, sorted, or the file itself.

    Raises:
        UserError: if there is none.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{path} does not exist: give an image, or a folder of images")
    if place.is_file():
        return [place]
    files = files_in(place)
    if not files:
        raise UserError(f"the folder {path} holds no images: give one with png or jpeg files")
    return files


def read_images(path: str, side: int) -> tuple[torch.Tensor, list[str]]:
    """uint8 images (N, 3, side, side) and what was done to them: cropped to their central square, and resized.

    Raises:
        UserError: if there is none, or one cannot be read.
    """
    images, sizes = [], set()
    for file in image_files(path):
        with boundary(f"{file} cannot be read as an image"), open_image(file) as image:
            sizes.add(image.size)
            images.append(torch.from_numpy(to_square(image, side).copy()).permute(2, 0, 1))
    others = sorted(sizes - {(side, side)})
    listed = ", ".join(f"{width} x {height}" for width, height in others[:3]) + (", ..." if len(others) > 3 else "")
    return torch.stack(images), [f"{path}: {listed} is cropped to its centre and resized to {side} x {side}"] if others else []


def read_mask(path: str, side: int) -> tuple[torch.Tensor, list[str]]:
    """A mask (1, 1, side, side), 1 where the image is white, and what was done to it.

    Raises:
        UserError: if it cannot be read, or if all of it or nothing of it is white.
    """
    images, notes = read_images(path, side)
    mask = (images[:1].float().mean(1, keepdim=True) > 127.5).float()
    if mask.min() == mask.max():
        what = "white: nothing of the image would be kept" if mask.min() else "black: nothing would be drawn"
        raise UserError(f"mask {path} is all {what}")
    return mask, notes


def parse_box(text: str) -> list[int] | None:
    """The four numbers of `left,top,right,bottom`; None for another text."""
    parts = text.strip("[]() ").split(",")
    return [int(part) for part in parts] if len(parts) == 4 and all(part.strip().isdigit() for part in parts) else None
