"""Untrained models for tests of the page, saved as runs."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image

from tests.support import models
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.export import save_pipeline
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model
from tinyldm.portable.label_embedding import LabelEmbedding
from tinyldm.portable.low_resolution import LowResolution
from tinyldm.training.power_ema import PowerAverages

SIDE = 16
REPORT = "---\ntags: [a]\n---\n\n# faces\n\n![samples](a.png)\n\nheld-out loss 0.25\n\n## The recipe\n\nscript: train_ldm\n"


def many_labels() -> LabelEmbedding:
    """30 attributes with long names and a class, as of CelebA."""
    attributes = [[f"Wearing_Necktie_and_Glasses_{i}", ["false", "true"]] for i in range(30)]
    embedding = LabelEmbedding([*attributes, ["person", [f"number {i}" for i in range(40)]]], 32, 2)
    embedding.rows.zero_()
    return embedding.eval()


def save_run(folder: Path, stage: bool = False, side: int = SIDE, labels: LabelEmbedding | None = None) -> Path:
    """A run with a model of labels and a guidance scale of 2, or a super-resolution stage from 8 to 16 px."""
    torch.manual_seed(0)
    unet = models.unet(side, 6 if stage else 3, labelled=True)
    if stage:
        unet.conv_out = torch.nn.Conv2d(8, 3, 3, padding=1)
        unet.register_to_config(out_channels=3)
    denoiser = Denoiser(unet, None, LowResolution(8, 3, 32, 0.5)) if stage else Denoiser(unet, labels or models.labels())
    model = Model(denoiser.eval(), models.process(), None, None, 1.0 if stage else 2.0)
    folder.mkdir(parents=True, exist_ok=True)
    save_pipeline(folder / "pipeline", "DDPMPipeline", model, DDIMScheduler.from_config(models.scheduler().config))
    (folder / "README.md").write_text(REPORT)
    Image.new("RGB", (300, 100), (0, 128, 0)).save(folder / "loss.png")
    return folder


def add_extras(run: Path) -> Path:
    """A report with a script, as large as real ones, and a snapshot of averaged weights that are all zero."""
    script = "<script>document.body.append(origin + ' ' + [1, 2].length)</script>"
    (run / "report.html").write_text(f"<!doctype html><title>faces</title><h1>report of faces</h1><!--{'-' * 2**21}-->{script}")
    (run / "config.yaml").write_text("script: train_ddpm\n")
    weights = dict(load_model(str(run)).denoiser.named_parameters())
    PowerAverages([torch.zeros_like(weight) for weight in weights.values()]).save_snapshot(run, 1, list(weights))
    return run
