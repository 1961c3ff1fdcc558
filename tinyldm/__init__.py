"""What the entry scripts of tinyldm share: from images to a trained latent diffusion model to pictures."""

import os

__version__ = "0.2.0"

# Threads of OpenMP spin while they wait for each other, and so take the cores from another busy program. GNU's OpenMP reads its
# settings when torch is imported, which every entry point does after this line. A user's own setting wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
