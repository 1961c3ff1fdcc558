"""Generative zero-shot learning from class texts: GAZSL, CIZSL, CIZSLv2 and two plain baselines, evaluated by two protocols.

See docs/zsl.md. `python -m zsl --help` lists the commands.
"""

import tinyldm  # noqa: F401  (before torch: it sets the spin count)
