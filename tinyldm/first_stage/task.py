"""Trains a first stage: a VQ autoencoder with L1, perceptual, codebook and adversarial losses (Esser et al. 2021, "Taming
Transformers", equations 4 to 7). Unused codes are revived."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tinyldm import pictures
from tinyldm.config.schema import TrainVQ
from tinyldm.data.batch import Batch
from tinyldm.data.images import Images, first_images, mirror_half, to_float, to_uint8
from tinyldm.first_stage.networks import Autoencoder, make_discriminator, make_vq
from tinyldm.metrics.lpips import load_lpips
from tinyldm.randomness import Draw
from tinyldm.training.accelerator import rank_of
from tinyldm.training.task import Losses, Task, image_batches, open_data

PICTURE_IMAGES = 8


def gradient_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """L1 distance of the horizontal and the vertical differences of neighbouring pixels."""
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


class VQTask(Task):
    """See training.task.Task."""

    card = "vq"

    def __init__(self, config: TrainVQ, accelerator: Accelerator):
        self.config, self.loss, self.accelerator, self.rank = config, config.loss, accelerator, rank_of(accelerator)
        torch.manual_seed(config.seed)
        vq = make_vq(config)
        self.networks = {"autoencoder": Autoencoder(vq)}
        self.learning_rates = {"autoencoder": config.train.learning_rate}
        if self.loss.adversarial_weight > 0:
            self.networks["discriminator"] = make_discriminator(config)
            if config.train.compile:
                # A compiled backward pass may free its buffers, and this one runs more than once.
                torch._functorch.config.donated_buffer = False
            self.learning_rates["discriminator"] = self.loss.discriminator_learning_rate
        self.buffers, self.kept = {}, {}
        self.lpips = load_lpips().to(accelerator.device) if self.loss.perceptual == "lpips" else None

        train, held_out, self.data = open_data(config, accelerator)
        self.stream = image_batches(config, train, accelerator)
        self.examples_per_epoch = self.stream.length
        held_out_images = Images.of(held_out, config.data)
        self.readers = [self.stream.images, held_out_images]
        self.held_out = first_images(held_out_images, config.train.num_eval_images)

    @property
    def train_images(self) -> int | None:
        """See Task.train_images."""
        return self.stream.length

    def batches(self, position: int) -> Generator[Batch, None, None]:
        """See Task.batches."""
        return self.stream(position)

    # ------------------------------------------------------------------------------------------------------ learning

    def losses(self, batch: Batch, step: int, draw: Draw) -> Losses:
        """The autoencoder's loss, then the discriminator's from `loss.discriminator_start` on."""
        loss = self.loss
        images = to_float(batch.x)
        if self.config.data.random_flip:
            images = mirror_half(images, draw)
        quantize = step >= loss.quantize_start
        reconstructed, codebook_loss, latents, codes = self.networks["autoencoder"](images, quantize)
        self._watch_codes(latents, codes)

        numbers = {"l1": (reconstructed - images).abs().mean()}
        reconstruction_loss = numbers["l1"]
        if loss.gradient_weight:
            numbers["gradient"] = gradient_l1(reconstructed, images)
            reconstruction_loss = reconstruction_loss + loss.gradient_weight * numbers["gradient"]
        if self.lpips is not None:
            numbers["lpips"] = self.lpips(reconstructed.clamp(-1, 1), images).mean()
            reconstruction_loss = reconstruction_loss + loss.perceptual_weight * numbers["lpips"]
        numbers["codebook"] = codebook_loss
        numbers["loss"] = reconstruction_loss + loss.codebook_weight * codebook_loss
        if loss.adversarial_weight == 0 or step < loss.discriminator_start:
            yield "autoencoder", numbers["loss"], numbers
            return

        # One pass through the discriminator serves both networks: its gradient at the reconstruction trains the autoencoder,
        # its gradient at its own weights comes from the hinge loss below.
        fake = reconstructed.detach().requires_grad_()
        real_verdict, fake_verdict = self.networks["discriminator"](torch.cat([images, fake])).chunk(2)
        (adversarial_gradient,) = torch.autograd.grad(-fake_verdict.mean(), fake, retain_graph=True)
        (reconstruction_gradient,) = torch.autograd.grad(reconstruction_loss, reconstructed, retain_graph=True)
        numbers["adaptive_weight"] = self._adaptive_weight(reconstructed, reconstruction_gradient, adversarial_gradient)
        ramp = min(1.0, (step - loss.discriminator_start + 1) / max(1, loss.discriminator_ramp_steps))
        weight = ramp * loss.adversarial_weight * numbers["adaptive_weight"]
        # The product has the gradient of the sum of the weighted losses, and each network runs once.
        surrogate = (reconstructed * (reconstruction_gradient + weight * adversarial_gradient)).sum()
        yield "autoencoder", surrogate + loss.codebook_weight * codebook_loss, numbers

        hinge = 0.5 * (F.relu(1 - real_verdict).mean() + F.relu(1 + fake_verdict).mean())
        yield "discriminator", hinge, {"discriminator": hinge}

    def _adaptive_weight(
        self, reconstructed: torch.Tensor, reconstruction_gradient: torch.Tensor, adversarial_gradient: torch.Tensor
    ) -> torch.Tensor:
        """Ratio of the two losses' gradients at the decoder's last layer (Esser et al. 2021, equation 7)."""
        last = self.accelerator.unwrap_model(self.networks["autoencoder"]).vq.decoder.conv_out.weight
        ours, theirs = (
            self.accelerator.reduce(torch.autograd.grad(reconstructed, last, gradient, retain_graph=True)[0], "mean").norm()
            for gradient in (reconstruction_gradient, adversarial_gradient)
        )
        return (ours / (theirs + 1e-4)).clamp(0, 1e4).detach()

    @torch.no_grad()
    def _watch_codes(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        model = self.accelerator.unwrap_model(self.networks["autoencoder"])
        # bincount would wait for the GPU to know the size of its result.
        used = codes.flatten()
        uses = torch.zeros_like(model.uses).index_add_(0, used, torch.ones_like(used, dtype=model.uses.dtype))
        model.uses += self.accelerator.reduce(uses, "sum") if self.accelerator.num_processes > 1 else uses
        self.latents = latents.detach().movedim(1, -1).flatten(0, -2).float()  # (B h w, C)

    @torch.no_grad()
    def after_step(self, step: int, draw: Draw, ema: EMAModel) -> None:
        """Move unused codes onto latents of the current batch, and all codes once when quantisation begins: the latents are
        not where the codes were initialised."""
        loss, model = self.loss, self.accelerator.unwrap_model(self.networks["autoencoder"])
        begins = step == max(1, loss.quantize_start)
        revives = loss.revive_steps and step % loss.revive_steps == 0 and step > loss.quantize_start
        if not begins and not revives:
            return
        dead = torch.ones_like(model.uses, dtype=torch.bool) if begins else model.uses == 0
        latents = self.accelerator.gather(self.latents)  # all ranks move them to the same places
        fresh = latents[(draw.common(len(dead)) * len(latents)).long()]
        codebook = model.vq.quantize.embedding.weight
        averaged = next(
            shadow for shadow, weight in zip(ema.shadow_params, model.parameters(), strict=True) if weight is codebook
        )
        for weights in (codebook, averaged):
            weights.data[dead] = fresh[dead].to(weights)
        model.uses.zero_()

    # ---------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Sums of both losses, PSNR and SSIM over held-out images, and how often each code was used."""
        model = self.accelerator.unwrap_model(self.networks["autoencoder"])
        device = self.accelerator.device
        sums = {key: torch.zeros((), device=device) for key in ("loss", "trained", "psnr", "ssim", "count")}
        sums["uses"] = torch.zeros(len(model.uses), device=device)
        mine = self.held_out[self.rank.index :: self.rank.count]
        for batch in mine.split(self.config.train.batch_size) if len(mine) else ():
            images = to_float(batch.to(device))
            reconstructed, codebook_loss, _, codes = model(images)
            loss = (reconstructed - images).abs().mean((1, 2, 3))
            if self.lpips is not None:
                loss = loss + self.loss.perceptual_weight * self.lpips(reconstructed.clamp(-1, 1), images).flatten()
            pair = to_uint8(reconstructed).float(), batch.to(device).float()
            sums["loss"] += loss.sum()
            rest = self.loss.gradient_weight * gradient_l1(reconstructed, images) + self.loss.codebook_weight * codebook_loss
            sums["trained"] += loss.sum() + len(images) * rest
            sums["psnr"] += peak_signal_noise_ratio(*pair, data_range=255.0, dim=(1, 2, 3), reduction="none").sum()
            ssim = structural_similarity_index_measure(*pair, data_range=255.0, reduction="none")
            sums["ssim"] += ssim.sum()  # type: ignore[union-attr]  # a tuple only where the full image is asked for
            sums["count"] += len(images)
            sums["uses"] += torch.bincount(codes.flatten(), minlength=len(model.uses))
        return sums

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Means; the codebook's perplexity (exp of the entropy of code use) and the share of codes in use."""
        share = sums["uses"] / sums["uses"].sum()
        return {
            "eval_loss": float(sums["loss"] / sums["count"]),
            "eval_loss_as_trained": float(sums["trained"] / sums["count"]),
            "eval_psnr": float(sums["psnr"] / sums["count"]),
            "eval_ssim": float(sums["ssim"] / sums["count"]),
            "eval_perplexity": float(torch.special.entr(share).sum().exp()),
            "eval_codes_used": float((sums["uses"] > 0).float().mean()),
        }

    @torch.no_grad()
    def picture(self, path: Path) -> None:
        """Held-out images above their reconstructions."""
        images = self.held_out[: 2 * PICTURE_IMAGES]
        model = self.accelerator.unwrap_model(self.networks["autoencoder"])
        reconstructed = to_uint8(model(to_float(images.to(self.accelerator.device)))[0]).cpu()
        rows = [
            part
            for pair in zip(images.split(PICTURE_IMAGES), reconstructed.split(PICTURE_IMAGES), strict=True)
            for part in pair
        ]
        pictures.grid(torch.cat(rows), PICTURE_IMAGES).save(path)

    @torch.no_grad()
    def make_images(self, count: int) -> Iterator[torch.Tensor]:
        """Reconstructions of this rank's share of the first `count` held-out images, or of all if there are fewer."""
        model = self.accelerator.unwrap_model(self.networks["autoencoder"])
        for batch in self.held_out[:count][self.rank.index :: self.rank.count].split(self.config.train.batch_size):
            yield to_uint8(model(to_float(batch.to(self.accelerator.device)))[0]).expand(-1, 3, -1, -1)

    def export(self, folder: Path) -> None:
        """vqvae/, a diffusers VQModel folder, with a scaling_factor that gives held-out latents unit variance."""
        vq = self.accelerator.unwrap_model(self.networks["autoencoder"]).vq
        with torch.no_grad():
            batches = self.held_out.split(self.config.train.batch_size)
            latents = torch.cat([vq.encode(to_float(batch.to(vq.device))).latents for batch in batches])
        if std := latents.std(correction=0).item():
            vq.register_to_config(scaling_factor=1 / std)
        vq.save_pretrained(folder / "vqvae")

    def facts(self) -> dict[str, Any]:
        """For model_cards/vq.md."""
        loss, vq = self.loss, self.config.vq
        side = self.config.data.resolution // vq.downscale
        parts = ["L1", f"codebook x {loss.codebook_weight:g}"]
        parts += [f"LPIPS (VGG16) x {loss.perceptual_weight:g}"] if self.lpips is not None else []
        parts += [f"L1 of image gradients x {loss.gradient_weight:g}"] if loss.gradient_weight else []
        if loss.adversarial_weight:
            parts.append(f"patch discriminator x {loss.adversarial_weight:g} (adaptive) from step {loss.discriminator_start}")
        return {
            "latent_shape": f"{vq.latent_channels} x {side} x {side}, {vq.num_vq_embeddings} codes",
            "losses": ", ".join(parts),
            "scaling_factor": self.accelerator.unwrap_model(self.networks["autoencoder"]).vq.config.scaling_factor,
            "eval_images": len(self.held_out),
        }
