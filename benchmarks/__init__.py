"""Benchmarks: ``python -m benchmarks.NAME``."""

import antiphon  # noqa: F401  (before PyTorch: it chooses how long OpenMP's threads spin)
