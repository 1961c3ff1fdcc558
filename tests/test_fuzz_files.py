"""Every kind of file that is read, truncated and overwritten at random: it is read, or refused in one line."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support import zsl as support
from tests.support.fuzz import bounded, one_line
from tests.support.sources import config, encode, folder, parquet, picture, table, tars
from tinyldm.config.parsing import parse, read_yaml
from tinyldm.config.schema import FirstStageConfig, Sample, TrainDDPM
from tinyldm.data.images import Images
from tinyldm.data.sources import open_part
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import load_first_stage
from tinyldm.metrics.image_sets import open_images
from tinyldm.models.loading import load_model
from tinyldm.training import checkpoint
from tinyldm.training.run_folder import read_metrics
from zsl import text
from zsl.load import load

Kind = tuple[Callable[[Path], Path], Callable[[Path], object]]  # writes files into a folder, returns the one to damage; reads


def read_all(path: Path, name: str = "", **changes) -> int:
    """Reads all images of a data set. Unreadable ones are counted, or refused if they are many."""
    images = Images(open_part(config(path / name, cache_dir=str(path / "cache"), **changes), "train")[0], 8, 0)
    decoded = list(images(images.source.epoch(None, 0)))
    assert all(image.shape == (8, 8, 3) for image, _ in decoded)
    return len(decoded)


def write_zip(path: Path) -> Path:
    with zipfile.ZipFile(path / "x.zip", "w") as file:
        for i in range(3):
            file.writestr(f"a/{i}.png", picture(i))
    return path / "x.zip"


def write_images(ending: str, kind: str, **options) -> Callable[[Path], Path]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8))

    def write(path: Path) -> Path:
        folder(path / "data", {f"{i}{ending}": encode(image, kind, **options) for i in range(2)})
        return path / f"data/1{ending}"

    return write


def write_metrics(path: Path) -> Path:
    (path / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n3,0.125\n")
    return path / "metrics.csv"


def write_checkpoint(name: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        state = {"step": 3, "images": 24, "config": {"train": {}}, "kept": {}}
        checkpoint.save(path, 3, {"unet": {"w": torch.ones(3)}}, {"unet": {"state": {0: torch.ones(2)}}}, state)
        return path / "checkpoints/step-3" / name

    return write


def write_features(path: Path) -> Path:
    support.folder(path / "birds")
    return path / "birds/features.npz"


def write_articles(path: Path) -> Path:
    write_features(path)
    return path / "birds/articles.jsonl"


def write_metadata(path: Path) -> Path:
    rows = "".join(json.dumps({"file_name": f"{i}.png", "kind": i}) + "\n" for i in range(3))
    folder(path / "data", {f"{i}.png": picture(i) for i in range(3)} | {"metadata.jsonl": rows.encode()})
    return path / "data/metadata.jsonl"


def write_samples(path: Path) -> Path:
    np.savez(path / "samples.npz", np.zeros((2, 8, 8, 3), np.uint8))
    return path / "samples.npz"


def write_table(path: Path) -> Path:
    return parquet(path / "data", [[picture(i) for i in range(4)]]) / "train-00000-of-00001.parquet"


def write_tar(path: Path) -> Path:
    return tars(path / "data", [[picture(i) for i in range(3)]]) / "000.tar"


def write_csv(path: Path) -> Path:
    folder(path / "data", {f"{i}.png": picture(i) for i in range(3)})
    (path / "data/list.csv").write_text("".join(f"{row}\n" for row in ["y,image", *(f"{i},{i}.png" for i in range(3))]))
    return path / "data/list.csv"


def write_saved(path: Path) -> Path:
    table([picture(i) for i in range(3)]).save_to_disk(path / "data")
    return next((path / "data").glob("*.arrow"))


def write_recipe(path: Path) -> Path:
    (path / "x.yaml").write_text(
        "script: train_ddpm\noutput_dir: runs/x\ndata:\n  name: toyfaces\n  resolution: 16\ntrain:\n  max_steps: 3\n"
    )
    return path / "x.yaml"


KINDS: dict[str, Kind] = {
    "png": (write_images(".png", "PNG"), lambda path: read_all(path, "data")),
    "jpeg": (write_images(".jpg", "JPEG"), lambda path: read_all(path, "data")),
    "webp": (write_images(".webp", "WEBP"), lambda path: read_all(path, "data")),
    "gif": (write_images(".gif", "GIF"), lambda path: read_all(path, "data")),
    "tiff": (write_images(".tif", "TIFF", compression="tiff_lzw"), lambda path: read_all(path, "data")),
    "bmp": (write_images(".bmp", "BMP"), lambda path: read_all(path, "data")),
    "zip": (write_zip, lambda path: read_all(path, "x.zip")),
    "parquet": (write_table, lambda path: read_all(path, "data")),
    "parquet, not streamed": (write_table, lambda path: read_all(path, "data", streaming=False)),
    "tar": (write_tar, lambda path: read_all(path, "data")),
    "csv": (write_csv, lambda path: read_all(path, "data", image_column="image", data_files="*.csv")),
    "saved": (write_saved, lambda path: read_all(path, "data")),
    "metadata": (write_metadata, lambda path: read_all(path, "data")),
    "recipe": (write_recipe, lambda path: parse(TrainDDPM, "", ["--config", str(path / "x.yaml")])),
    "config": (write_recipe, lambda path: read_yaml(path / "x.yaml")),
    "metrics": (write_metrics, lambda path: read_metrics(path / "metrics.csv")),
    "weights": (write_checkpoint("unet.safetensors"), lambda path: read_checkpoint(path)),
    "optimizers": (write_checkpoint("optimizers.pt"), lambda path: read_checkpoint(path)),
    "state": (write_checkpoint("state.json"), lambda path: read_checkpoint(path)),
    "checksums": (write_checkpoint("checksums.json"), lambda path: checkpoint.load(path / "checkpoints/step-3")),
    "features": (write_features, lambda path: load(str(path / "birds"))),
    "articles": (write_articles, lambda path: text.read(path / "birds/articles.jsonl")),
    "samples": (write_samples, lambda path: open_images(str(path / "samples.npz"), config("x"), 2)),
}


def read_checkpoint(path: Path) -> object:
    """With checksums that fit: damage is found by reading, not by comparing."""
    step = path / "checkpoints/step-3"
    sums = {file.name: checkpoint._sha256(file) for file in step.iterdir() if file.name != checkpoint.CHECKSUMS}
    (step / checkpoint.CHECKSUMS).write_text(json.dumps(sums))
    return checkpoint.load(step)


WORDS = [b"null", b"1e999", b"-1", b"NaN", b"[]", b"{}", b'"', b"\x00", b"\n"]
damage = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("overwrite"), st.floats(0, 1), st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=300)),
    st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(2, 50)),
    st.tuples(st.just("replace"), st.binary(max_size=200)),
    st.tuples(
        st.just("word"),
        st.floats(0, 1),
        st.sampled_from(WORDS),
    ),
)


def damaged(content: bytes, how: tuple) -> bytes:
    kind, *arguments = how
    if kind == "replace":
        return arguments[0]
    at = int(arguments[0] * len(content))
    if kind == "cut":
        return content[:at]
    if kind == "repeat":
        return content[:at] + content[at : at + 20] * arguments[1] + content[at:]
    if kind == "insert":
        return content[:at] + arguments[1] + content[at:]
    return content[:at] + arguments[1] + content[at + len(arguments[1]) :]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_in_one_line(kind, capsys):
    write, read = KINDS[kind]
    whole = Path(tempfile.mkdtemp())
    write(whole)
    assert read(whole) is not None

    @bounded(15)
    @given(st.lists(damage, min_size=1, max_size=2))
    def run(changes) -> None:
        path = Path(tempfile.mkdtemp())
        try:
            file = write(path)
            content = file.read_bytes()
            for change in changes:
                content = damaged(content, change)
            file.write_bytes(content)
            before = {other: other.read_bytes() for other in path.rglob("*") if other.is_file()}
            one_line(lambda: read(path))
            assert all(other.read_bytes() == old for other, old in before.items() if "checksums" not in other.name)
        finally:
            shutil.rmtree(path)

    try:
        run()
    finally:
        shutil.rmtree(whole)


MODEL = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vqvae/config.json", "model_index.json"]
MODEL += ["scheduler/scheduler_config.json"]


@pytest.mark.slow
@pytest.mark.parametrize("file", [f"pipeline/{name}" for name in MODEL])
def test_damaged_models_are_loaded_or_refused_in_one_line(file, ldm_run):
    def load_it(path: Path) -> object:
        model = load_model(str(path))
        model.sampler(Sample(model=str(path), num_inference_steps=2))
        return load_first_stage(FirstStageConfig(path=str(path / "pipeline")))

    @bounded(8)
    @given(damage)
    def run(change) -> None:
        path = Path(tempfile.mkdtemp())
        try:
            shutil.copytree(ldm_run / "pipeline", path / "pipeline")
            (path / file).write_bytes(damaged((ldm_run / file).read_bytes(), change))
            one_line(lambda: load_it(path))
        finally:
            shutil.rmtree(path)

    run()


def test_the_fuzz_would_notice_a_second_line_and_a_traceback():
    with pytest.raises(AssertionError):
        one_line(lambda: (_ for _ in ()).throw(UserError("a\nb")))
    with pytest.raises(KeyError):
        one_line(lambda: {}["x"])
    with pytest.raises(MemoryError):
        one_line(lambda: np.ones(2**29))
    assert one_line(lambda: 7) == 7
