"""The recipes for CelebA-HQ at 256 px at full size, without a GPU and without the Hub: train one step, save, load, sample."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, LDMPipeline, VQModel

import train_ldm
from tests.support.runs import run
from tinyldm.config.networks import VQConfig
from tinyldm.config.parsing import parse
from tinyldm.config.schema import TrainLDM
from tinyldm.data import toyfaces
from tinyldm.models.denoiser import make_denoiser

ROOT = Path(__file__).parents[1]
CONFIG, README = ROOT / "configs" / "celebahq256.yaml", ROOT / "README.md"


@pytest.fixture(scope="module")
def vq_f4(tmp_path_factory) -> Path:
    """The VQ-f4 of latent diffusion with random weights, without a scaling_factor, like its authors' folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("CompVis") / "vqvae"
    VQModel(**VQConfig().arguments(), sample_size=256).save_pretrained(folder)
    return folder.parent


@pytest.mark.slow
def test_the_first_stage_is_the_published_one(vq_f4):
    """Rombach et al. 2022, table 8: VQ-f4 has 8192 codes of 3 channels; its checkpoint has 55.3M parameters."""
    vq = VQModel.from_pretrained(vq_f4, subfolder="vqvae")
    assert round(sum(weight.numel() for weight in vq.parameters()) / 1e6, 1) == 55.3
    assert vq.to("meta").encode(torch.zeros(1, 3, 256, 256, device="meta")).latents.shape == (1, 3, 64, 64)


def test_the_recipe_matches_the_readme():
    config = parse(TrainLDM, "", ["--config", str(CONFIG)])
    with torch.device("meta"):
        unet = make_denoiser(config.unet, 64, 3)
    parameters = sum(weight.numel() for weight in unet.parameters()) / 1e6
    sections = README.read_text(encoding="utf-8").split("\n## ")
    text = " ".join(" ".join(section for section in sections if CONFIG.name in section).split())
    for words in (f"{parameters:.1f}M parameters", f"{config.train.num_epochs:g} epochs", f"{config.data.resolution} px"):
        assert words in text, f"README.md does not have {words!r} next to {CONFIG.name}"
    assert config.data.name == "korexyz/celeba-hq-256x256"
    assert (config.first_stage.path, config.first_stage.subfolder) == ("CompVis/ldm-celebahq-256", "vqvae")
    assert not config.scheduler.clip_sample


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "millions"), [("celebahq256", 5.4), ("celebahq256-night", 57.9)])
def test_one_step_at_full_size(recipe, millions, vq_f4, tmp_path, monkeypatch):
    data = tmp_path / "images"
    data.mkdir()
    for part, index in (("train", 0), ("validation", 1)):
        (data / part).mkdir()
        toyfaces.draw(0, index, 300).save(data / part / "face.jpg")
    args = [
        "--config",
        CONFIG.with_stem(recipe),
        "--output_dir",
        tmp_path / "run",
        "--first_stage.path",
        vq_f4,
        "--data.name",
        data,
    ]
    small = [
        *("--data.cache_dir", tmp_path / "cache", "--train.max_steps", 1, "--train.batch_size", 2),
        *("--diffusion.preview_images", 1, "--diffusion.preview_steps", 1, "--train.mixed_precision", "no"),
        *("--train.compile", "false", "--train.log_with", "none", "--data.random_flip", "false"),
    ]
    run(monkeypatch, train_ldm, *args, *small)

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert type(pipeline) is LDMPipeline
    assert round(sum(weight.numel() for weight in pipeline.unet.parameters()) / 1e6, 1) == millions
    assert pipeline.unet.config.sample_size == 64
    # 0.18215 is not the scale of these latents: the measured one replaced it.
    assert pipeline.vqvae.config.scaling_factor != pytest.approx(0.18215, rel=0.05)
    (picture,) = pipeline(num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images
    assert picture.size == (256, 256)
    image = torch.zeros(1, 3, 256, 256, device="meta")
    assert pipeline.vqvae.to("meta").encode(image).latents.shape == (1, 3, 64, 64)
