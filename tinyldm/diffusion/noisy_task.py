"""What the trainings of denoisers and classifiers have in common: a process, x_0, and fixed held-out noise."""

from collections.abc import Generator, Iterator

import torch
from accelerate import Accelerator

from tinyldm.config.schema import DiffusionTraining, TrainClassifier
from tinyldm.data.batch import Batch
from tinyldm.diffusion.training_data import TrainingData
from tinyldm.models.conditioning import clean
from tinyldm.process.processes import make_process
from tinyldm.randomness import derive_seed
from tinyldm.training import checkpoint
from tinyldm.training.accelerator import rank_of
from tinyldm.training.task import Task


class NoisyTask(Task):
    """See training.task.Task. A network is trained on x_t.

    Attributes:
        opened: gives x_0.
        held_out, held_out_noise, held_out_times: the same at each evaluation, so that its losses can be compared.
    """

    def __init__(self, config: DiffusionTraining | TrainClassifier, accelerator: Accelerator, opened: TrainingData):
        self.accelerator, self.rank, self.opened = accelerator, rank_of(accelerator), opened
        self.batch_size = config.train.batch_size
        self.data, self.readers, self.kept, self.built_on = opened.description, opened.readers, opened.kept, opened.built_on
        self.examples_per_epoch, self.held_out = opened.length, opened.held_out
        self.process = make_process(config.process, config.scheduler, **self._measured(config))
        if self.process.kind != "vp" and accelerator.is_main_process:
            print(f"process: {self.process.describe()}; the section scheduler, which is for vp, is not used")
        fixed = torch.Generator().manual_seed(derive_seed("held out", config.seed))
        count = len(self.held_out.x)
        self.held_out_noise = torch.randn(self.held_out.x.shape, generator=fixed)
        self.held_out_times = self.process.times((torch.randperm(count, generator=fixed) + 0.5) / count)

    def _measured(self, config: DiffusionTraining | TrainClassifier) -> dict[str, float]:
        """The settings of the process that follow from the data. A resumed run keeps them."""
        measured = {"sigma_data": 0.5 if self.opened.first_stage is None else 1.0}
        if config.process.kind != "ve" or config.process.sigma_max:
            return measured
        x = self.held_out.x.flatten(1)
        self.kept = {**self.kept, "sigma_max": checkpoint.kept(config).get("sigma_max") or float(torch.cdist(x, x).max())}
        return {**measured, "sigma_max": self.kept["sigma_max"]}

    @property
    def train_images(self) -> int | None:
        """See Task.train_images."""
        return self.opened.count()

    def batches(self, position: int) -> Generator[Batch, None, None]:
        """See Task.batches."""
        return self.opened.stream(position)

    def my_held_out(self) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
        """This rank's share of (x_0 with its condition, noise, times), in batches on the device.

        Low-resolution images are without noise: the loss is that of the best case.
        """
        device = self.accelerator.device
        mine = torch.arange(len(self.held_out.x))[self.rank.index :: self.rank.count]
        for rows in mine.split(self.batch_size) if len(mine) else ():
            x0, condition = self.held_out.take(rows).to(device)
            yield Batch(x0, clean(condition)), self.held_out_noise[rows].to(device), self.held_out_times[rows].to(device)
