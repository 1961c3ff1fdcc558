"""The one loop: batch -> losses -> backward -> step -> average; now and then log, evaluate, draw, save.

What differs between trainings is a `Task` (task.py). What a checkpoint holds is a `State` (state.py). The learning rate and the
length of a training are functions of images seen (learning_rate.py).
"""

import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import nn

from tinyldm import pictures
from tinyldm.config.schema import Training
from tinyldm.data.batch import Batch
from tinyldm.errors import Stopped, UserError
from tinyldm.files import open_to_others, replace_text
from tinyldm.metrics.while_training import Quality, memorises
from tinyldm.randomness import Draw, derive_seed
from tinyldm.training import announce, checkpoint, hub, model_card
from tinyldm.training.accelerator import StopRequest, hardware, make_accelerator, rank_of
from tinyldm.training.failures import last_checkpoint, may_fail, one_line_shortages
from tinyldm.training.learning_rate import Progress
from tinyldm.training.power_ema import PowerAverages
from tinyldm.training.run_folder import RunFolder
from tinyldm.training.state import State
from tinyldm.training.task import Task


def run_training(config: Training, make_task: Callable[[Any, Accelerator], Task]) -> "Trainer":
    """What the training scripts do once they have read their config: put the parts together, train, publish."""
    accelerator = make_accelerator(config.train, config.output_dir)
    with ExitStack() as stack:
        run = None
        if accelerator.is_main_process:
            if config.hub.push:
                hub.check_token(config.hub)
            run = RunFolder(config)
            stack.callback(run.release)  # here, since an exception's traceback would keep it in a notebook
        stack.enter_context(one_line_shortages(Path(config.output_dir)))
        trainer = Trainer(make_task(config, accelerator), config, accelerator, run)
        trainer.fit()
    return trainer


class Trainer:
    """Holds what the loop needs; `fit` runs it.

    Args:
        run: the run folder; None on all ranks but the first.
    """

    def __init__(self, task: Task, config: Training, accelerator: Accelerator, run: RunFolder | None):
        self.task, self.config, self.accelerator, self.run = task, config, accelerator, run
        train = config.train
        self.rank = rank_of(accelerator)
        self.images_per_step = train.batch_size * train.gradient_accumulation_steps * self.rank.count
        optimizers = {}
        for name, network in task.networks.items():
            if train.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if train.compile:
                network.compile(mode=None if train.compile is True else train.compile)
            optimizer = torch.optim.AdamW(
                [weight for weight in network.parameters() if weight.requires_grad],
                lr=task.learning_rates[name],
                betas=(train.adam_beta1, train.adam_beta2),
                weight_decay=train.adam_weight_decay,
                fused=True,
            )
            task.networks[name], optimizers[name] = accelerator.prepare(network, optimizer)
        weights = list(task.networks[next(iter(task.networks))].parameters())
        ema = EMAModel(weights, decay=train.ema_decay, foreach=True)
        ema.to(accelerator.device)
        averages = PowerAverages(weights) if train.ema_snapshot_steps else None
        self.state = State(config, task, accelerator, optimizers, ema, averages)
        self.quality = Quality(config, accelerator) if train.metrics_steps else None
        self.drops = any(isinstance(part, nn.Dropout) and part.p for net in task.networks.values() for part in net.modules())
        with self.averaged_weights():
            task.rehearse()
        accelerator.wait_for_everyone()  # all inputs of all ranks are open: an old run can go
        if run:
            run.start()
        accelerator.init_trackers("tinyldm")
        if run:
            run.manifest.own_all((run.path / "logs").rglob("events.out.tfevents.*"))
        self.pusher = hub.BackgroundPush(run.path, config.hub) if run and config.hub.push else None
        self._resume()
        self._describe_data()
        state = self.state
        self.progress = Progress.plan(train, self.images_per_step, task.examples_per_epoch, state.step, state.images)
        self.max_steps = task.max_steps = state.step + self.progress.steps_left(state.images)
        self.expected = False  # whether the time to go was told

    def _resume(self) -> None:
        if not self.config.resume:
            return
        folder = checkpoint.find(Path(self.config.output_dir), self.config.resume)
        if folder:
            self.state.load(folder, self.images_per_step)
        if not self.run:
            return
        self.run.rewind(self.state.step)
        if folder:
            checkpoint.forget_after(self.run.path, self.state.step)
            print(f"resuming from {folder}", file=sys.stderr)
        else:
            print(f"no checkpoint in {self.run.path} yet: starting at step 0", file=sys.stderr)

    # ------------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train to the last step, evaluating, drawing and saving on the way."""
        state, first = self.state, self.state.step
        batches = self.task.batches(state.images)
        started, seconds_before = time.monotonic(), state.seconds
        with ExitStack() as stack:
            stack.callback(batches.close)
            if self.run:
                print(self._header())
            self.bar = stack.enter_context(announce.progress_bar(state.step, self.max_steps, self.run is not None))
            stop = stack.enter_context(StopRequest(self.accelerator))
            while state.step < self.max_steps:
                self._step(self._take(batches))
                state.seconds = seconds_before + time.monotonic() - started
                speed = (state.step - first) * self.images_per_step / (state.seconds - seconds_before)
                self._now_and_then(speed, stop())
        if state.step == first:  # it was killed after its last checkpoint, and perhaps before its export
            self._export()
            if self.run:
                print(f"all {self.max_steps} steps are done; raise train.max_steps to train longer", file=sys.stderr)
        with self._may_fail(f"train.log_with {self.config.train.log_with}"):
            self.accelerator.end_training()
        if self.pusher:
            print(f"pushed to {self.pusher.finish(f'Step {state.step}, the last')}")
        if self.run:
            print(announce.closing(self.config, state.step, state.seconds, self.run.rows))

    def _header(self) -> str:
        parameters = count_parameters(self.accelerator.unwrap_model(self.task.networks[self.state.main]))
        device = hardware(self.accelerator.device, self.rank.count)
        plan = self.state.step, self.max_steps, self.images_per_step, self.task.examples_per_epoch
        return announce.header(self.config, parameters, device, *plan)

    def _take(self, batches: Generator[Batch, None, None]) -> list[Batch]:
        """The micro-batches of a step, all before it begins: where the data end, the last step is whole and can be saved."""
        try:
            return list(itertools.islice(batches, self.config.train.gradient_accumulation_steps))
        except UserError as error:
            if self.rank.count > 1 or not self.state.step:  # other ranks wait in the middle of a step; nothing to save
                raise
            self._checkpoint()
            self._export()
            raise UserError(f"{error} (step {self.state.step} is saved: continue with --resume latest)") from error

    def _step(self, micro_batches: list[Batch]) -> None:
        """One optimizer step of each network."""
        state, task, accelerator = self.state, self.task, self.accelerator
        factor = self.progress.learning_rate(state.images)
        for micro, batch in enumerate(micro_batches):
            draw = Draw(self.config.seed, state.step, micro, self.rank, accelerator.device)
            if self.drops:  # from the global generators
                torch.manual_seed(derive_seed("dropout", self.config.seed, state.step, micro, self.rank.index))
            batch = batch.to(accelerator.device, non_blocking=True)
            with self._sync_gradients(micro == len(micro_batches) - 1):
                for _, loss, numbers in task.losses(batch, state.step, draw):
                    accelerator.backward(loss / len(micro_batches))
                    for key, value in numbers.items():
                        state.logged.setdefault(key, []).append(value.detach())
        for name, optimizer in state.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = task.learning_rates[name] * factor
            if (limit := self.config.train.max_grad_norm) is not None:
                accelerator.clip_grad_norm_(task.networks[name].parameters(), limit)
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.images += self.images_per_step
        state.average()
        task.after_step(state.step, draw, state.ema)
        self.bar.update()

    def _due(self, interval: int | None) -> bool:
        """Whether something with this interval, in steps, is due. At the last step everything is."""
        return self.state.step == self.max_steps or (interval is not None and self.state.step % interval == 0)

    def _now_and_then(self, speed: float, stopped: Signals | None) -> None:
        """Log, evaluate, measure, draw, save and push, each at its interval. `speed`: images per second in this session.

        Raises:
            Stopped: after saving, when a signal asks for it.
        """
        state, train, due = self.state, self.config.train, self._due
        push_steps = self.config.hub.push_steps if self.config.hub.push else None
        log = any(map(due, (train.logging_steps, train.checkpointing_steps, train.eval_steps, push_steps)))
        if self.run and (log or stopped or due(train.sample_steps) or due(train.ema_snapshot_steps)):
            self.run.check()
        if log:
            self._log(speed)
        figures, last = self._figures(), due(None)  # in this order: the figures may end the training
        if self.run and due(train.ema_snapshot_steps):  # before the checkpoint, so that a resumed run lacks none
            state.save_snapshot(self.run.path)
        save = due(train.checkpointing_steps) or due(push_steps) or (train.patience is not None and state.improves(figures))
        if save and state.improves(figures):
            state.best_figure, state.best_step = figures[train.best_by], state.step
        if save or stopped:
            self._checkpoint()
        # Pictures come after the checkpoint, so that nothing is lost if they fail, and before the card, which shows them.
        if figures and self.run:
            self._draw_curves(self.run)
        if self.run and due(train.sample_steps):
            with self._may_fail("the picture"), self.averaged_weights():
                picture = self.run.manifest.own(self.run.path / "samples" / f"step-{state.step:07d}.png")
                picture.parent.mkdir(exist_ok=True)
                self.task.picture(picture)
        if save or stopped:
            self._export()
        if self.pusher and due(push_steps) and not last:
            with self._may_fail("the push"):
                self.pusher.start(f"Step {state.step}")
        if stopped and not last:
            raise Stopped(f"stopped by {stopped.name}: step {state.step} is saved, continue with --resume latest", stopped)

    def _figures(self) -> dict[str, float]:
        """What is measured at this step, by name; at most steps nothing. It may end the training early."""
        state, train = self.state, self.config.train
        figures: dict[str, float] = {}
        if self._due(train.eval_steps):
            with self._may_fail("the evaluation", all_ranks=True):
                figures |= self._evaluate()
        if self.quality and self._due(train.metrics_steps):
            with self._may_fail("eval_fd", all_ranks=True), self.averaged_weights():
                images = self.task.make_images(train.num_metrics_images)
                figures |= self.quality.figures(self._over_ranks(self.quality.sums(images)))
            if warning := memorises(figures):
                self.bar.write(f"step {state.step}: {warning}", file=sys.stderr)
        if state.out_of_patience(figures) and state.step != self.max_steps:
            state.take_best()
            best = f"{train.best_by} is best at step {state.best_step}, whose weights are exported"
            self.bar.write(f"step {state.step}: {best}", file=sys.stderr)
            self.max_steps = state.step
        if state.step == self.max_steps:
            with self._may_fail("the choice of the guidance scale", all_ranks=True), self.averaged_weights():
                figures |= self.task.finish(self._distance)
        if figures:
            self._check_finite({key: value for key, value in figures.items() if key.startswith("eval_loss")})
            self._report(figures)
        return figures

    def _may_fail(self, what: str, all_ranks: bool = False) -> AbstractContextManager[None]:
        """See may_fail. An error of one of several ranks stops all of them where they would wait for it (`all_ranks`)."""
        return nullcontext() if all_ranks and self.rank.count > 1 else may_fail(what, self.state.step)

    @contextmanager
    def _sync_gradients(self, sync: bool) -> Iterator[None]:
        """Ranks exchange gradients only in the last of the accumulated passes."""
        with ExitStack() as stack:
            if not sync:
                for network in self.task.networks.values():
                    stack.enter_context(self.accelerator.no_sync(network))
            yield

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The main network with its EMA weights and in eval mode, for evaluation, pictures and export."""
        return averaged(self.task.networks[self.state.main], self.state.ema)

    # -------------------------------------------------------------------------------------------------------- figures

    def _log(self, speed: float) -> None:
        state = self.state
        means = torch.stack([torch.stack(values).float().mean() for values in state.logged.values()])
        values = dict(zip(state.logged, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        state.logged = {}
        self._check_finite(values)
        self.bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed:.1f} images/s")
        if self.run:
            if not self.expected and (left := self.max_steps - state.step):
                self.bar.write(announce.expectation(left * self.images_per_step, speed), file=sys.stderr)
            self.expected = True
            rate = self.task.learning_rates[state.main] * self.progress.learning_rate(state.images)
            with self._may_fail("metrics.csv"):
                self.run.log(step=state.step, images=state.images, learning_rate=rate, **values)
        self._track({**values, "images_per_second": speed})

    def _check_finite(self, values: dict[str, float]) -> None:
        """Raise UserError, before anything is saved, for a loss or figure that is not finite."""
        if bad := [key for key, value in values.items() if not math.isfinite(value)]:
            run, best = Path(self.config.output_dir), self.state.best_step
            good = last_checkpoint(run)
            if best in checkpoint.steps(run):
                good += f", the best by {self.config.train.best_by} step-{best}"
            raise UserError(
                f"{bad[-1]} is {values[bad[-1]]} at step {self.state.step}: {good}; lower train.learning_rate or set "
                "train.mixed_precision to no, and continue with --resume latest"
            )

    def _evaluate(self) -> dict[str, float]:
        with self.averaged_weights(), torch.no_grad():
            sums = self.task.evaluate()
        return self.task.summarize(self._over_ranks(sums))

    def _distance(self, batches: Iterator[torch.Tensor]) -> float:
        """The Frechet distance between the images of all ranks and the held-out images."""
        self.quality = self.quality or Quality(self.config, self.accelerator)
        return self.quality.distance(self._over_ranks(self.quality.sums(batches)))

    def _over_ranks(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: self.accelerator.reduce(value, "sum") for key, value in sums.items()}

    def _report(self, figures: dict[str, float]) -> None:
        if self.run:
            with self._may_fail("metrics.csv"):
                self.run.log(step=self.state.step, **figures)
            listed = ", ".join(f"{key.removeprefix('eval_')} {value:.4g}" for key, value in figures.items())
            self.bar.write(f"step {self.state.step}: held-out {listed}", file=sys.stderr)
        self._track(figures)

    def _draw_curves(self, run: RunFolder) -> None:
        with self._may_fail("loss.png"):
            pictures.curves(run.rows, run.manifest.own(run.path / "loss.png"))

    def _track(self, values: dict[str, float]) -> None:
        with self._may_fail(f"train.log_with {self.config.train.log_with}"):
            self.accelerator.log(values, step=self.state.step)

    # --------------------------------------------------------------------------------------------------------- saving

    def _describe_data(self) -> None:
        """Write data.json; what is known later than the start is filled in at each save."""
        data = self.task.data
        data.train = self.task.train_images if data.train is None else data.train
        data.ignore("unreadable", gather_object(self.task.unreadable))
        if self.run:
            replace_text(self.run.manifest.own(self.run.path / "data.json"), json.dumps(data.to_json(), indent=1))

    def _checkpoint(self) -> None:
        self._describe_data()
        self.state.save(Path(self.config.output_dir), self.images_per_step)

    def _export(self) -> None:
        with self.averaged_weights():
            if self.run:
                aside = self.run.path / ".exporting"
                shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
                self.task.export(aside)
                open_to_others(aside)
                self.run.replace_model(aside)
                with self._may_fail("README.md"):
                    model_card.write(self.run.path, self.task.card, self._facts(), self.run.rows, self.config)
        self.accelerator.wait_for_everyone()

    def _facts(self) -> dict[str, Any]:
        state = self.state
        return {
            "steps": state.step,
            "images": state.images,
            "images_per_step": self.images_per_step,
            "seconds": state.seconds,
            "images_per_second": state.images / state.seconds,
            "torch_version": torch.__version__,
            "hardware": hardware(self.accelerator.device, self.rank.count),
            "best_step": state.best_step,
            "parameters": count_parameters(self.accelerator.unwrap_model(self.task.networks[state.main])),
            "train_images": self.task.train_images,
            "corrupt": len(self.task.data.unreadable),
            **self.task.facts(),
        }


@contextmanager
def averaged(network: nn.Module, ema: EMAModel) -> Iterator[None]:
    """A network with its averaged weights and in eval mode. It is not compiled, which would take minutes for each new shape."""
    weights = list(network.parameters())
    ema.store(weights)
    ema.copy_to(weights)
    network.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.train()
        ema.restore(weights)


def count_parameters(network: nn.Module) -> int:
    """Number of trained values."""
    return sum(weight.numel() for weight in network.parameters())
