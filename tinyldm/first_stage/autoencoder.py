"""The autoencoder between images and latents: loading one, encoding, decoding, the scale of its latents."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from huggingface_hub.errors import EntryNotFoundError

from tinyldm.config.schema import FirstStageConfig
from tinyldm.errors import UserError, boundary
from tinyldm.limits import check_finite
from tinyldm.remote import from_hub, may_be_hub_id
from tinyldm.training.announce import first_stage_recipe

SUBFOLDERS = ("vqvae", "vae")  # of a run of train_vq.py and of a pipeline
AutoencoderModel: TypeAlias = VQModel | AutoencoderKL | AutoencoderTiny
KINDS = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
ONE_AT_A_TIME = threading.RLock()
SCALE_TOLERANCE = 0.05  # a scaling_factor further than this from the measured one is replaced


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 on a GPU without rounding to TF32, PyTorch's default for convolutions: that would change one code in a hundred,
    and four in a hundred in the search for them."""
    with ONE_AT_A_TIME:  # the switches are global, and some batches are encoded in a thread
        search = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = search


def fingerprint(model: Any) -> str:
    """Hash of the weights of a diffusers model and of its config without the scale of latents."""
    config = {k: v for k, v in model.config.items() if not k.startswith("_") and k != "scaling_factor"}
    digest = hashlib.sha256(json.dumps([type(model).__name__, config], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass
class FirstStage:
    """A diffusers autoencoder, frozen, with one interface for the three kinds.

    Latents are in the autoencoder's own units in `encode` and `decode`; diffusion works on them times `scaling_factor`.
    """

    model: AutoencoderModel

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        config = self.model.config
        return config.get("vq_embed_dim") or config.latent_channels  # a VQModel may map them to narrower codes

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.model.config.in_channels

    @property
    def downscale(self) -> int:
        """The factor f between the sides of an image and of its latents."""
        config = self.model.config
        widths = config.encoder_block_out_channels if isinstance(self.model, AutoencoderTiny) else config.block_out_channels
        return 2 ** (len(widths) - 1)

    @property
    def scaling_factor(self) -> float:
        """Latents times this have unit variance; what LDMPipeline divides by before it decodes."""
        return self.model.config.scaling_factor

    @scaling_factor.setter
    def scaling_factor(self, value: float) -> None:
        self.model.register_to_config(scaling_factor=value)

    @torch.no_grad()
    @without_tf32()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, C, H/f, W/f): a VQModel's before quantisation, a KL's mean."""
        encoded = self.model.encode(images)
        return encoded.latent_dist.mode() if isinstance(self.model, AutoencoderKL) else encoded.latents

    @torch.no_grad()
    @without_tf32()
    def codes(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) of a VQModel -> indices (B, h, w) of the codes that its decoder uses for them."""
        return torch.stack([self._nearest(image.permute(1, 2, 0)) for image in latents])  # all at once would need much memory

    def _nearest(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cdist(latents.flatten(0, -2), self.model.quantize.embedding.weight).argmin(1).view(latents.shape[:-1])

    @torch.no_grad()
    @without_tf32()
    def to_half(self, latents: torch.Tensor) -> torch.Tensor:
        """float32 latents (B, C, h, w) -> float16 ones with the same codes, so of the same image.

        Rounding moves about one latent in a hundred across the border between two codes. Such a latent is moved back
        towards its own code, as little as necessary. On the line to a code, that code stays the nearest one."""
        half = latents.half()
        if not isinstance(self.model, VQModel):
            return half
        right = self.codes(latents)
        wrong = self.codes(half.float()) != right
        exact, own = latents.permute(0, 2, 3, 1)[wrong], self.model.quantize.embedding(right[wrong])
        moved = exact.half()
        for share in (2**-10, 2**-8, 2**-6, 2**-4, 2**-2, 1):
            left = self._nearest(moved.float()) != right[wrong]
            moved[left] = exact[left].lerp(own[left], share).half()
        half.permute(0, 2, 3, 1)[wrong] = moved
        return half

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) -> images (B, 3, f h, f w), about in [-1, 1]; a VQModel quantises first."""
        return self.model.decode(latents).sample

    def fingerprint(self) -> str:
        """See the function: the same first stage gives the same latents."""
        return fingerprint(self.model)

    def check_resolution(self, resolution: int) -> int:
        """Side of the latents of images of this side.

        Raises:
            UserError: if the factor does not divide it.
        """
        if resolution % self.downscale:
            raise UserError(
                f"data.resolution {resolution} is not a multiple of the first stage's factor {self.downscale}; "
                f"the nearest is {max(1, round(resolution / self.downscale)) * self.downscale}"
            )
        return resolution // self.downscale

    def choose_scale(self, measured: float) -> str | None:
        """Keep the scaling_factor of the config if it gives these latents a variance of about 1, else use the measured one.

        Args:
            measured: 1 / standard deviation of the latents of the data.

        Returns:
            A message about the change; None if there is no change.
        """
        carried = self.scaling_factor
        if abs(carried / measured - 1) <= SCALE_TOLERANCE:
            return None
        self.scaling_factor = measured
        default = isinstance(self.model, VQModel) and carried == 0.18215
        why = " (VQModel's default, which is Stable Diffusion's and wrong for a VQ-f4)" if default else ""
        return f"the first stage has scaling_factor {carried:g}{why}; measured on the data: {measured:.4f}, which is used"


def load_first_stage(config: FirstStageConfig) -> FirstStage:
    """Load a run of train_vq.py, a folder or a Hub id.

    Raises:
        UserError: if it is missing, or is not an autoencoder that this project can use.
    """
    path, subfolder = config.path, config.subfolder
    if path is None:
        raise UserError("first_stage.path is null: give a run of train_vq.py, a folder, or a Hub id")
    local = Path(path).expanduser()
    if local.is_dir():
        if subfolder is None and not (local / "config.json").exists():
            subfolder = next((name for name in SUBFOLDERS if (local / name / "config.json").exists()), None)
        folder = local / subfolder if subfolder else local
        if not (folder / "config.json").exists():
            raise UserError(f"first_stage.path {folder} is not a model folder: it has no config.json")
        with boundary(f"first_stage.path {path} is damaged or incomplete"):
            return _load(str(local), subfolder, None)
    if local.exists() or not may_be_hub_id(path):
        recipe = first_stage_recipe(path)
        train = f"python train_vq.py --config configs/{recipe.name if recipe else f'RECIPE-vq.yaml --output_dir {path}'}"
        raise UserError(f"first_stage.path {path} is not a folder; train it first: {train}")
    with boundary(f"first_stage.path {path} cannot be loaded", "check the name and the network"), from_hub(path):
        return _load(path, subfolder or _subfolder_on_hub(path, config.revision), config.revision)


def _load(path: str, subfolder: str | None, revision: str | None) -> FirstStage:
    loaded = VQModel.load_config(path, subfolder=subfolder, revision=revision)
    kind = KINDS.get(loaded.get("_class_name"))
    if kind is None:
        raise UserError(f"first_stage.path {path} holds a {loaded.get('_class_name')}; it must be one of {', '.join(KINDS)}")
    model, info = kind.from_pretrained(path, subfolder=subfolder, revision=revision, output_loading_info=True)
    if missing := info["missing_keys"]:  # diffusers would use random ones
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} for one")
    check_autoencoder(model)
    return FirstStage(model.eval().requires_grad_(False))


def check_autoencoder(model: AutoencoderModel) -> None:
    """Raise ValueError for weights that are not finite, or a scaling_factor that is not a finite number above 0."""
    check_finite(model.state_dict())
    factor = model.config.scaling_factor
    if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise ValueError(f"its scaling_factor is {factor}; it must be a number above 0")


def _subfolder_on_hub(repo_id: str, revision: str | None) -> str | None:
    for name in (None, *SUBFOLDERS):
        try:
            VQModel.load_config(repo_id, subfolder=name, revision=revision)
            return name
        except OSError as error:
            if not isinstance(error.__context__, EntryNotFoundError):
                raise
    return None
