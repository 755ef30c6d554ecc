"""Measuring a checkpoint on a manifest: word and character error rates, right answers, intelligible speech, speed."""

from .manifest import Row, read_manifest
from .metrics import ErrorRate, normalise
from .report import Report, summarise
from .run import ItemResult, evaluate

__all__ = ["ErrorRate", "ItemResult", "Report", "Row", "evaluate", "normalise", "read_manifest", "summarise"]
