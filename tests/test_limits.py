"""Files that claim to be huge, and numbers that are not finite: refused before they cost memory."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import models
from tinyldm import limits
from tinyldm.config.parsing import read_recipe, read_yaml
from tinyldm.errors import UserError

MIB = 2**20


def laughs(levels: int, merge: bool = False) -> str:
    """YAML whose last value stands for 9^levels values, by aliases or by merge keys."""
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [1]"]
    for level in range(1, levels + 1):
        parts = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {{<<: [{parts}]}}" if merge else f"a{level}: &a{level} [{parts}]")
    return "\n".join(lines)


def png(side: int, bits: int, kind: int, extra: bytes = b"") -> bytes:
    """A black PNG, which zlib shrinks a thousandfold. `kind`: 0 grey, 2 RGB, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = bytes(1 + side * bits // 8 * {0: 1, 2: 3, 6: 4}[kind])
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def npz(file: Path, shape: tuple[int, ...], content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """An npz with one uint8 array `x`, whose header says `shape`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("x.npy", header.getvalue() + content)
    return file


@pytest.mark.parametrize("merge", [False, True])
def test_yaml_aliases_that_stand_for_too_much(tmp_path, merge):
    file = tmp_path / "config.yaml"
    file.write_text(laughs(30, merge))
    for read in (read_recipe, read_yaml):
        with pytest.raises(UserError, match="its aliases stand for more than 100,000 values"):
            read(file)
    file.write_text("a: &a {b: 1, c: [2, 3]}\nd: *a\ne: {<<: *a, f: 4}")
    assert read_yaml(file)["e"] == {"b": 1, "c": [2, 3], "f": 4}


NO_YAML = ["a: &a [*a]", "[" * 1500, "seed: 2024-13-45", "seed: " + "9" * 5000, "a: !!python/name:os.system"]


@pytest.mark.parametrize("text", NO_YAML)
def test_yaml_that_its_reader_cannot_take(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    for read in (read_recipe, read_yaml):
        with pytest.raises(UserError, match=r"config\.yaml is not valid YAML") as caught:
            read(tmp_path / "config.yaml")
        assert "\n" not in str(caught.value)


def test_a_text_without_an_end():
    with pytest.raises(ValueError, match="more than 1 KiB"):
        limits.read_text(Path("/dev/zero"), 1024)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(9000, 8, 6), "9000 x 9000 pixels would take"),
        (png(8500, 16, 0), "8500 x 8500 pixels would take"),
        (png(11000, 8, 2), "11000 x 11000 pixels would take"),
        (png(9, 8, 2, struct.pack(">I", 2**27)), ""),
        (png(9, 8, 2)[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png(9, 8, 2)[24:], ""),
    ],
)
def test_images_that_would_take_too_much_memory(content, reason):
    assert len(content) < 2 * MIB
    with pytest.raises(Exception, match=reason), limits.open_image(io.BytesIO(content)) as image:
        image.load()


def test_real_images_are_opened():
    with limits.open_image(io.BytesIO(png(6000, 8, 2))) as image:
        assert image.size == (6000, 6000)
    photograph = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(photograph, "JPEG")
    with limits.open_image(photograph, 200) as image:  # decoded at an eighth
        assert image.size == (1125, 1125)


def test_no_other_program_decodes_an_image():
    postscript = io.BytesIO()
    Image.new("RGB", (8, 8)).save(postscript, "EPS")
    with pytest.raises(Image.UnidentifiedImageError), limits.open_image(postscript):
        pass


@pytest.mark.parametrize(
    ("shape", "content", "reason"),
    [
        ((300, MIB), bytes(300 * MIB), "would grow from"),
        ((2**40,), b"few", "not as large as its header says"),
        ((3,), b"more than three", "not as large as its header says"),
        ((-5,), b"x", ""),
    ],
)
def test_arrays_that_are_not_what_they_claim(tmp_path, shape, content, reason):
    file = npz(tmp_path / "a.npz", shape, content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason):
        limits.read_arrays(file)
    assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    tracemalloc.stop()


def test_arrays_of_any_usual_kind_are_read(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.asfortranarray(np.ones((3, 4), ">f8")), "c": np.array(["x", "yz"])}
    np.savez(tmp_path / "a.npz", **arrays)
    actual = limits.read_arrays(tmp_path / "a.npz")
    assert actual.keys() == arrays.keys() and all((actual[name] == arrays[name]).all() for name in arrays)
    assert list(limits.read_arrays(tmp_path / "a.npz", ["c", "d"], optional=True)) == ["c"]
    with pytest.raises(KeyError):
        limits.read_arrays(tmp_path / "a.npz", ["d"])
    np.savez(tmp_path / "o.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match="pickled objects"):
        limits.read_arrays(tmp_path / "o.npz")


def test_a_large_array_that_hardly_shrinks_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FREE_BYTES", 1000)
    values = np.random.default_rng(0).integers(0, 8, 50_000, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=values)
    assert (limits.read_arrays(tmp_path / "a.npz")["x"] == values).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(value):
    network = models.unet()
    limits.check_finite(network.state_dict())
    network.conv_out.bias.data[1] = value
    with pytest.raises(ValueError, match=r"conv_out\.bias is not finite"):
        limits.check_finite(network.state_dict())


def test_sizes_that_no_model_has():
    limits.check_numbers({"sample_size": 256, "block_out_channels": [64, 128], "nested": {"num_vq_embeddings": 262_144}})
    for value in ({"a": [1, 10**9]}, {"a": {"b": -(2**30)}}, {"layers_per_block": 1000}, {"a": float("inf")}):
        with pytest.raises(ValueError):
            limits.check_numbers(value)


def test_limits_cost_no_import():
    """--help reads recipes' schemas, which use these limits."""
    script = "import sys, tinyldm.limits; assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
