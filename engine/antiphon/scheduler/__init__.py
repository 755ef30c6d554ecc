"""Continuous batching over a paged KV cache in three groups: page accounting, prefix cache, step planning, policy."""

from .cost_model import CostModel, LinearCostModel
from .deadline_policy import DeadlineOptions, DeadlinePolicy
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
from .playback import PlaybackClock
from .policy import FcfsPolicy, Policy, SpeechJob, StepOrder
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
    "CostModel",
    "DeadlineOptions",
    "DeadlinePolicy",
    "FcfsPolicy",
    "FeatureSpan",
    "KVPools",
    "LinearCostModel",
    "PageCopy",
    "PagePool",
    "Phase",
    "PlaybackClock",
    "Policy",
    "PrefixCache",
    "RequestState",
    "Scheduler",
    "SchedulerConfig",
    "SequencePlan",
    "SlotAssignment",
    "SpeechJob",
    "StepOrder",
    "StepPlan",
    "StepResults",
]
