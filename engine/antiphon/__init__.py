"""Antiphon: an inference engine for Kimi-Audio."""
