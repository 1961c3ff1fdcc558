"""The one loop: batch -> losses -> backward -> step -> average -> now and then log, evaluate, draw, save.

What differs between trainings is a `Task`, handed in. See VQTask (vq_task.py), LatentTask (latent_task.py) and PixelTask
(pixel_task.py).
"""

import itertools
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from tinyldm import pictures
from tinyldm.config.schema import Training
from tinyldm.errors import Stopped, UserError
from tinyldm.files import replace_folder
from tinyldm.metrics.while_training import Quality
from tinyldm.randomness import Draw, derive_seed
from tinyldm.training import checkpoint, hub, resuming
from tinyldm.training import model_card as report
from tinyldm.training.accelerator import StopRequest, make_accelerator
from tinyldm.training.run_folder import RunFolder

Losses = Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]


class Task(Protocol):
    """What one training adds to the loop.

    Attributes:
        networks: by name; the first is the one that is averaged, evaluated and shipped. The trainer puts the prepared
            (distributed, mixed-precision) ones back in here.
        learning_rates: the peak for each network.
        examples_per_epoch: images in a pass; None where `max_steps` is given and a stream does not say.
        card: the template in model_cards/ for its report.
        buffers: tensors that a resumed training needs beside the networks; restored in place.
        built_on: what names the frozen parts that the networks are trained over; a run cannot go on over others.
    """

    card: str
    built_on: str
    networks: dict[str, nn.Module]
    learning_rates: dict[str, float]
    examples_per_epoch: int | None
    buffers: dict[str, torch.Tensor]

    def batches(self, start: int) -> Iterator[Any]:
        """Endless micro-batches (tensors, or tuples of them) of this process from number `start` on."""

    def losses(self, batch: Any, step: int, draw: Draw) -> Losses:
        """(network's name, its loss, numbers to log), one for each network that learns in this step; the trainer calls
        backward on each before it asks for the next."""

    def after_step(self, step: int, draw: Draw, ema: EMAModel) -> None:
        """Called after the optimizers' step."""

    def evaluate(self, process: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Sums over this process's share of the held-out images (and their `count`), reduced by `summarize`."""

    def summarize(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Held-out figures from the sums of all processes, `eval_loss` among them."""

    def picture(self, path: Path) -> None:
        """Draw what the network does now, without touching the training's random numbers."""

    def make_images(self, count: int, process: tuple[int, int]) -> Iterator[torch.Tensor]:
        """This process's share of `count` images, always of the same seeds, in uint8 batches (B, 3, H, W)."""

    def export(self, folder: Path) -> None:
        """Write the model that a user loads, from the current weights, as one folder in `folder`."""

    def facts(self) -> dict[str, Any]:
        """What its template names beyond what the trainer knows."""


def run_training(config: Training, make_task: Callable[[Any, Accelerator], Task]) -> "Trainer":
    """What the training scripts do once they have read their config: put the parts together, train, publish."""
    accelerator = make_accelerator(config.train, config.output_dir)
    with ExitStack() as stack:
        run = None
        if accelerator.is_main_process:
            if config.hub.push:
                hub.check_token(config.hub)
            run = RunFolder(config)
            stack.callback(run.lock.release)  # said, since an exception's traceback would keep it in a notebook
        trainer = Trainer(make_task(config, accelerator), config, accelerator, run)
        trainer.fit()
    return trainer


class Trainer:
    """Holds what the loop needs; `fit` runs it."""

    def __init__(self, task: Task, config: Training, accelerator: Accelerator, run: RunFolder | None):
        self.task, self.config, self.accelerator, self.run = task, config, accelerator, run
        train = config.train
        self.process = (accelerator.process_index, accelerator.num_processes)
        self.images_per_step = train.batch_size * train.gradient_accumulation_steps * accelerator.num_processes
        self.max_steps = self._max_steps()
        self.main = next(iter(task.networks))

        self.optimizers, self.schedules = {}, {}
        for name, network in task.networks.items():
            if train.channels_last:
                network.to(memory_format=torch.channels_last)
            if train.compile:
                network.compile()
            optimizer = torch.optim.AdamW(
                [weight for weight in network.parameters() if weight.requires_grad],
                lr=task.learning_rates[name],
                betas=(train.adam_beta1, train.adam_beta2),
                weight_decay=train.adam_weight_decay,
                fused=True,
            )
            # The schedule works on the bare optimizer and counts our steps: a prepared one would count processes too.
            self.schedules[name] = get_scheduler(
                train.lr_scheduler,
                optimizer,
                step_rules=train.lr_step_rules,
                num_warmup_steps=train.lr_warmup_steps,
                num_training_steps=self.max_steps,
            )
            task.networks[name], self.optimizers[name] = accelerator.prepare(network, optimizer)
        self.ema = EMAModel(self._weights(), decay=train.ema_decay, foreach=True)
        self.ema.to(accelerator.device)
        accelerator.init_trackers("tinyldm")
        self.quality = Quality(config, accelerator) if train.metrics_steps else None
        self.step, self.images, self.seconds, self.best = 0, 0, 0.0, (math.inf, None)
        # Since the last row of metrics.csv; on the device, so that no step waits for a number to arrive.
        self.logged: dict[str, list[torch.Tensor]] = {}
        self.pusher = hub.BackgroundPush(run.path, config.hub) if run and config.hub.push else None
        if config.resume and (folder := checkpoint.find(Path(config.output_dir), config.resume)):
            resuming.resume(self, folder)
        elif config.resume and run:
            run.rewind(0)
            print(f"no checkpoint in {run.path} yet: starting at step 0", file=sys.stderr)

    def _max_steps(self) -> int:
        train = self.config.train
        if train.max_steps is not None:
            return train.max_steps
        return max(1, round(train.num_epochs * self.task.examples_per_epoch / self.images_per_step))

    def _weights(self) -> list[nn.Parameter]:
        return list(self.task.networks[self.main].parameters())

    def weight_names(self) -> list[str]:
        """Names of the averaged weights, in the order of `ema.shadow_params`."""
        return [name for name, _ in self.accelerator.unwrap_model(self.task.networks[self.main]).named_parameters()]

    # ------------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train to the last step, evaluating, drawing and saving on the way."""
        train, accelerator = self.config.train, self.accelerator
        accumulation = train.gradient_accumulation_steps
        batches = self.task.batches(self.step * accumulation)
        started, resumed_at, seconds_before = time.monotonic(), self.step, self.seconds
        bar = tqdm(
            total=self.max_steps,
            initial=self.step,
            unit="step",
            desc="training",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        with ExitStack() as stack:
            stack.callback(bar.close)
            stack.callback(batches.close)
            stop = stack.enter_context(StopRequest(accelerator))
            while self.step < self.max_steps:
                for micro, batch in enumerate(self._take(batches, accumulation)):
                    draw = Draw(self.config.seed, self.step, micro, self.process, accelerator.device)
                    # Dropout draws from the global generators.
                    torch.manual_seed(derive_seed("dropout", self.config.seed, self.step, micro, self.process[0]))
                    batch = send_to_device(batch, accelerator.device, non_blocking=True)
                    with self._sync_gradients(micro == accumulation - 1):
                        for _, loss, numbers in self.task.losses(batch, self.step, draw):
                            accelerator.backward(loss / accumulation)
                            for key, value in numbers.items():
                                self.logged.setdefault(key, []).append(value.detach())
                for name, optimizer in self.optimizers.items():
                    if train.max_grad_norm is not None:
                        accelerator.clip_grad_norm_(self.task.networks[name].parameters(), train.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    self.schedules[name].step()
                self.ema.step(self._weights())
                self.step += 1
                self.images += self.images_per_step
                self.task.after_step(self.step, draw, self.ema)
                bar.update()

                last = self.step == self.max_steps
                evaluate = last or self.step % train.eval_steps == 0
                push = last or (self.config.hub.push_steps and self.step % self.config.hub.push_steps == 0)
                save = push or self.step % train.checkpointing_steps == 0
                self.seconds = seconds_before + time.monotonic() - started
                if evaluate or save or self.step % train.logging_steps == 0:
                    self._log((self.step - resumed_at) * self.images_per_step / (self.seconds - seconds_before), bar)
                figures = self._evaluate() if evaluate else {}
                if self.quality and (last or self.step % train.metrics_steps == 0):
                    figures |= self._measure()
                if figures:
                    self._report(figures, bar)
                if save and figures.get(train.best_by, math.inf) < self.best[0]:
                    self.best = (figures[train.best_by], self.step)
                if last or self.step % train.sample_steps == 0:
                    with self.averaged_weights():
                        if accelerator.is_main_process:
                            self.task.picture(self.run.path / "samples" / f"step-{self.step:07d}.png")
                stopped = stop()
                if save or stopped:
                    self._save()
                if push and self.pusher and not last:
                    self.pusher.start(f"Step {self.step}")
                if stopped and not last:
                    raise Stopped(
                        f"stopped by {stopped.name}: step {self.step} is saved, continue with --resume latest", stopped
                    )
        if self.step == resumed_at:  # it was killed after its last checkpoint, and perhaps before its export
            self._export()
            if accelerator.is_main_process:
                print(f"all {self.max_steps} steps are done; give a larger train.max_steps to go on", file=sys.stderr)
        accelerator.end_training()
        if self.pusher:
            print(f"pushed to {self.pusher.finish(f'Step {self.step}, the last')}")

    def _take(self, batches: Iterator, count: int) -> list:
        """The micro-batches of a step, all before it begins: where the data end, the last step is whole and can be saved."""
        try:
            return list(itertools.islice(batches, count))
        except UserError as error:
            if self.accelerator.num_processes > 1:  # the others wait for this one in the middle of a step
                raise
            self._save()
            raise UserError(f"{error} (step {self.step} is saved: continue with --resume latest)") from error

    @contextmanager
    def _sync_gradients(self, sync: bool) -> Iterator[None]:
        """Processes exchange gradients only in the last of the accumulated passes."""
        with ExitStack() as stack:
            if not sync:
                for network in self.task.networks.values():
                    stack.enter_context(self.accelerator.no_sync(network))
            yield

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The main network with its EMA weights and in eval mode, for evaluation, pictures and export."""
        return averaged(self.task.networks[self.main], self.ema)

    def _log(self, speed: float, bar: tqdm) -> None:
        means = torch.stack([torch.stack(values).float().mean() for values in self.logged.values()])
        values = dict(zip(self.logged, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        self.logged = {}
        if bad := [key for key, value in values.items() if not math.isfinite(value)]:
            done = checkpoint.steps(Path(self.config.output_dir))
            good = f"the last checkpoint is step-{done[-1]}" if done else "there is no checkpoint yet"
            good += f", the best by {self.config.train.best_by} step-{self.best[1]}" if self.best[1] in done else ""
            raise UserError(
                f"{bad[-1]} is {values[bad[-1]]} at step {self.step}: {good}; lower train.learning_rate or set "
                "train.mixed_precision to no, and continue with --resume latest"
            )
        bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed:.1f} images/s")
        if self.run:
            rate = self.schedules[self.main].get_last_lr()[0]
            self.run.log(step=self.step, images=self.images, learning_rate=rate, **values)
        self.accelerator.log({**values, "images_per_second": speed}, step=self.step)

    def _evaluate(self) -> dict[str, float]:
        with self.averaged_weights(), torch.no_grad():
            sums = self.task.evaluate(self.process)
        return self.task.summarize(self._over_processes(sums))

    def _measure(self) -> dict[str, float]:
        with self.averaged_weights():
            sums = self.quality.sums(self.task.make_images(self.config.train.num_metrics_images, self.process))
        return {"eval_fd": self.quality.distance(self._over_processes(sums))}

    def _over_processes(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: self.accelerator.reduce(value, "sum") for key, value in sums.items()}

    def _report(self, figures: dict[str, float], bar: tqdm) -> None:
        if self.run:
            self.run.log(step=self.step, **figures)
            pictures.curves(self.run.rows, self.run.path / "loss.png")
            told = ", ".join(f"{key.removeprefix('eval_')} {value:.4g}" for key, value in figures.items())
            bar.write(f"step {self.step}: held-out {told}", file=sys.stderr)
        self.accelerator.log(figures, step=self.step)

    # -------------------------------------------------------------------------------------------------------- saving

    def _save(self) -> None:
        logged = {key: self.accelerator.reduce(torch.stack(values).float(), "mean") for key, values in self.logged.items()}
        if self.accelerator.is_main_process:
            checkpoint.save(self.run.path, self.step, *resuming.snapshot(self, logged))
            checkpoint.prune(self.run.path, self.config.train.checkpoints_total_limit, self.best[1])
        self._export()

    def _export(self) -> None:
        with self.averaged_weights():
            if self.accelerator.is_main_process:
                aside = self.run.path / ".exporting"
                shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
                self.task.export(aside)
                for part in aside.iterdir():
                    replace_folder(part, self.run.path / part.name)
                aside.rmdir()
                report.write(self.run.path, self.task.card, self._facts(), self.run.rows, self.config)
        self.accelerator.wait_for_everyone()

    def _facts(self) -> dict[str, Any]:
        return {
            "steps": self.step,
            "images": self.images,
            "images_per_step": self.images_per_step,
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
            "hardware": report.hardware(self.accelerator.device, self.accelerator.num_processes),
            "best_step": self.best[1],
            "parameters": count_parameters(self.accelerator.unwrap_model(self.task.networks[self.main])),
            **self.task.facts(),
        }


@contextmanager
def averaged(network: nn.Module, ema: EMAModel) -> Iterator[None]:
    """A network with its averaged weights and in eval mode."""
    weights = list(network.parameters())
    ema.store(weights)
    ema.copy_to(weights)
    network.eval()
    try:
        yield
    finally:
        network.train()
        ema.restore(weights)


def count_parameters(network: nn.Module) -> int:
    """Number of trained values."""
    return sum(weight.numel() for weight in network.parameters())
