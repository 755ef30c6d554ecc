"""Operators of Antiphon: one file each with its mathematics, reference, kernels and dispatch."""
