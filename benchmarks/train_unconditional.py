"""The loop of diffusers' examples/unconditional_image_generation/train_unconditional.py, rewritten without its options.
benchmarks.training compares with it. With a first stage it encodes each batch, like the usual latent examples.

From the example: memory-mapped `datasets`, torchvision's transforms in the loader, epsilon prediction with the plain squared
error, AdamW's betas, decay and epsilon, cosine schedule with warm-up, gradient clipping, EMAModel with its warm-up. From this
project, so that only the loops differ: the network, the batch size, the peak learning rate, the noise schedule, and the bicubic
resizing of the held-out images, so that training and evaluation use the same pixels.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import datasets
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.measure import clock
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.training.trainer import averaged


def example_batches(
    data: datasets.Dataset, side: int, batch_size: int, flip: bool, interpolation: v2.InterpolationMode
) -> Iterator[torch.Tensor]:
    """The example's loader (its default: no workers): float32 (B, 3, side, side) in [-1, 1], shuffled, endless."""
    augmentations = v2.Compose(
        [
            v2.Resize(side, interpolation=interpolation),
            v2.CenterCrop(side),
            v2.RandomHorizontalFlip() if flip else v2.Identity(),
            v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
            v2.Normalize([0.5], [0.5]),
        ]
    )
    data = data.with_transform(lambda rows: {"input": [augmentations(image.convert("RGB")) for image in rows["image"]]})
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=0)
    while True:
        for batch in loader:
            yield batch["input"]


@dataclass
class Example:
    """A training with `steps` steps.

    Attributes:
        first_stage: encodes each batch; None in pixel space.
        seconds: the time of each step.
    """

    data: datasets.Dataset
    unet: UNet2DModel
    scheduler: DDPMScheduler
    steps: int
    batch_size: int
    learning_rate: float
    side: int
    flip: bool
    first_stage: FirstStage | None = None
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self):
        betas = (0.95, 0.999)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=self.learning_rate, betas=betas, weight_decay=1e-6, eps=1e-8
        )
        self.course = get_cosine_schedule_with_warmup(self.optimizer, self.steps // 20, self.steps)
        self.ema = EMAModel(
            self.unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4,
            model_cls=UNet2DModel, model_config=self.unet.config,
        )  # fmt: skip

    def train(self) -> Iterator[int]:
        """Train; yields the number of steps after each one."""
        bicubic = v2.InterpolationMode.BICUBIC
        batches, now = example_batches(self.data, self.side, self.batch_size, self.flip, bicubic), clock()
        for step in range(1, self.steps + 1):
            started = now()
            clean = next(batches).to(self.unet.device)
            if self.first_stage is not None:
                clean = self.first_stage.encode(clean) * self.first_stage.scaling_factor
            noise = torch.randn(clean.shape, device=clean.device)
            timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
            predicted = self.unet(self.scheduler.add_noise(clean, noise, timesteps), timesteps).sample
            F.mse_loss(predicted.float(), noise.float()).backward()
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.course.step()
            self.optimizer.zero_grad()
            self.ema.step(self.unet.parameters())
            self.seconds.append(now() - started)
            yield step

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The network with its averaged weights, in eval mode."""
        return averaged(self.unet, self.ema)
