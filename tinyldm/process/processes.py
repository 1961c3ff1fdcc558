"""Which process: that of a recipe, of a scheduler in a model folder, or of its JSON."""

from typing import Any

import diffusers
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tinyldm.config.networks import ProcessConfig, SchedulerConfig
from tinyldm.errors import UserError
from tinyldm.portable.levels import ProcessScheduler
from tinyldm.process.continuous import ContinuousProcess
from tinyldm.process.discrete_vp import DiscreteVP
from tinyldm.process.process import PREDICTIONS, Process


def make_process(config: ProcessConfig, scheduler: SchedulerConfig, **measured: float) -> Process:
    """The process of a recipe.

    Args:
        measured: settings of a continuous process that follow from the data, where the recipe gives none.

    Raises:
        UserError: for a schedule that diffusers does not know, or a prediction that the process cannot have.
    """
    if config.kind != "vp":
        return ContinuousProcess(config.kind, config.prediction, config.times, config.log_snr, **config.settings(measured))
    scheduler.check()
    try:
        return DiscreteVP(DDPMScheduler(**scheduler.arguments()))
    except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"cannot build a DDPMScheduler from the section scheduler: {error}") from error


def process_of(scheduler: SchedulerMixin) -> Process:
    """The process that the scheduler of a loaded model reverses.

    Raises:
        UserError: for a scheduler of a process that is not implemented here.
    """
    config = scheduler.config
    if isinstance(scheduler, ProcessScheduler):
        return ContinuousProcess(config.kind, config.prediction_type, **config.settings)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not config.use_dynamic_shifting:
        return ContinuousProcess("flow", shift=config.shift)
    if isinstance(scheduler, EDMEulerScheduler) and config.prediction_type == "v_prediction":
        settings = {key: config[key] for key in ("sigma_min", "sigma_max", "sigma_data")}
        return ContinuousProcess("edm", **settings)
    if not hasattr(scheduler, "alphas_cumprod") or config.get("prediction_type") not in PREDICTIONS:
        raise UserError(f"the model's {type(scheduler).__name__} belongs to a process that this project does not support")
    return DiscreteVP(scheduler)


def scheduler_config(process: Process) -> dict[str, Any]:
    """The process as JSON: the class and the arguments of its scheduler."""
    scheduler = process.sampler()
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"_class_name": type(scheduler).__name__, **config}


def process_from(config: dict[str, Any]) -> Process:
    """The inverse of scheduler_config.

    Raises:
        UserError: see process_of.
    """
    return process_of(scheduler_class(config.get("_class_name", "DDPMScheduler")).from_config(config))


def scheduler_class(name: str) -> Any:
    """The scheduler class of this name.

    Raises:
        ValueError: where neither diffusers nor levels.py has it.
    """
    found: Any = ProcessScheduler if name == ProcessScheduler.__name__ else getattr(diffusers, name, object)
    if not issubclass(found, SchedulerMixin):
        raise ValueError(f"diffusers has no scheduler {name}")
    return found
