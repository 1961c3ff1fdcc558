"""Training a denoiser on the pixels themselves (Ho et al. 2020), with its bound in bits per dimension."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tinyldm.config.schema import TrainDDPM
from tinyldm.diffusion.task import DiffusionTask
from tinyldm.diffusion.training_data import PixelData
from tinyldm.models.export import save_pipeline
from tinyldm.process.bound import prior_bits, step_bits
from tinyldm.process.discrete_vp import DiscreteVP
from tinyldm.randomness import derive_seed

TIMESTEPS_PER_IMAGE = 8  # to estimate the bound at each evaluation


class PixelTask(DiffusionTask):
    """See DiffusionTask: x_0 are images in [-1, 1]."""

    card = "ddpm"

    def __init__(self, config: TrainDDPM, accelerator: Accelerator):
        super().__init__(config, accelerator, PixelData(config, accelerator, config.condition))

    def evaluate(self) -> dict[str, torch.Tensor]:
        """See DiffusionTask.evaluate. Adds sums of the terms of the bound."""
        sums = super().evaluate()
        if not isinstance(self.process, DiscreteVP):
            return sums
        denoiser, device, steps = self.model().denoiser, self.accelerator.device, self.process.steps
        fixed = torch.Generator().manual_seed(derive_seed("bound", self.config.seed, self.rank.index))
        terms = {key: torch.zeros((), device=device) for key in ("prior", "steps", "decoder")}
        for (x0, condition), _, _ in self.my_held_out():
            terms["prior"] += prior_bits(self.process, x0).sum()
            for part in range(TIMESTEPS_PER_IMAGE + 1):
                # Part 0 is timestep 0, the decoder. The other timesteps are split into equal parts, one of each per image.
                spread = (part - 1 + torch.rand(len(x0), generator=fixed)) / TIMESTEPS_PER_IMAGE
                timesteps = (1 + spread * (steps - 1)).long().clamp(max=steps - 1) if part else torch.zeros(len(x0)).long()
                timesteps, noise = timesteps.to(device), torch.randn(x0.shape, generator=fixed).to(device)
                x_t = self.process.noisy(x0, noise, timesteps)
                predicted = denoiser(x_t, timesteps, condition).float()
                bits = step_bits(self.process, predicted, x0, x_t, timesteps).sum()
                terms["steps" if part else "decoder"] += bits * ((steps - 1) / TIMESTEPS_PER_IMAGE if part else 1)
        return {**sums, **terms}

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """See DiffusionTask.summarize. Adds `eval_bits` per dimension and its three terms."""
        if "prior" not in sums:
            return super().summarize(sums)
        terms = {f"eval_bits_{key}": float(sums[key] / sums["count"].sum()) for key in ("prior", "steps", "decoder")}
        return {**super().summarize(sums), "eval_bits": sum(terms.values()), **terms}

    def export(self, folder: Path) -> None:
        """pipeline/, without labels a standard DDPMPipeline folder; its DDPMScheduler supports learned variances."""
        save_pipeline(folder / "pipeline", "DDPMPipeline", self.model(), self.process.sampler())

    def facts(self) -> dict[str, Any]:
        """See DiffusionTask.facts."""
        return {
            **super().facts(),
            "steps_to_draw": self.process.steps if isinstance(self.process, DiscreteVP) else 50,
            "timesteps_per_image": TIMESTEPS_PER_IMAGE if isinstance(self.process, DiscreteVP) else None,
        }
