"""Operator micro-benchmarks: one case list, one driver, the result checked in the run that times it."""
