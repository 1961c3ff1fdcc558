"""Models with labels or a guide on the Hub: our tools and plain diffusers draw the same from there."""

import shutil

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from tests.portable.test_pipeline import export, made
from tests.support.published import HUB, finished_run
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing import sampling
from tinyldm.models.loading import load_model
from tinyldm.training import hub


@pytest.mark.parametrize("kind", ["labels", "guide"])
def test_a_pushed_model_is_drawn_from_by_our_tools_and_by_plain_diffusers(kind, server, tmp_path):
    folder = finished_run(tmp_path / "run")
    shutil.rmtree(folder / "pipeline")
    export(folder / "pipeline", made(kind))
    hub.push(folder, HUB, "Step 20")
    model = load_model("me/faces")
    expected = load_model(str(folder))
    assert model.scale == expected.scale and (model.guide is None) == (expected.guide is None)
    settings = SamplerSettings(num_inference_steps=5)
    ours, local = (next(sampling.sample(one, 2, 2, 0, settings)).permute(0, 2, 3, 1).numpy() for one in (model, expected))
    pipeline = DiffusionPipeline.from_pretrained("me/faces", custom_pipeline="me/faces", trust_remote_code=True)
    images = pipeline(num_images=2, num_inference_steps=5).images
    assert np.array_equal(ours, local) and np.array_equal(ours, np.stack([np.asarray(image) for image in images]))
    if kind == "guide":
        assert type(DiffusionPipeline.from_pretrained("me/faces")).__name__ == "LDMPipeline"
