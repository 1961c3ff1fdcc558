import json
import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, LDMPipeline
from PIL import Image

from tests.support import models
from tests.support.models import GaussianDenoiser
from tinyldm.config.schema import SamplerSettings
from tinyldm.drawing import sampling
from tinyldm.drawing.sampling import denoise, generators, initial_noise, sample, slerp
from tinyldm.errors import UserError
from tinyldm.models import model as diffusion_model
from tinyldm.models.denoiser import Denoiser
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model, to_images
from tinyldm.pictures import to_pil
from tinyldm.process.discrete_vp import DiscreteVP

SCHEDULERS = DiscreteVP.samplers
DETERMINISTIC = [name for name in SCHEDULERS if name != "ddpm"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    """A run folder: pipeline/ with a tiny network with random weights."""
    run = tmp_path_factory.mktemp("run")
    vqvae = models.vq_model(scaling_factor=0.7)
    sampler = DDIMScheduler.from_config(models.scheduler().config)
    LDMPipeline(vqvae=vqvae, unet=models.unet(), scheduler=sampler).save_pretrained(run / "pipeline")
    return run / "pipeline"


@pytest.fixture
def copied(pipeline_folder, tmp_path):
    return shutil.copytree(pipeline_folder, tmp_path / "pipeline")


def draw(model: Model, batch_size: int, steps: int, name: str | None = None, eta: float = 0.0) -> torch.Tensor:
    return torch.cat(list(sample(model, 5, batch_size, 3, SamplerSettings(name, steps, eta))))


# ------------------------------------------------------------------------------------------------- one seed, one image


@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in SCHEDULERS), ("ddim", 1.0)])
def test_one_seed_gives_one_image_whatever_the_batch_size(pipeline_folder, name, eta):
    model = load_model(str(pipeline_folder))
    alone = draw(model, 1, 4, name, eta)
    assert alone.shape == (5, 3, 16, 16) and alone.dtype == torch.uint8
    for batch_size in (2, 5, 64):
        # Libraries may sum in another order at another batch size, so values may differ by one step of 255.
        assert (alone.int() - draw(model, batch_size, 4, name, eta).int()).abs().max() <= 1
    assert all((alone[0] != other).any() for other in alone[1:])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_diffusers_alone_draws_the_same_pictures(pipeline_folder, name):
    model = load_model(str(pipeline_folder.parent))
    ours = [np.asarray(to_pil(image)) for image in draw(model, 5, 5, name)]
    theirs = DiffusionPipeline.from_pretrained(pipeline_folder)
    assert type(theirs) is LDMPipeline
    theirs.scheduler = SCHEDULERS[name].from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    pictures = theirs(batch_size=5, generator=generators(3, 5), num_inference_steps=5).images
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(ours, pictures, strict=True))


@pytest.mark.parametrize("name", ["ddpm", "ddim"])  # the samplers that DDPMPipeline supports; ddpm adds noise in each step
def test_diffusers_draws_the_same_pictures_without_a_first_stage(name):
    model = Model(Denoiser(models.unet()), models.process(), None)
    theirs = DDPMPipeline(model.unet, models.process().sampler(name))
    theirs.scheduler = models.process().sampler(name)  # its constructor may have replaced it
    theirs.set_progress_bar_config(disable=True)
    pictures = theirs(batch_size=5, generator=generators(3, 5), num_inference_steps=5).images
    ours = draw(model, 5, 5, name)
    assert all(np.array_equal(np.asarray(to_pil(a)), np.asarray(b)) for a, b in zip(ours, pictures, strict=True))


# -------------------------------------------------------------------------------------------- the reverse process is right

MEAN, STD = 0.5, 0.6


def exact(**changes) -> tuple[Model, float]:
    forward = models.process(**changes)
    model = Model(Denoiser(GaussianDenoiser(forward.scheduler, MEAN, STD)), forward, None)
    return model, float(forward.abar[-1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_probability_flow_of_gaussian_data(name, kind):
    follow_the_flow(name, *exact(prediction_type=kind))


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "euler", "unipc"])
def test_the_probability_flow_from_zero_terminal_snr(name):
    follow_the_flow(name, *exact(rescale_betas_zero_snr=True))


def follow_the_flow(name: str, model: Model, abar: float) -> None:
    """Between two Gaussians the flow is linear: it keeps (x - mean) / standard deviation.

    The error of n steps is of order 1 / n in the last step, where each sampler jumps to x_0. First-order samplers have it in
    all steps."""
    z = torch.tensor([-1.0, 0, 1, 2]).view(-1, 1, 1, 1)
    expected = MEAN + STD / math.sqrt(abar * STD**2 + 1 - abar) * (z - math.sqrt(abar) * MEAN)
    errors = [(denoise(model, z, SamplerSettings(name, steps)) - expected).abs().max().item() for steps in (20, 250)]
    first_order = name in ("ddim", "euler")
    assert errors[1] < (0.025 if first_order else 0.012) and errors[1] < errors[0] / 4


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("name", "eta"), [("ddpm", 0.0), ("ddim", 1.0)])
def test_stochastic_samplers_reach_mean_and_variance(name, eta, zero):
    model, _ = exact(rescale_betas_zero_snr=zero)
    count = 20_000
    random = [torch.Generator().manual_seed(0)]  # one for all images: one generator per image is slow
    x = denoise(model, torch.randn(count, 1, 1, 1, generator=random[0]), SamplerSettings(name, 1000, eta), random)
    assert abs(x.mean() - MEAN) < 5 * STD / math.sqrt(count)
    assert x.std() == pytest.approx(STD, rel=0.025)  # sampling error 0.5%; the last steps lose 1% of the variance


def test_ddim_equals_its_equation():
    """Song et al. 2021, equation 12 with sigma 0, by hand."""
    model, _ = exact(prediction_type="epsilon")
    alphas = models.scheduler().alphas_cumprod.double()
    x = noise = torch.tensor([-1.0, 0.5]).view(-1, 1, 1, 1)
    for t in range(999, 0, -100):
        now, after = alphas[t], alphas[t - 100] if t >= 100 else torch.tensor(1.0)
        eps = model.unet(x, t).sample
        x = after.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - after).sqrt() * eps
    torch.testing.assert_close(denoise(model, noise, SamplerSettings("ddim", 10)), x.float(), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ choosing a scheduler


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"prediction_type": "epsilon", "timestep_spacing": "leading"}, {"beta_schedule": "squaredcos_cap_v2"}],
)
def test_another_scheduler_keeps_the_forward_process(name, changes):
    before = models.scheduler(**changes)
    after = DiscreteVP(before).sampler(name)
    assert type(after) is SCHEDULERS[name]
    assert torch.equal(after.betas, before.betas)
    for key in ("prediction_type", "timestep_spacing", "num_train_timesteps"):
        assert after.config[key] == before.config[key]
    assert not after.config.get("clip_sample")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_scheduler_keeps_default_settings_too(name):
    before = DDPMScheduler()  # Heun has other default betas, and most samplers have other default spacings
    after = DiscreteVP(before).sampler(name)
    assert torch.equal(after.betas, before.betas) and after.config.timestep_spacing == "leading"


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "heun"])
def test_zero_terminal_snr_is_kept_by_the_other_samplers(name):
    before = models.scheduler(rescale_betas_zero_snr=True)
    after = DiscreteVP(before).sampler(name).alphas_cumprod
    assert after[-1] <= 2**-24 and torch.equal(after[:-1], before.alphas_cumprod[:-1])


def test_without_a_name_the_models_scheduler_is_used():
    own = models.scheduler()
    assert DiscreteVP(own).sampler(None) is own


def test_schedulers_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"plms does not know the process vp.*ddim, ddpm"):
        models.process().sampler("plms")
    with pytest.raises(UserError, match="heun cannot start from zero terminal SNR"):
        models.process(rescale_betas_zero_snr=True).sampler("heun")
    with pytest.raises(UserError, match=r"euler cannot be used.*sigmoid"):
        models.process(beta_schedule="sigmoid").sampler("euler")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_impossible_steps_and_eta_are_refused(name):
    model, _ = exact(num_train_timesteps=20)
    noise = torch.zeros(1, 1, 1, 1)
    with pytest.raises(UserError, match=r"num_inference_steps is 21; .*20"):
        denoise(model, noise, SamplerSettings(name, 21))
    assert all(denoise(model, noise, SamplerSettings(name, steps)).isfinite().all() for steps in (20, 1))
    if name != "ddim":
        with pytest.raises(UserError, match="eta only applies to DDIM"):
            denoise(model, noise, SamplerSettings(name, 5, 0.5))


def test_a_few_images_decoded_at_a_time_are_the_same_images(pipeline_folder, monkeypatch):
    model = load_model(str(pipeline_folder))
    x0 = denoise(model, initial_noise(model, generators(0, 7)), SamplerSettings(num_inference_steps=3))
    together, decoded, decode = to_images(model, x0), [], model.first_stage.decode
    monkeypatch.setattr(diffusion_model, "DECODED_AT_ONCE", 3 * x0[0, 0].numel() + 1)
    monkeypatch.setattr(model.first_stage, "decode", lambda part: decoded.append(len(part)) or decode(part))
    in_parts = to_images(model, x0)
    assert decoded == [3, 3, 1]
    assert torch.equal(in_parts, together)


def test_half_precision_keeps_a_vq_first_stage_in_float32(pipeline_folder):
    model = load_model(str(pipeline_folder), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.first_stage.dtype == torch.float32
    assert draw(model, 2, 2).shape == (5, 3, 16, 16)


# -------------------------------------------------------------------------------------------- interpolation and frames


def test_slerp():
    a, b = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    way = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b, rtol=1e-4, atol=1e-5)
    unit = slerp(a / a.norm(), b / b.norm(), torch.linspace(0, 1, 5))
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), torch.ones(5))
    angles = (unit[1:] * unit[:-1]).flatten(1).sum(1).arccos()  # equal angles between neighbours
    torch.testing.assert_close(angles, angles[:1].expand(4), rtol=1e-3, atol=0)
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.5]))[0], a)  # here the formula would divide 0 by 0


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_frames_go_from_noise_to_the_sampled_image(pipeline_folder, name):
    model, settings = load_model(str(pipeline_folder)), SamplerSettings(name, 6)
    frames = sampling.denoising_frames(model, 2, 3, settings, frames=4)
    assert len(frames) == 4
    assert torch.equal(frames[-1], next(sample(model, 2, 2, 3, settings)))
    # Euler's x starts 84 times as large as the network's input. The first frame still shows the noise.
    pixels = Model(model.denoiser, model.process, None)
    noise = to_images(pixels, initial_noise(model, generators(3, 2)))
    frames = sampling.denoising_frames(pixels, 2, 3, settings)
    assert (frames[0].int() - noise.int()).abs().max() <= 1
    assert len(sampling.denoising_frames(model, 1, 0, SamplerSettings(name, 2), frames=12)) == 3


def test_interpolation_ends_at_the_images_of_the_two_seeds(pipeline_folder):
    model = load_model(str(pipeline_folder))
    settings = SamplerSettings(num_inference_steps=4)
    way = sampling.interpolate(model, 3, 7, settings, frames=3)
    ends = torch.cat([next(sample(model, 1, 1, seed, settings)) for seed in (3, 7)])
    assert way.shape == (3, 3, 16, 16)
    assert (way[[0, -1]].int() - ends.int()).abs().max() <= 1


def test_interpolation_of_labels_in_half_precision():
    denoiser = Denoiser(models.unet(labelled=True), models.labels()).to(torch.bfloat16)
    model = Model(denoiser, models.process(), None)
    assert sampling.interpolate(model, 3, 7, SamplerSettings("ddim", 2), frames=3).shape == (3, 3, 8, 8)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_interpolation_goes_from_the_labels_of_one_seed_to_those_of_the_other(scale):
    torch.manual_seed(0)
    labels = models.labels()
    model = Model(Denoiser(models.unet(labelled=True), labels), models.process(), None)
    settings = SamplerSettings("ddim", 4, guidance_scale=scale)
    ends = torch.cat([next(sample(model, 1, 1, seed, settings)) for seed in (3, 7)])
    assert not torch.equal(labels.draw([3], {}), labels.draw([7], {}))
    assert (sampling.interpolate(model, 3, 7, settings, frames=3)[[0, -1]].int() - ends.int()).abs().max() <= 1


# ------------------------------------------------------------------------------------------------------ loading a model


def refused(path: object) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    return str(caught.value)


def test_a_run_and_its_pipeline_are_the_same_model(pipeline_folder):
    run, pipeline = load_model(str(pipeline_folder.parent)), load_model(str(pipeline_folder))
    assert torch.equal(draw(run, 5, 2), draw(pipeline, 5, 2))
    assert run.first_stage.config.scaling_factor == 0.7 and run.process.scheduler.config.timestep_spacing == "trailing"
    assert not run.unet.training and run.dtype == torch.float32


def test_missing_folders_and_folders_without_a_model(tmp_path):
    assert "does not exist" in refused(tmp_path / "nothing")
    assert "does not exist" in refused("./nothing")
    assert "is not a model folder" in refused(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    assert "folder" in refused(tmp_path / "picture.png")
    models.vq_model().save_pretrained(tmp_path / "vqvae")  # a run of train_vq.py cannot be sampled from
    assert "is not a model folder" in refused(tmp_path)


def test_damaged_models(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-100], whole[:50], b""):
        weights.write_bytes(damaged)
        assert str(copied) in refused(copied)
    weights.unlink()
    assert str(copied) in refused(copied)
    weights.write_bytes(whole)
    load_model(str(copied))
    for file in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        text = (copied / file).read_text()
        (copied / file).write_text(text[:20])
        assert str(copied) in refused(copied)
        (copied / file).write_text(text)
    index = json.loads((copied / "model_index.json").read_text())
    for nonsense in ({**index, "unet": ["diffusers", "NoSuchModel"]}, {**index, "unet": ["diffusers", "AutoencoderKL"]}, [1]):
        (copied / "model_index.json").write_text(json.dumps(nonsense))
        assert str(copied) in refused(copied)


def test_a_name_on_the_hub_without_network():
    assert "cannot be loaded" in refused("somebody/faces")
    assert "does not exist: train it first" in refused("runs/no/such/run")


def test_an_unknown_device(pipeline_folder):
    with pytest.raises(UserError, match="device 'gpu'"):
        load_model(str(pipeline_folder), "gpu")
