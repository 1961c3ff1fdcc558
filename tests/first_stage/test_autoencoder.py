import json

import pytest
import torch
from diffusers import DDIMScheduler, LDMPipeline
from safetensors.torch import load_file, save_file

from tests.support import models
from tinyldm.config.schema import FirstStageConfig
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import FirstStage, load_first_stage

KINDS = {
    "VQModel": (models.vq_model, 2, 3),
    "AutoencoderKL": (models.kl_model, 4, 4),
    "AutoencoderTiny": (models.tiny_model, 4, 4),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def load(path: object, subfolder: str | None = None) -> FirstStage:
    return load_first_stage(FirstStageConfig(str(path), subfolder))


def refused(path: object, subfolder: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(path, subfolder)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_loads_by_folder_by_run_and_by_subfolder(kind, tmp_path):
    model = KINDS[kind][0]()
    model.save_pretrained(tmp_path / "vqvae")
    model.save_pretrained(tmp_path / "other")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    expected = FirstStage(model).encode(images)
    for stage in (load(tmp_path / "vqvae"), load(tmp_path), load(tmp_path, "other")):
        assert type(stage.model).__name__ == kind and not stage.model.training
        assert not any(weight.requires_grad for weight in stage.model.parameters())
        assert torch.equal(stage.encode(images), expected)
        assert stage.fingerprint() == FirstStage(model).fingerprint()


def test_the_vae_of_a_pipeline_is_found(tmp_path):
    models.kl_model().save_pretrained(tmp_path / "vae")
    assert load(tmp_path).downscale == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_and_the_channels_match_the_latents(kind):
    make, factor, channels = KINDS[kind]
    stage = FirstStage(make())
    latents = stage.encode(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert (stage.downscale, stage.channels) == (factor, channels)
    assert latents.shape == (2, channels, 32 // factor, 32 // factor)
    assert stage.check_resolution(32) == latents.shape[-1]
    assert stage.decode(latents).shape == (2, 3, 32, 32)


def test_the_codes_of_a_vq_model_may_be_narrower_than_its_encoder():
    stage = FirstStage(models.vq_model(latent_channels=6, vq_embed_dim=2))
    latents = stage.encode(torch.zeros(1, 3, 16, 16))
    assert stage.channels == latents.shape[1] == 2
    assert stage.decode(latents).shape == (1, 3, 16, 16)


def test_vq_latents_are_unquantised_and_decoding_quantises():
    model = models.vq_model()
    stage, images = FirstStage(model), torch.rand(1, 3, 16, 16) * 2 - 1
    latents = stage.encode(images)
    codes = model.quantize.embedding.weight  # (16, 3)
    nearest = codes[torch.cdist(latents.movedim(1, -1).reshape(-1, 3), codes).argmin(1)]
    quantised = nearest.reshape(1, 8, 8, 3).movedim(-1, 1)
    assert not torch.allclose(latents, quantised)
    torch.testing.assert_close(stage.decode(latents), stage.decode(quantised))


def test_kl_latents_are_the_mean():
    model = models.kl_model()
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean, _ = model.quant_conv(model.encoder(images)).chunk(2, dim=1)
    torch.testing.assert_close(FirstStage(model).encode(images), mean)


# ----------------------------------------------------------------------------------------------------------- the scale


def test_a_scale_in_the_config_is_kept_if_it_is_about_right():
    stage = FirstStage(models.vq_model(scaling_factor=1.04))
    assert stage.choose_scale(1.0) is None
    assert stage.scaling_factor == 1.04


def test_the_default_scale_is_replaced_with_a_message(tmp_path):
    stage = FirstStage(models.vq_model())
    latents = stage.encode(torch.rand(8, 3, 16, 16) * 2 - 1)
    message = stage.choose_scale(1 / latents.std().item())
    assert "0.18215" in message and "wrong for a VQ-f4" in message
    assert (latents * stage.scaling_factor).std().item() == pytest.approx(1, rel=1e-5)
    # LDMPipeline divides by the value in the config, so it must be saved with the model.
    sampler = DDIMScheduler.from_config(models.scheduler().config)
    LDMPipeline(vqvae=stage.model, unet=models.unet(), scheduler=sampler).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "vqvae" / "config.json").read_text())["scaling_factor"] == stage.scaling_factor


def test_another_scale_or_another_kind_is_not_called_the_vq_default():
    for stage in (FirstStage(models.vq_model(scaling_factor=2.0)), FirstStage(models.kl_model())):
        message = stage.choose_scale(1.0)
        assert "which is used" in message and "VQ-f4" not in message
        assert stage.scaling_factor == 1.0


def test_a_fingerprint_depends_on_the_function_but_not_on_the_scale():
    stage, before = FirstStage(models.vq_model()), FirstStage(models.vq_model()).fingerprint()
    stage.scaling_factor = 2.0
    assert stage.fingerprint() == before
    assert FirstStage(models.vq_model(act_fn="relu")).fingerprint() != before  # the same weights
    with torch.no_grad():
        stage.model.encoder.conv_in.bias[0] += 1e-6
    assert stage.fingerprint() != before


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_resolution_that_the_factor_does_not_divide():
    stage = FirstStage(models.kl_model())
    with pytest.raises(UserError, match=r"data.resolution 63 .* factor 4; the nearest is 64"):
        stage.check_resolution(63)
    with pytest.raises(UserError, match="the nearest is 4"):
        stage.check_resolution(1)


def test_another_model_is_named(tmp_path):
    models.unet().save_pretrained(tmp_path / "unet")
    assert "holds a UNet2DModel; it must be one of VQModel" in refused(tmp_path / "unet")
    assert "holds a UNet2DModel" in refused(tmp_path, "unet")


def test_a_folder_without_a_model(tmp_path):
    assert "is not a model folder" in refused(tmp_path)
    models.vq_model().save_pretrained(tmp_path / "vqvae")
    assert "is not a model folder" in refused(tmp_path, "vae")
    assert "cannot be loaded (there is no folder somebody/first-stage, and the Hub is" in refused("somebody/first-stage")
    assert "is not a folder; train it first" in refused(tmp_path / "missing")
    (tmp_path / "file").write_text("no folder")
    assert "is not a folder; train it first" in refused(tmp_path / "file")


def test_damaged_weights_and_config(tmp_path):
    models.vq_model().save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for damaged in (whole[:-100], whole[:20], b""):
        (tmp_path / WEIGHTS).write_bytes(damaged)
        assert f"{tmp_path} is damaged or incomplete" in refused(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    assert "is damaged or incomplete" in refused(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole)
    text = (tmp_path / "config.json").read_text()
    for nonsense in (text[:30], "[]", "{}", "", text.replace('"silu"', '"none such"'), text.replace("3,", '"x",')):
        (tmp_path / "config.json").write_text(nonsense)
        assert str(tmp_path) in refused(tmp_path), nonsense


def test_missing_weights_are_an_error(tmp_path):
    models.vq_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["quant_conv.bias"]
    save_file(tensors, tmp_path / WEIGHTS)
    assert "1 weights are missing, quant_conv.bias" in refused(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_vq_embeddings": 8}))
    assert "is damaged or incomplete" in refused(tmp_path)


def test_the_layout_of_2022_loads(tmp_path):
    """CompVis/ldm-celebahq-256 was saved by diffusers 0.4: a .bin file, attention under its old names, no scaling_factor."""
    model = models.vq_model()
    model.save_pretrained(tmp_path / "vqvae")
    (tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors").unlink()
    old_names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for name, tensor in model.state_dict().items():
        for new, old in old_names.items():
            name = name.replace(new, old)
        weights[name] = tensor
    assert any(".proj_attn." in name for name in weights)
    torch.save(weights, tmp_path / "vqvae" / "diffusion_pytorch_model.bin")
    config = json.loads((tmp_path / "vqvae" / "config.json").read_text())
    del config["scaling_factor"]
    (tmp_path / "vqvae" / "config.json").write_text(json.dumps(config))

    loaded = load_first_stage(FirstStageConfig(path=str(tmp_path), subfolder="vqvae"))
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), model.encode(images).latents)
    assert loaded.scaling_factor == 0.18215  # VQModel's default, until the scale is measured


def test_latents_in_half_precision_keep_their_codes():
    """The codes are so dense that rounding alone moves some latents to another code."""
    model = models.vq_model()
    model.quantize.embedding = torch.nn.Embedding(4096, model.config.latent_channels)
    stage, latents = FirstStage(model.requires_grad_(False)), torch.randn(3, model.config.latent_channels, 32, 32)
    half = stage.to_half(latents)
    assert half.dtype == torch.float16
    assert (stage.codes(latents.half().float()) != stage.codes(latents)).any()
    assert torch.equal(stage.codes(half.float()), stage.codes(latents))
    changed = half != latents.half()
    assert changed.float().mean() < 0.05 and (half - latents).abs().max() < 0.01  # hardly moved

    kl = FirstStage(models.kl_model())
    assert torch.equal(kl.to_half(latents), latents.half())  # which has no codes


@pytest.fixture
def tf32_everywhere():
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def test_latents_and_codes_are_computed_without_tf32(tf32_everywhere, monkeypatch):
    stage, seen = FirstStage(models.vq_model()), []

    def note(function):
        def noted(*args):
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return function(*args)

        return noted

    monkeypatch.setattr(stage.model, "encode", note(stage.model.encode))
    monkeypatch.setattr(torch, "cdist", note(torch.cdist))
    latents = stage.encode(torch.zeros(2, 3, 8, 8))
    stage.codes(latents)
    stage.to_half(latents)
    assert len(seen) >= 3 and set(seen) == {(False, False)}
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32


def test_codes_are_searched_an_image_at_a_time(monkeypatch):
    """All at once would need a matrix of distances of 8.6 GB for 64 images of 256 px."""
    stage, sizes, search = FirstStage(models.vq_model()), [], torch.cdist
    latents = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = stage.model.quantize(latents)[2][2].view(3, 4, 4)
    monkeypatch.setattr(torch, "cdist", lambda *args: sizes.append(len(args[0])) or search(*args))
    assert torch.equal(stage.codes(latents), expected) and sizes == [16] * 3
