"""What the process loads from which trainings are forked."""

import tests.conftest  # noqa: F401  (no network)
import tinyldm.diffusion.task
import tinyldm.first_stage.task  # noqa: F401
