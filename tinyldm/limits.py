"""Limits that no real file reaches, and the readers that check them before memory is used.

A small file can claim to be a huge one: an image, a compressed array, YAML aliases. A reader raises ValueError for it, or an
error of its library. `errors.boundary` turns both into one line.
"""

import contextlib
import functools
import math
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

TEXT_BYTES = 2**24  # of a recipe, a config or a list of classes
YAML_NODES = 100_000  # after its aliases are replaced by what they stand for
IMAGE_BYTES = 5 * 2**28  # that decoding and converting one image takes
FREE_BYTES = 2**28  # any compressed file may grow to this
EXPANSION = 50  # above FREE_BYTES, by at most this factor; pictures and features shrink by less than 10
STEP_BYTES = 2**31  # of the images of an optimizer step on one GPU
PARAMETERS = 2**30  # of a network
LARGEST_NUMBER = 2**20  # in a model's config
LAYERS = 64  # in a block
LARGE = threading.Lock()  # held while an image above FREE_BYTES is decoded: one at a time
COMMON = ("JPEG", "PNG")  # formats of most files
RUNS_PROGRAMS = ("EPS",)  # formats that Pillow decodes by another program


def check_expansion(unpacked: int, packed: int) -> None:
    """Raise ValueError if a file of `packed` bytes would grow to `unpacked` bytes like no real one."""
    if unpacked > max(FREE_BYTES, EXPANSION * packed):
        raise ValueError(f"it would grow from {_size(packed)} to {_size(unpacked)}")


def read_text(file: Path, limit: int = TEXT_BYTES) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: for more than `limit` bytes, or bytes that are not UTF-8.
    """
    with file.open("rb") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {_size(limit)}")
    return content.decode()


def load_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: if its aliases stand for more than YAML_NODES values.
        yaml.YAMLError: if it is not YAML.
    """
    opened = loader(text)
    try:
        node = opened.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > YAML_NODES:
            raise ValueError(f"its aliases stand for more than {YAML_NODES:,} values")
        return opened.construct_document(node)
    finally:
        opened.dispose()


def _count_nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes below this one, where each alias counts as what it stands for. Infinite where a node contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inside = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
        known[id(node)] = 1 + sum(_count_nodes(part, known) for part in inside)
    return known[id(node)]


@functools.cache
def _formats() -> list[str]:
    """The formats that images may have, in the order in which Pillow tries them."""
    from PIL import Image

    Image.init()
    return sorted((name for name in Image.ID if name not in RUNS_PROGRAMS), key=lambda name: name not in COMMON)


@contextlib.contextmanager
def open_image(file: Any, side: int = 0) -> Iterator["Image.Image"]:
    """Open an image. Decode it inside `with`: two large images are never decoded at once.

    Args:
        file: a path or a binary file.
        side: the smallest side that is needed. A large JPEG is then decoded at 1/2, 1/4 or 1/8 of its size.

    Raises:
        ValueError: if decoding and converting it would take more than IMAGE_BYTES.
    """
    from PIL import Image  # imported here to keep --help fast

    Image.MAX_IMAGE_PIXELS = 2**27  # Pillow refuses twice as many
    with Image.open(file, formats=_formats()) as image:
        width, height = image.size
        if side:
            image.draft(None, (side, side))
        plain = image.mode in ("1", "L", "P", "RGB", "YCbCr", "CMYK") and "transparency" not in image.info
        each = 12 if plain else 20  # 4 for each copy that a conversion makes
        needed = max(each * image.width * image.height, 4 * width * height if image.format == "JPEG" else 0)
        if needed > IMAGE_BYTES:
            raise ValueError(f"{width} x {height} pixels would take {_size(needed)} of memory")
        with LARGE if needed > FREE_BYTES else contextlib.nullcontext():
            yield image


def read_arrays(file: Path, names: Iterable[str] = (), optional: bool = False) -> dict[str, "np.ndarray"]:
    """The arrays of an npz with these names, or all. Nothing is unpickled.

    Args:
        optional: leave out names that are missing.

    Raises:
        KeyError: if a name is missing.
        ValueError: if an array has objects in it, another size than its header says, or grows like no real one.
        OSError, zipfile.BadZipFile: if it is not an npz.
    """
    import numpy as np

    with zipfile.ZipFile(file) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
        wanted = [name for name in names if not optional or name in members] or ([] if names else list(members))
        if missing := [name for name in wanted if name not in members]:
            raise KeyError(f"{file} has no {missing[0]}")
        check_expansion(sum(members[name].file_size for name in wanted), sum(members[name].compress_size for name in wanted))
        arrays = {}
        for name in wanted:
            with archive.open(members[name]) as opened:
                shape, _, dtype = read_npy_header(opened)
                if members[name].file_size - opened.tell() != dtype.itemsize * math.prod(shape):
                    raise ValueError(f"{name} is not as large as its header says")
                opened.seek(0)
                arrays[name] = np.lib.format.read_array(opened, allow_pickle=False)
    return arrays


def read_npy_header(opened: Any) -> tuple[tuple[int, ...], bool, "np.dtype"]:
    """(shape, whether in Fortran's order, type) of a .npy that is open at its start; the values come next.

    Raises:
        ValueError: if it is not a header, or one of objects.
    """
    import numpy as np

    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(opened)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    return shape, fortran, dtype


def check_finite(tensors: Mapping[str, "torch.Tensor"], where: str = "") -> None:
    """Raise ValueError for nan or infinite values among weights, with the name of the first.

    Args:
        where: follows in the message, such as " in float16".
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite{where}")


def check_parameters(network: "torch.nn.Module") -> None:
    """Raise ValueError for a network of more than PARAMETERS."""
    if (count := sum(weight.numel() for weight in network.parameters())) > PARAMETERS:
        raise ValueError(f"it would have {count:,} parameters")


def check_numbers(value: Any) -> None:
    """Raise ValueError if the JSON of a model's config has a whole number above LARGEST_NUMBER in it, or too many layers."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inside:
        check_numbers(part)
    if isinstance(value, dict) and isinstance(layers := value.get("layers_per_block"), int) and layers > LAYERS:
        raise ValueError(f"its layers_per_block is {layers:,}")
    if isinstance(value, int | float) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"its config says {value:,}")


def _size(count: float) -> str:
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count, units = count / 1024, units[1:]
    return f"{count:.3g} {units[0]}"
