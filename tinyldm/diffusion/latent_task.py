"""Training a denoiser on latents, either stored or encoded while the images are read."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tinyldm.config.schema import TrainLDM
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.diffusion.training_data import LatentData
from tinyldm.models.export import save_pipeline


class LatentTask(DiffusionTask):
    """See DiffusionTask: x_0 are latents, scaled to unit variance."""

    card = "ldm"

    def __init__(self, config: TrainLDM, accelerator: Accelerator):
        latents = LatentData(config, config.first_stage, accelerator, config.condition)
        super().__init__(config, accelerator, latents)
        self.first_stage_path, self.scale = config.first_stage.path, latents.scale
        self.written: Path | None = None  # the first stage of an earlier export of this process

    def export(self, folder: Path) -> None:
        """pipeline/, without labels a standard LDMPipeline folder."""
        sampler = self.process.sampler(self.process.deterministic)
        save_pipeline(folder / "pipeline", "LDMPipeline", self.model(), sampler, self.written)
        self.written = Path(self.config.output_dir) / "pipeline" / "vqvae"

    def facts(self) -> dict[str, Any]:
        """See DiffusionTask.facts."""
        stage = {"first_stage": self.first_stage_path, "scaling_factor": self.scale}
        return {**super().facts(), **stage}
