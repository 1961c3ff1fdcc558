"""What a checkpoint holds of a trainer, and how a trainer goes on from it: the next step is the one that would have come."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tinyldm.config import parsing
from tinyldm.errors import UserError
from tinyldm.training import checkpoint

if TYPE_CHECKING:
    from tinyldm.training.trainer import Trainer


def snapshot(trainer: "Trainer", logged: dict[str, torch.Tensor]) -> tuple[dict[str, dict[str, torch.Tensor]], Any, dict]:
    """(networks, optimizers, state) as checkpoint.save takes them.

    Args:
        logged: what was logged since the last row of metrics.csv, over all processes.
    """
    networks = {name: trainer.accelerator.unwrap_model(network).state_dict() for name, network in trainer.task.networks.items()}
    networks["ema"] = dict(zip(trainer.weight_names(), trainer.ema.shadow_params, strict=True))
    optimizers = {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()}
    if trainer.accelerator.scaler is not None:
        optimizers["scaler"] = trainer.accelerator.scaler.state_dict()
    optimizers["buffers"] = trainer.task.buffers
    optimizers["logged"] = logged  # a run that is stopped between two rows of metrics.csv
    state = {
        "step": trainer.step,
        "images": trainer.images,
        "seconds": trainer.seconds,
        "images_per_step": trainer.images_per_step,
        "built_on": trainer.task.built_on,
        "best_figure": trainer.best[0],
        "best_step": trainer.best[1],
        "examples_per_epoch": trainer.task.examples_per_epoch,
        "config": parsing.to_dict(trainer.config),
    }
    return networks, optimizers, state


def resume(trainer: "Trainer", folder: Path) -> None:
    """Bring a new trainer to where a checkpoint was saved.

    Raises:
        UserError: for one of another model, another first stage, or with parts missing.
    """
    networks, optimizers, state = checkpoint.load(folder)
    try:
        _compare_configs(trainer, folder, state)
        _restore(trainer, networks, optimizers, state)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {folder} does not fit this config: {error!r}") from error
    if trainer.run:
        trainer.run.rewind(trainer.step)
        checkpoint.forget_after(trainer.run.path, trainer.step)
        print(f"resuming from {folder}", file=sys.stderr)


def _restore(trainer: "Trainer", networks: dict[str, dict[str, torch.Tensor]], optimizers: Any, state: dict[str, Any]) -> None:
    for name, network in trainer.task.networks.items():
        trainer.accelerator.unwrap_model(network).load_state_dict(networks[name])
        trainer.optimizers[name].load_state_dict(optimizers[name])
    train = trainer.config.train
    for name, schedule in trainer.schedules.items():
        # The course may have changed with the number of steps: it is a function of the step, so it is set, not loaded.
        schedule.last_epoch = state["step"]
        bare = trainer.optimizers[name].optimizer
        for group, base, factor in zip(bare.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = base, base * factor(state["step"])
            group["betas"], group["weight_decay"] = (train.adam_beta1, train.adam_beta2), train.adam_weight_decay
        schedule._last_lr = [group["lr"] for group in bare.param_groups]
    for name, values in trainer.task.buffers.items():
        values.copy_(optimizers["buffers"][name])
    for shadow, name in zip(trainer.ema.shadow_params, trainer.weight_names(), strict=True):
        shadow.copy_(networks["ema"][name])
    trainer.ema.optimization_step = state["step"]
    if trainer.accelerator.scaler is not None and "scaler" in optimizers:
        trainer.accelerator.scaler.load_state_dict(optimizers["scaler"])
    trainer.step, trainer.seconds = state["step"], state["seconds"]
    trainer.images = _images_seen(state)
    if state["config"]["train"]["best_by"] == trainer.config.train.best_by:
        trainer.best = (state["best_figure"], state["best_step"])
    trainer.logged = {key: list(values.to(trainer.accelerator.device)) for key, values in optimizers["logged"].items()}


def _images_seen(state: dict[str, Any]) -> int:
    return state.get("images", state["step"] * state["images_per_step"])  # older checkpoints do not say


def _compare_configs(trainer: "Trainer", folder: Path, state: dict[str, Any]) -> None:
    old, new = _flatten(state["config"]), _flatten(parsing.to_dict(trainer.config))
    changed = [
        key for key in {**old, **new} if old.get(key) != new.get(key) and key not in ("resume", "overwrite", "output_dir")
    ]
    if changed and trainer.accelerator.is_main_process:
        told = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
        print(f"changed since {folder.name}: {told}", file=sys.stderr)
    if state["images_per_step"] != trainer.images_per_step and trainer.accelerator.is_main_process:
        was = f"{state['images_per_step']} -> {trainer.images_per_step}"
        print(f"images per step {was}: the order of the images goes on from another place", file=sys.stderr)
    train = trainer.config.train
    if state["images_per_step"] != trainer.images_per_step and train.max_steps is None:
        left = train.num_epochs * trainer.task.examples_per_epoch - _images_seen(state)
        steps = state["step"] + max(0, round(left / trainer.images_per_step))
        raise UserError(
            f"a step has {trainer.images_per_step} images now and had {state['images_per_step']}, so that train.num_epochs no "
            f"longer says how many there are to be: give --train.max_steps {steps} for the {train.num_epochs:g} epochs"
        )
    if state["built_on"] != trainer.task.built_on:
        raise UserError(f"the first stage is not the one of {folder}: train over another one in a new folder")
    if model := [key for key in changed if key.split(".")[0] in ("unet", "vq", "scheduler")]:
        raise UserError(f"{', '.join(model)} changed since {folder}: that is another model; train it in a new folder")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
