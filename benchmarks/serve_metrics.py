"""What a server says of itself during a load test: memory over time, and what is left when the load is over."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import urllib.request
from collections.abc import AsyncIterator

import numpy as np

from .serve_clients import Target

LINE = re.compile(r"^antiphon:(\w+)(?:\{(.*)\})? ([-+.\deE]+|NaN)$", re.MULTILINE)
LABEL = re.compile(r'\w+="([^"]*)"')
SAMPLE_EVERY = 1.0
SETTLE_SECONDS = 60.0
Key = tuple[str, ...]


def scrape(target: Target) -> dict[Key, float]:
    """Values of ``/metrics`` by (name, label values...). Blocks."""
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    with urllib.request.urlopen(urllib.request.Request(target.url + "/metrics", headers=headers), timeout=30) as answer:
        text = answer.read().decode()
    return {(name, *LABEL.findall(labels or "")): float(value) for name, labels, value in LINE.findall(text)}


class Memory:
    """Resident memory of server and engine, sampled every second while :meth:`sampling` lasts."""

    def __init__(self, target: Target):
        self.target = target
        self.samples: list[tuple[float, dict[str, float]]] = []

    @contextlib.asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Sample until the block ends."""
        task = asyncio.create_task(self._sample())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _sample(self) -> None:
        start = time.monotonic()
        while True:
            values = await asyncio.to_thread(scrape, self.target)
            sizes = {key[1]: value for key, value in values.items() if key[0] == "resident_memory_bytes"}
            self.samples.append((time.monotonic() - start, sizes))
            await asyncio.sleep(SAMPLE_EVERY)

    def rows(self) -> list[dict]:
        """Per process: MB at first, at most, and the growth of the last quarter over the second."""
        rows = []
        for name in sorted({name for _, sizes in self.samples for name in sizes}):
            sizes = np.array([sizes[name] for _, sizes in self.samples if name in sizes]) / 2**20
            quarters = [float(np.median(part)) for part in np.array_split(sizes, min(4, len(sizes)))]
            row = {"process": name, "first_mb": float(sizes[0]), "most_mb": float(sizes.max())}
            row |= {f"quarter{number}_mb": size for number, size in enumerate(quarters, 1)}
            rows.append(row | {"growth": quarters[-1] / quarters[min(1, len(quarters) - 1)] - 1})
        return rows


async def left_behind(target: Target, before: dict[Key, float]) -> dict[str, float]:
    """What is still there once the clients are gone, waited for up to ``SETTLE_SECONDS``; all 0 is what is wanted.

    Pages count as left while a request uses them; the prefix cache's are free to take. Tasks: above those of ``before``.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        now = await asyncio.to_thread(scrape, target)
        left = _left(now, before)
        if not any(left.values()) or time.monotonic() > end:
            return left
        await asyncio.sleep(0.2)


GAUGES = ("num_requests_running", "num_requests_waiting", "requests_in_flight", "realtime_sessions")


def _left(now: dict[Key, float], before: dict[Key, float]) -> dict[str, float]:
    left = {name: now[name,] for name in GAUGES}
    left["tasks"] = max(0.0, now["tasks",] - before["tasks",])
    for key, total in now.items():
        if key[0] == "kv_pages" and key[2] == "total":
            free, cached = now["kv_pages", key[1], "free"], now["kv_pages", key[1], "cached"]
            left[f"pages_{key[1]}"] = total - free - cached
    left["engine_deaths"] = now["engine_deaths",] - before["engine_deaths",]
    return left
