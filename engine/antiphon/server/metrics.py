"""Prometheus metrics, named as vLLM names its own, with speech beside tokens."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from ..async_engine import AsyncEngine
from ..deltas import FinishDelta
from .playback import PlaybackClock

LATENCY = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 40, 80, 160)
RATIO = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)


class Metrics:
    """All counters of one server, in a registry of its own."""

    def __init__(self, engine: AsyncEngine):
        registry = self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...] = LATENCY, labels: tuple[str, ...] = ()):
            return Histogram(f"antiphon:{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()):
            return Counter(f"antiphon:{name}", text, labels, registry=registry)

        self.ttft = histogram("time_to_first_token_seconds", "Request to first text.")
        self.ttfa = histogram("time_to_first_audio_seconds", "Request to first sound.")
        self.gap = histogram("inter_chunk_gap_seconds", "Between two pieces of sound of one answer.")
        self.latency = histogram("e2e_request_latency_seconds", "Request to end.")
        self.rtf = histogram("real_time_factor", "Computing time per second of speech.", RATIO)
        self.prompt_tokens = counter("prompt_tokens_total", "Prompt positions.")
        self.cached_tokens = counter("cached_prompt_tokens_total", "Prompt positions from the prefix cache.")
        self.generation_tokens = counter("generation_tokens_total", "Generated tokens.", ("stream",))
        self.success = counter("request_success_total", "Answers that ended.", ("finished_reason",))
        self.errors = counter("request_error_total", "Requests that failed.", ("status",))
        self.chunks = counter("audio_chunks_total", "Pieces of sound sent.")
        self.underruns = counter("audio_underruns_total", "Pieces of sound that came after they should have played.")
        self.audio_seconds = counter("audio_seconds_total", "Seconds of speech generated.")
        self.http = counter("http_requests_total", "HTTP answers.", ("path", "status"))
        self.sessions = Gauge("antiphon:realtime_sessions", "Open realtime sessions.", registry=registry)
        registry.register(_EngineCollector(engine))

    def answered(self, finish: FinishDelta, clock: PlaybackClock) -> None:
        """One answer has ended."""
        usage, timings = finish.usage, finish.timings
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        self.generation_tokens.labels("text").inc(usage.text_tokens)
        self.generation_tokens.labels("audio").inc(usage.audio_tokens)
        self.success.labels(finish.reason).inc()
        for value, metric in ((timings.first_text, self.ttft), (timings.first_audio, self.ttfa)):
            if value is not None:
                metric.observe(value)
        if timings.finished is not None:
            self.latency.observe(timings.finished)
            if clock.seconds:
                self.rtf.observe(timings.finished / clock.seconds)

    def heard(self, clock: PlaybackClock) -> None:
        """What a listener got, whether or not the answer ended."""
        self.chunks.inc(clock.num_chunks)
        self.underruns.inc(clock.num_late)
        self.audio_seconds.inc(clock.seconds)
        for gap in clock.gaps:
            self.gap.observe(gap)

    def viability(self) -> float | None:
        """Share of the pieces of sound so far that came in time; None before the first."""
        chunks = self.chunks._value.get()
        return None if not chunks else 1 - self.underruns._value.get() / chunks

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _EngineCollector:
    """Gauges that the engine knows, read when asked for."""

    def __init__(self, engine: AsyncEngine):
        self.engine = engine

    def collect(self):
        now = self.engine.statistics
        values = {
            "num_requests_running": ("Requests that generate.", now.running),
            "num_requests_waiting": ("Requests that wait.", now.waiting),
            "num_preemptions": ("Requests that lost their pages and were recomputed, since start.", now.preemptions),
            "prefix_cache_queries": ("Prompt positions looked up in the prefix cache, since start.", now.prefix_queries),
            "prefix_cache_hits": ("Prompt positions found there, since start.", now.prefix_hits),
            "engine_up": ("1 when requests can run.", int(self.engine.state == "ready")),
            "engine_deaths": ("How often the engine died.", self.engine.num_deaths),
            "requests_in_flight": ("Requests that the server holds.", self.engine.num_in_flight),
            "engine_load_seconds": ("How long the engine took to load its model.", self.engine.load_seconds or 0.0),
            "tasks": ("Tasks on the server's event loop.", _num_tasks()),
        }
        for name, (text, value) in values.items():
            yield GaugeMetricFamily(f"antiphon:{name}", text, value=value)
        pids = {"server": os.getpid(), "engine": getattr(self.engine.backend, "pid", None)}
        memory = GaugeMetricFamily("antiphon:resident_memory_bytes", "Resident memory, where it is known.", labels=["process"])
        for name, pid in pids.items():
            if pid is not None and (size := resident_bytes(pid)) is not None:
                memory.add_metric([name], size)
        yield memory
        yield from self._pages()

    def _pages(self):
        now = self.engine.statistics
        states = GaugeMetricFamily("antiphon:kv_pages", "Pages by group and state.", labels=["group", "state"])
        for group, pages in now.pages.items():
            for state, count in pages.items():
                states.add_metric([group, state], count)
        yield states
        usage = GaugeMetricFamily("antiphon:kv_cache_usage_perc", "Share of the pages in use, 0 to 1.", labels=["group"])
        for group, pages in now.pages.items():
            usage.add_metric([group], pages["used"] / max(1, pages["total"]))
        yield usage


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _num_tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0  # asked from outside of the event loop
