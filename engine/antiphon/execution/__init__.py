"""Runners: batches of work in, results out; owners of devices, buffers and caches."""
