"""Measures a model or a set of images: what evaluate.py does. samples.py and its neighbours say what is measured."""

from tinyldm.config.evaluate import Evaluate
from tinyldm.evaluation import report
from tinyldm.evaluation.first_stage import measure_first_stage
from tinyldm.evaluation.likelihood import measure_likelihood
from tinyldm.evaluation.models import open_model
from tinyldm.evaluation.samples import measure_samples
from tinyldm.evaluation.workspace import Workspace
from tinyldm.first_stage.autoencoder import FirstStage


def evaluate(config: Evaluate) -> str:
    """Measure, write evaluation.json and pictures to output_dir and to the run, and return the table.

    Raises:
        UserError: for errors the user can fix.
    """
    workspace = Workspace(config)
    workspace.check_output()
    model = open_model(config, workspace.device) if config.model else None
    if config.chosen == ["likelihood"]:
        return measure_likelihood(workspace, model)
    if isinstance(model, FirstStage):
        images, result = measure_first_stage(workspace, model)
    else:
        images, result = measure_samples(workspace, model)
    result["features"] = {"name": workspace.network.name, **workspace.network.recipe}
    result["notes"] = workspace.notes
    return report.publish(config, workspace.output, images, result)
