"""What the process loads from which trainings are forked."""

import tests.conftest  # noqa: F401  (no network)
import tinyldm.diffusion_task
import tinyldm.vq_task  # noqa: F401
