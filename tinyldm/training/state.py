"""Where a training is: what a checkpoint holds, and how a training continues from one."""

import math
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel

from tinyldm.config import parsing
from tinyldm.config.schema import Training
from tinyldm.data.description import compare
from tinyldm.errors import UserError, boundary
from tinyldm.training import checkpoint
from tinyldm.training.power_ema import PowerAverages
from tinyldm.training.task import Task

NOT_COMPARED = ("resume", "overwrite", "output_dir")  # keys of the config that say nothing about the training itself
MODEL_SECTIONS = ("unet", "vq", "process", "scheduler")


@dataclass
class State:
    """All that changes while a training runs.

    Attributes:
        step: optimizer steps taken.
        images: images that all ranks have seen: the position in the data, and what the learning rate is a function of.
        averages: None without `train.ema_snapshot_steps`.
        seconds: time spent, over all sessions.
        best_figure, best_step: the best checkpoint by `train.best_by`.
        waited: measurements since then.
        logged: numbers since the last row of metrics.csv; on the device, so that no step waits for one to arrive.
    """

    config: Training
    task: Task
    accelerator: Accelerator
    optimizers: dict[str, AcceleratedOptimizer]
    ema: EMAModel
    averages: PowerAverages | None
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best_figure: float = math.inf
    best_step: int | None = None
    waited: int = 0
    logged: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The name of the network that is averaged, evaluated and exported."""
        return next(iter(self.task.networks))

    @cached_property
    def weights(self) -> list[torch.nn.Parameter]:
        """The weights of the main network, in the order of `ema.shadow_params`. Listing them takes a millisecond."""
        return list(self.task.networks[self.main].parameters())

    def average(self) -> None:
        """Add the weights of this step to the averages."""
        self.ema.step(self.weights)
        if self.averages:
            self.averages.update(self.weights, self.step)

    def save_snapshot(self, run: Path) -> None:
        """Write a snapshot of the power-function averages, if they are kept."""
        if self.averages:
            self.averages.save_snapshot(run, self.step, self._weight_names())

    def _weight_names(self) -> list[str]:
        return [name for name, _ in self.accelerator.unwrap_model(self.task.networks[self.main]).named_parameters()]

    # ------------------------------------------------------------------------------------------------------ patience

    def improves(self, figures: dict[str, float]) -> bool:
        """Whether the figure of `train.best_by` is better than that of the best checkpoint."""
        return figures.get(self.config.train.best_by, math.inf) < self.best_figure

    def out_of_patience(self, figures: dict[str, float]) -> bool:
        """Whether `train.patience` measurements have not been better than the best checkpoint, with these new figures."""
        train = self.config.train
        if train.patience is None or train.best_by not in figures:
            return False
        self.waited = 0 if self.improves(figures) else self.waited + 1
        return self.waited >= train.patience and self.best_step is not None

    def take_best(self) -> None:
        """Take over the averaged weights of the best checkpoint."""
        run = Path(self.config.output_dir)
        self.accelerator.wait_for_everyone()  # until the main rank has written it
        best = checkpoint.load(run / "checkpoints" / f"step-{self.best_step}")[0]["ema"]
        for shadow, name in zip(self.ema.shadow_params, self._weight_names(), strict=True):
            shadow.copy_(best[name])

    # ------------------------------------------------------------------------------------------------------ saving

    def save(self, run: Path, images_per_step: int) -> None:
        """Write a checkpoint; every rank calls this, the main one writes."""
        logged = {key: self.accelerator.reduce(torch.stack(values).float(), "mean") for key, values in self.logged.items()}
        if not self.accelerator.is_main_process:
            return
        unwrap = self.accelerator.unwrap_model
        networks = {name: unwrap(network).state_dict() for name, network in self.task.networks.items()}
        networks["ema"] = dict(zip(self._weight_names(), self.ema.shadow_params, strict=True))
        networks |= self.averages.named(self._weight_names()) if self.averages else {}
        optimizers: dict[str, Any] = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        if self.accelerator.scaler is not None:
            optimizers["scaler"] = self.accelerator.scaler.state_dict()
        optimizers["buffers"] = self.task.buffers
        optimizers["logged"] = logged  # for a run that is stopped between two rows of metrics.csv
        facts = {
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "images_per_step": images_per_step,
            "built_on": self.task.built_on,
            "kept": self.task.kept,
            "data": self.task.data.to_json(),
            "best_figure": self.best_figure,
            "best_step": self.best_step,
            "waited": self.waited,
            "examples_per_epoch": self.task.examples_per_epoch,
            "config": parsing.to_dict(self.config),
        }
        checkpoint.save(run, self.step, networks, optimizers, facts)
        checkpoint.prune(run, self.config.train.checkpoints_total_limit, self.best_step)

    # ------------------------------------------------------------------------------------------------------ resuming

    def load(self, folder: Path, images_per_step: int) -> None:
        """Continue from a checkpoint: the next step is the one that would have come.

        Raises:
            UserError: for a checkpoint of another model or first stage, or with parts missing.
        """
        networks, optimizers, facts = checkpoint.load(folder)
        with boundary(f"checkpoint {folder} does not fit this config"):
            whole = all(isinstance(facts[key], int) for key in ("step", "images"))
            sound = whole and all(0 <= facts[key] < 2**53 for key in ("step", "images", "seconds"))
            if not sound or math.isnan(facts["best_figure"]):
                raise ValueError("its state.json has no sound numbers")
            self._compare(folder, facts, images_per_step)
            self._restore(networks, optimizers, facts)

    def _restore(self, networks: dict[str, dict[str, torch.Tensor]], optimizers: dict[str, Any], facts: dict[str, Any]) -> None:
        train = self.config.train
        for name, network in self.task.networks.items():
            self.accelerator.unwrap_model(network).load_state_dict(networks[name])
            self.optimizers[name].load_state_dict(optimizers[name])
            for group in self.optimizers[name].param_groups:  # they may have changed, and the trainer sets the learning rate
                group["betas"], group["weight_decay"] = (train.adam_beta1, train.adam_beta2), train.adam_weight_decay
        for name, values in self.task.buffers.items():
            values.copy_(optimizers["buffers"][name])
        for shadow, name in zip(self.ema.shadow_params, self._weight_names(), strict=True):
            shadow.copy_(networks["ema"][name])
        self.ema.optimization_step = facts["step"]
        if self.averages:
            self.averages.restore(self._weight_names(), networks)
        if self.accelerator.scaler is not None and "scaler" in optimizers:
            self.accelerator.scaler.load_state_dict(optimizers["scaler"])
        self.step, self.images, self.seconds = facts["step"], facts["images"], facts["seconds"]
        if facts["config"]["train"]["best_by"] == train.best_by:
            self.best_figure, self.best_step = facts["best_figure"], facts["best_step"]
            self.waited = facts.get("waited", 0)
        self.logged = {key: list(values.to(self.accelerator.device)) for key, values in optimizers["logged"].items()}

    def _compare(self, folder: Path, facts: dict[str, Any], images_per_step: int) -> None:
        """Print what changed since the checkpoint, and refuse what makes it another model."""
        old, new = _flatten(facts["config"]), _flatten(parsing.to_dict(self.config))
        # A key that the checkpoint lacks is newer than it, and has the value that it had then without saying.
        changed = [key for key, value in old.items() if value != new.get(key) and key not in NOT_COMPARED]
        if facts["built_on"] != self.task.built_on:
            raise UserError(f"the first stage is not the one of {folder}: train over another one in a new folder")
        data_changes = compare(facts["data"], self.task.data.to_json(), folder.name) if "data" in facts else []
        if model := [key for key in changed if key.split(".")[0] in MODEL_SECTIONS]:
            raise UserError(f"{', '.join(model)} changed since {folder}: that is another model; train it in a new folder")
        if not self.accelerator.is_main_process:
            return
        if changed:
            listed = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
            print(f"changed since {folder.name}: {listed}", file=sys.stderr)
        if data_changes:
            print(
                f"the data changed since {folder.name}: {', '.join(data_changes)}; their order is another one", file=sys.stderr
            )
        if facts["images_per_step"] != images_per_step:
            print(
                f"images per step {facts['images_per_step']} -> {images_per_step}: data continue at image {facts['images']:,}",
                file=sys.stderr,
            )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
