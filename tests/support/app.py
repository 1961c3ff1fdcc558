"""Untrained models for tests of the page, saved as runs."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image

from tests.support import models
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.export import save_pipeline
from tinyldm.models.model import Model
from tinyldm.portable.low_resolution import LowResolution

SIDE = 16
REPORT = "---\ntags: [a]\n---\n\n# faces\n\n![samples](a.png)\n\nheld-out loss 0.25\n\n## The recipe\n\nscript: train_ldm\n"


def save_run(folder: Path, stage: bool = False) -> Path:
    """A run with a model of two labels and a guidance scale of 2, or a super-resolution stage from 8 to 16 px."""
    torch.manual_seed(0)
    unet = models.unet(SIDE, 6 if stage else 3, labelled=True)
    if stage:
        unet.conv_out = torch.nn.Conv2d(8, 3, 3, padding=1)
        unet.register_to_config(out_channels=3)
    denoiser = Denoiser(unet, None, LowResolution(8, 3, 32, 0.5)) if stage else Denoiser(unet, models.labels())
    model = Model(denoiser.eval(), models.process(), None, None, 1.0 if stage else 2.0)
    folder.mkdir(parents=True, exist_ok=True)
    save_pipeline(folder / "pipeline", "DDPMPipeline", model, DDIMScheduler.from_config(models.scheduler().config))
    (folder / "README.md").write_text(REPORT)
    Image.new("RGB", (300, 100), (0, 128, 0)).save(folder / "loss.png")
    return folder
