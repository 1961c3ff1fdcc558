"""The imports of the server process that trainings are forked from."""

import tests.conftest  # noqa: F401  (no network)
import tinyldm.diffusion.task
import tinyldm.first_stage.task  # noqa: F401
