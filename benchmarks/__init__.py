import tinyldm  # noqa: F401  (before torch: it sets the spin count)
