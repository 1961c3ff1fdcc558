import math
from collections.abc import Callable
from dataclasses import replace
from urllib.error import URLError

import pytest
import torch
import torchvision
from accelerate import Accelerator
from diffusers import VQModel
from diffusers.training_utils import EMAModel

import train_vq
from tests.support import models
from tests.support.runs import DATA, EVERY_STEP, VQ, rows, run
from tinyldm.config.networks import VQConfig
from tinyldm.config.schema import DataConfig, FirstStageConfig, TrainConfig, TrainVQ, VQLossConfig
from tinyldm.data.batch import Batch
from tinyldm.data.images import to_float
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import load_first_stage
from tinyldm.first_stage.networks import Autoencoder, Discriminator
from tinyldm.first_stage.task import VQTask, gradient_l1
from tinyldm.metrics.lpips import load_lpips
from tinyldm.randomness import Draw, Rank


def unlabelled(images: torch.Tensor) -> Batch:
    return Batch(images)


LOSS = VQLossConfig(
    perceptual="none",
    gradient_weight=0.7,
    codebook_weight=0.9,
    adversarial_weight=0.6,
    discriminator_start=10,
    discriminator_ramp_steps=20,
    discriminator_channels=8,
    discriminator_layers=2,
    revive_steps=5,
)
CONFIG = TrainVQ(
    output_dir="unused",
    data=DataConfig(eval_split="validation", resolution=16, num_workers=1),
    vq=VQConfig(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        num_vq_embeddings=16,
    ),
    loss=LOSS,
    train=TrainConfig(max_steps=10, batch_size=4, num_eval_images=7),
)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make_task(monkeypatch) -> Callable[..., VQTask]:
    def make(**loss) -> VQTask:
        task = VQTask(replace(CONFIG, loss=replace(LOSS, **loss)), Accelerator(cpu=True))
        with torch.no_grad():  # codes near the latents, so that several are used and the losses have similar sizes
            latents = task.networks["autoencoder"].vq.encode(task.held_out[:4].float() / 127.5 - 1).latents
            task.networks["autoencoder"].vq.quantize.embedding.weight.copy_(latents.movedim(1, -1).reshape(-1, 3)[::16])
        return task

    return make


def draw(step: int = 0) -> Draw:
    return Draw(0, step, 0, Rank(0, 1))


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


# --------------------------------------------------------------------------------------------------- the sum of losses


def test_the_gradients_equal_those_of_the_explicit_sum(make_task, images):
    task, step = make_task(), 14
    autoencoder, discriminator = task.networks["autoencoder"], task.networks["discriminator"]
    both = task.losses(unlabelled(images), step, draw())
    name, loss, numbers = next(both)
    assert name == "autoencoder"
    loss.backward()
    ours = gradients(autoencoder)
    assert gradients(discriminator) == {}  # the autoencoder's loss has no gradient for the discriminator
    name, loss, _ = next(both)
    assert name == "discriminator"
    loss.backward()
    assert_same(gradients(autoencoder), ours)  # and vice versa
    ours_discriminator = gradients(discriminator)
    assert next(both, None) is None

    # Esser et al. 2021, equations 4 to 7, with one pass per network.
    autoencoder.zero_grad()
    discriminator.zero_grad()
    real = to_float(images)
    fake, codebook_loss, _, _ = autoencoder(real)
    reconstruction = (fake - real).abs().mean() + LOSS.gradient_weight * gradient_l1(fake, real)
    adversarial = -discriminator(fake).mean()
    last = autoencoder.vq.decoder.conv_out.weight
    norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (reconstruction, adversarial)]
    adaptive = (norms[0] / (norms[1] + 1e-4)).detach()
    torch.testing.assert_close(numbers["adaptive_weight"], adaptive, rtol=1e-3, atol=0)
    weight = 0.6 * adaptive * (14 - 10 + 1) / 20
    (reconstruction + weight * adversarial + LOSS.codebook_weight * codebook_loss).backward()
    assert_same(ours, gradients(autoencoder))

    discriminator.zero_grad()
    verdict_real, verdict_fake = discriminator(real), discriminator(fake.detach())
    hinge = ((1 - verdict_real).clamp(min=0).mean() + (1 + verdict_fake).clamp(min=0).mean()) / 2
    hinge.backward()
    assert_same(ours_discriminator, gradients(discriminator))


def test_before_its_start_the_discriminator_has_no_effect(make_task, images):
    task = make_task()
    autoencoder = task.networks["autoencoder"]
    (only,) = task.losses(unlabelled(images), LOSS.discriminator_start - 1, draw())
    only[1].backward()
    ours = gradients(autoencoder)
    autoencoder.zero_grad()
    real = to_float(images)
    fake, codebook_loss, _, _ = autoencoder(real)
    ((fake - real).abs().mean() + 0.7 * gradient_l1(fake, real) + 0.9 * codebook_loss).backward()
    assert_same(ours, gradients(autoencoder))
    assert "discriminator" not in make_task(adversarial_weight=0).networks


def test_gradient_l1_is_the_mean_difference_of_neighbours():
    step = torch.zeros(1, 1, 4, 4)
    step[..., 2:] = 3.0  # one edge of height 3 in each row: 4 of 12 horizontal differences
    assert gradient_l1(step, torch.zeros_like(step)) == pytest.approx(1.0)
    assert gradient_l1(step + 5, step) == 0


# ----------------------------------------------------------------------------------------------------------- the codes


def test_the_commitment_loss_is_the_corrected_one():
    """beta 0.25 pulls the latents to their codes, weight 1 the codes to their latents (van den Oord et al. 2017)."""
    model = Autoencoder(models.vq_model())
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    _, loss, latents, codes = model(pixels)
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    z = model.vq.encode(pixels).latents.movedim(1, -1).reshape(-1, 3)
    embedding = model.vq.quantize.embedding.weight
    nearest = torch.cdist(z, embedding).argmin(1)
    assert torch.equal(codes.flatten(), nearest)
    e = embedding[nearest]
    target = 0.25 * (z - e.detach()).square().mean() + (e - z.detach()).square().mean()
    torch.testing.assert_close(loss, target)
    target.backward()
    assert_same(ours, gradients(model))
    torch.testing.assert_close(latents.movedim(1, -1).reshape(-1, 3), z)


def test_reconstructions_equal_those_of_diffusers():
    vq = models.vq_model()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    target = vq(pixels).sample
    torch.testing.assert_close(Autoencoder(vq)(pixels)[0], target)


def test_uses_are_counted_over_steps(make_task, images):
    task = make_task(adversarial_weight=0)
    model = task.networks["autoencoder"]
    target = torch.zeros(16)
    for batch in (images, images.flip(0), images.flip(-1)):
        list(task.losses(unlabelled(batch), 0, draw()))
        for code in model(to_float(batch))[3].flatten().tolist():
            target[code] += 1
    assert torch.equal(model.uses, target)


@pytest.mark.parametrize(("step", "moved"), [(1, "all"), (4, "none"), (5, "dead"), (10, "dead")])
def test_dead_codes_are_revived_on_latents_and_used_ones_stay(make_task, images, step, moved):
    task = make_task(adversarial_weight=0)
    model = task.networks["autoencoder"]
    ema = EMAModel(model.parameters())
    ema.shadow_params = [shadow + 1 for shadow in ema.shadow_params]  # so that averaged and current weights differ
    before = [weight.detach().clone() for weight in model.parameters()]
    list(task.losses(unlabelled(images), step, draw()))
    model.uses.copy_(torch.arange(16) % 3)  # 0, 3, 6 ... are dead
    task.after_step(step, draw(step), ema)
    expected = {"all": torch.ones(16), "none": torch.zeros(16), "dead": torch.arange(16) % 3 == 0}[moved].bool()
    for i, (weight, old) in enumerate(zip(model.parameters(), before, strict=True)):
        averaged = ema.shadow_params[i]
        if weight is not model.vq.quantize.embedding.weight:
            assert torch.equal(weight, old) and torch.equal(averaged, old + 1)
            continue
        assert torch.equal(weight[~expected], old[~expected]) and torch.equal(averaged[~expected], old[~expected] + 1)
        assert torch.equal(weight[expected], averaged[expected])
        with torch.no_grad():
            latents = model.vq.encode(to_float(images)).latents.movedim(1, -1).reshape(-1, 3)
        distances = torch.cdist(weight[expected], latents, compute_mode="donot_use_mm_for_euclid_dist")
        assert (distances.min(1).values < 1e-5).all()
    assert model.uses.sum() == (15 if moved == "none" else 0)


def test_revival_can_be_switched_off(make_task, images):
    task = make_task(adversarial_weight=0, revive_steps=0)
    model = task.networks["autoencoder"]
    before = model.vq.quantize.embedding.weight.detach().clone()
    list(task.losses(unlabelled(images), 0, draw()))
    model.uses.zero_()
    task.after_step(5, draw(), EMAModel(model.parameters()))
    assert torch.equal(model.vq.quantize.embedding.weight, before)


def test_all_codes_move_onto_latents_when_quantisation_starts(make_task, images):
    task = make_task(adversarial_weight=0, revive_steps=2, quantize_start=3)
    model = task.networks["autoencoder"]
    before = model.vq.quantize.embedding.weight.detach().clone()
    for step, moved in ((1, False), (2, False), (3, True)):
        list(task.losses(unlabelled(images), step - 1, draw()))
        task.after_step(step, draw(step), EMAModel(model.parameters()))
        assert (model.vq.quantize.embedding.weight != before).any(1).all() == moved


# -------------------------------------------------------------------------------------------------- the discriminator


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_discriminator_judges_patches(layers):
    network = Discriminator(8, layers)
    side = 64 // 2**layers - 2  # the last two layers have kernel 4, stride 1 and one pixel of padding
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1, side, side)
    assert network.verdict.in_channels == 8 * 2**layers


def test_the_discriminator_sees_no_further_than_its_patch():
    """Kernel 4: three layers of stride 2, one of 1 and the output layer see 70 x 70 pixels (Isola et al. 2017); two see 34."""
    for module in (network := Discriminator(8, 2)).modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # its statistics cover the whole image
    pixels = torch.randn(1, 3, 96, 96, requires_grad=True)
    verdict = network(pixels)
    verdict[0, 0, verdict.shape[2] // 2, verdict.shape[3] // 2].backward()
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 34


# ------------------------------------------------------------------------------------------------------ held-out figures


def test_perplexity_is_the_number_of_codes_in_even_use(make_task):
    task = make_task()
    sums = {key: torch.tensor(1.0) for key in ("loss", "trained", "psnr", "ssim", "count")}
    sums |= {"latent": torch.tensor(0.0), "latent_square": torch.tensor(1.0)}
    for used in (1, 5, 16):
        uses = torch.zeros(16)
        uses[:used] = 3.0
        values = task.summarize({**sums, "uses": uses})
        assert values["eval_perplexity"] == pytest.approx(used)
        assert values["eval_codes_used"] == pytest.approx(used / 16)


@torch.no_grad()
def test_held_out_figures_by_hand(make_task, tmp_path):
    task = make_task()
    model = task.networks["autoencoder"]
    assert len(task.held_out) == 7
    values = task.summarize(task.evaluate())
    real = to_float(task.held_out)
    fake, _, latents, codes = model(real)
    eight_bits = [((x.clamp(-1, 1) + 1) * 127.5).round() for x in (real, fake)]
    mse = (eight_bits[0] - eight_bits[1]).square().mean((1, 2, 3))
    assert values["eval_psnr"] == pytest.approx((10 * torch.log10(255**2 / mse)).mean().item(), rel=1e-4)
    assert values["eval_loss"] == pytest.approx((fake - real).abs().mean().item(), rel=1e-4)
    _, codebook_loss, _, _ = model(real)
    rest = task.loss.gradient_weight * gradient_l1(fake, real) + task.loss.codebook_weight * codebook_loss
    assert values["eval_loss_as_trained"] == pytest.approx(values["eval_loss"] + rest.item(), rel=1e-4)
    shares = [count / codes.numel() for count in torch.bincount(codes.flatten()).tolist() if count]
    assert values["eval_perplexity"] == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)), rel=1e-4)

    task.export(tmp_path)
    scale = VQModel.from_pretrained(tmp_path, subfolder="vqvae").config.scaling_factor
    assert scale == pytest.approx(1 / latents.std(correction=0).item(), rel=1e-3)
    shared = []
    for index in range(2):
        task.rank = Rank(index, 2)
        shared.append(task.evaluate())
    together = task.summarize({key: shared[0][key] + shared[1][key] for key in shared[0]})
    assert together == pytest.approx(values, rel=1e-4)


@torch.no_grad()
def test_the_exported_first_stage_has_latents_of_unit_variance(make_task, tmp_path):
    task = make_task()
    task.summarize(task.evaluate())
    task.export(tmp_path)
    task.picture(tmp_path / "picture.png")
    stage = load_first_stage(FirstStageConfig(str(tmp_path)))
    latents = stage.encode(to_float(task.held_out))
    torch.testing.assert_close(latents, task.networks["autoencoder"](to_float(task.held_out))[2])
    assert (latents * stage.scaling_factor).std(correction=0).item() == pytest.approx(1, rel=1e-3)
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_it_can_be_compiled(monkeypatch, tmp_path):
    """Once the discriminator has started, the reconstruction is differentiated more than once."""
    args = [*DATA, *EVERY_STEP, *VQ, "--train.max_steps", 3, "--train.compile", "true", "--vq.block_out_channels", "[8]"]
    args += ["--vq.down_block_types", "[DownEncoderBlock2D]", "--vq.up_block_types", "[UpDecoderBlock2D]"]
    run(monkeypatch, train_vq, "--output_dir", tmp_path / "run", *args)
    assert [bool(row["discriminator"]) for row in rows(tmp_path / "run")] == [False, False, True]


# ------------------------------------------------------------------------------------------------------------- LPIPS


def test_lpips_without_its_weights_gives_a_one_line_error(monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models, "vgg16", no_network)
    with pytest.raises(UserError, match=r"--loss.perceptual none"):
        load_lpips()


@pytest.mark.slow
def test_lpips_is_a_differentiable_distance(monkeypatch):
    """With random weights for VGG16 (the trained ones are a download): 0 for equal images, and a gradient that reduces it."""
    torch.manual_seed(0)
    weights = torchvision.models.vgg16(weights=None).state_dict()
    monkeypatch.setattr("tinyldm.metrics.lpips.pinned_weights", lambda *_: weights)
    lpips = load_lpips()
    assert not any(weight.requires_grad for weight in lpips.parameters())
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    other = (image + 0.3 * torch.randn_like(image)).clamp(-1, 1).requires_grad_()
    assert lpips(image, image).abs().max() < 1e-6
    distance = lpips(other, image)
    assert distance.numel() == 2
    assert (distance > 0).all()
    (gradient,) = torch.autograd.grad(distance.sum(), other)
    nearer = other - 0.1 * gradient / gradient.abs().max()
    assert lpips(nearer, image).sum() < distance.sum()


# ---------------------------------------------------------------------------------------------- late quantisation


def test_before_quantisation_the_latents_are_decoded_as_they_are():
    torch.manual_seed(0)
    model = Autoencoder(models.vq_model())
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        reconstructed, codebook_loss, latents, _ = model(images, quantize=False)
        plain = model.vq.decode(latents, force_not_quantize=True).sample
    assert torch.equal(reconstructed, plain)
    assert codebook_loss == 0
