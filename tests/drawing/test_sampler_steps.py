"""Any number of steps gives the samples of that number of steps, whichever sampler and spacing."""

import itertools
from fractions import Fraction

import pytest
import torch

from tests.support import models
from tests.support.models import GaussianDenoiser
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing.sampling import denoise
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.model import Model
from tinyldm.process.discrete_vp import DiscreteVP

MEAN, STD = 0.3, 0.2
Z = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(-1, 1, 1, 1)  # under a linear map, the spread of these is that of all


def exact(**changes) -> Model:
    forward = models.process(**changes)
    return Model(Denoiser(GaussianDenoiser(forward.scheduler, MEAN, STD)), forward, None)


def listed(spacing: str, total: int, count: int) -> list[int]:
    """The timesteps of table 2 in Lin et al. (2023), with exact ratios except where diffusers takes the floor."""
    ratio = Fraction(total, count)
    if spacing == "trailing":
        return [round(total - i * ratio) - 1 for i in range(count)]
    if spacing == "leading":
        return [i * (total // count) for i in reversed(range(count))]
    return [round(Fraction(total - 1) * i / max(1, count - 1)) for i in reversed(range(count))]


def written_out(model: Model, timesteps: list[int], clip: float | None = None) -> torch.Tensor:
    """DDIM without noise (Song et al. 2021, equation 12) from each timestep to the next one of the list, in float64."""
    abar, x = model.process.abar.double(), Z.double()
    for t, after in itertools.pairwise([*timesteps, None]):
        now, later = abar[t], abar[after] if after is not None else torch.tensor(1.0).double()
        x0 = MEAN + now.sqrt() * STD**2 / (now * STD**2 + 1 - now) * (x - now.sqrt() * MEAN)
        eps = (x - now.sqrt() * x0) / (1 - now).sqrt()
        x = later.sqrt() * (x0 if clip is None else x0.clamp(-clip, clip)) + (1 - later).sqrt() * eps
    return x.float()


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_steps_to_the_next_timestep_for_any_count(spacing, kind):
    model = exact(timestep_spacing=spacing, prediction_type=kind)
    for count in (1, 2, 7, 61, 250, 501):
        drawn = denoise(model, Z, SamplerSettings("ddim", count))
        torch.testing.assert_close(drawn, written_out(model, listed(spacing, 1000, count)), rtol=1e-3, atol=1e-4)


def test_ddim_clips_as_its_equation_for_any_count():
    model = exact(clip_sample=True, clip_sample_range=0.35)
    for count in (7, 30, 150):
        drawn = denoise(model, Z, SamplerSettings("ddim", count))
        torch.testing.assert_close(drawn, written_out(model, listed("trailing", 1000, count), 0.35), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("counts", [(60, 150, 300, 600), (61, 103, 206, 501)])
def test_more_ddim_steps_are_never_worse(counts):
    model = exact()
    errors = [abs(denoise(model, Z, SamplerSettings("ddim", count)).std() / Z.std() - STD).item() for count in counts]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.011


def test_ddim_with_noise_is_the_ancestral_sampler_for_any_count():
    """With eta 1 each step draws from q(x_after | x_t, x_0), as fixed_small does."""
    model = exact()
    for count in (9, 61, 130):
        a, b = (
            denoise(model, Z, SamplerSettings(name, count, eta), [torch.Generator().manual_seed(3)])
            for name, eta in (("ddim", 1.0), ("ddpm", 0.0))
        )
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", DiscreteVP.samplers)
@pytest.mark.parametrize(("total", "counts"), [(50, range(29, 51)), (300, (7, 14, 291)), (1000, (61, 103, 998))])
def test_each_sampler_takes_as_many_steps_as_it_is_told(name, total, counts):
    """diffusers' rounding makes one timestep too many, -1, for some of these."""
    model = exact(num_train_timesteps=total)
    for count in counts:
        sampler = model.sampler(SamplerSettings(name, count))
        timesteps, wanted = sampler.timesteps.unique_consecutive(), torch.tensor(listed("trailing", total, count))
        assert len(timesteps) == count and timesteps.min() >= 0 and (timesteps.diff() < 0).all()
        assert (timesteps - wanted).abs().max() <= 1  # a half is rounded up or down
    assert denoise(model, Z, SamplerSettings(name, counts[0])).isfinite().all()


@pytest.mark.parametrize(
    ("name", "count", "changes"),
    [
        *((name, 50, {"timestep_spacing": "leading"}) for name in ("dpm-solver++", "unipc")),  # diffusers: IndexError
        *((name, 50, {"timestep_spacing": "linspace"}) for name in ("dpm-solver++", "unipc")),  # diffusers: nan
        ("dpm-solver++", 49, {"timestep_spacing": "leading", "steps_offset": 1}),  # diffusers: nan
        ("ddim", 50, {"timestep_spacing": "leading", "steps_offset": 1}),  # diffusers: IndexError
    ],
)
def test_counts_that_a_sampler_cannot_take_are_refused(name, count, changes):
    with pytest.raises(UserError, match=f"cannot take {count} steps"):
        exact(num_train_timesteps=50, **changes).sampler(SamplerSettings(name, count))


VARIANTS = {
    "latents": {},
    "zero SNR": {"rescale_betas_zero_snr": True},
    "zero SNR, leading": {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"},
    "zero SNR, x_0": {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
    "pixels": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "linspace": {"timestep_spacing": "linspace"},
    "offset": {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1},
    "clipped": {"clip_sample": True, "clip_sample_range": 0.8},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DiscreteVP.samplers)
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_sampler_reaches_mean_and_deviation(name, variant):
    """Also with 750 steps from zero SNR, where diffusers' first sigma is smaller than its second."""
    if name == "heun" and variant.startswith("zero"):
        return  # refused
    model = exact(**VARIANTS[variant])
    noise = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    random = [torch.Generator().manual_seed(1)]
    for count in (300, 750):
        x = denoise(model, noise, SamplerSettings(name, count), random)
        assert abs(x.mean() - MEAN) < 0.02 and abs(x.std() - STD) < 0.03
