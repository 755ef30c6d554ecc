"""Continuous batching over a paged KV cache in three groups: page accounting, prefix cache, step planning, policy."""

from .kv_pool import KVPools, PagePool
from .plan import (
    AUDIO,
    PAGE_SIZE,
    TEXT,
    TRUNK,
    BlockWrite,
    PageCopy,
    SequencePlan,
    SlotAssignment,
    StepPlan,
    StepResults,
)
from .policy import FcfsPolicy, Policy, StepOrder
from .prefix_cache import CacheStatistics, PrefixCache
from .request_state import FeatureSpan, Phase, RequestState
from .scheduler import Scheduler, SchedulerConfig

__all__ = [
    "AUDIO",
    "PAGE_SIZE",
    "TEXT",
    "TRUNK",
    "BlockWrite",
    "CacheStatistics",
    "FcfsPolicy",
    "FeatureSpan",
    "KVPools",
    "PageCopy",
    "PagePool",
    "Phase",
    "Policy",
    "PrefixCache",
    "RequestState",
    "Scheduler",
    "SchedulerConfig",
    "SequencePlan",
    "SlotAssignment",
    "StepOrder",
    "StepPlan",
    "StepResults",
]
