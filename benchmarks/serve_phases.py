"""Phases of a load test: a steady load, a flood past the limits, and clients that leave in the middle.

Each returns rows for the report and a list of what should not have happened.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from .serve_clients import Measured, Target, recordings
from .serve_metrics import Memory, left_behind, scrape
from .serve_summary import summary

Client = Callable[[Target, list[bytes]], Coroutine[Any, Any, list[Measured]]]
FLAT = 0.05
"""Growth of resident memory, last quarter over the second, that still counts as flat."""
REFUSED = ("429", "rate_limit_exceeded")
SLOWER = 1.5
"""How much longer accepted answers may take beside a flood; the flood's own clients share the processors."""


@dataclass
class Phase:
    """What came out."""

    name: str
    rows: list[dict] = field(default_factory=list)
    memory: list[dict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, measured: list[Measured], seconds: float, part: str = "") -> None:
        """Rows of a part's measurements, by scenario."""
        self.measured += measured
        self.seconds += seconds
        for name in sorted({m.scenario for m in measured}):
            row = summary(name, [m for m in measured if m.scenario == name], seconds)
            self.rows.append({"phase": self.name + (part and f" {part}")} | row)

    def fail_on_errors(self, measured: list[Measured], allowed: Sequence[str] = ()) -> None:
        """Every error that is not ``allowed`` is a failure."""
        kinds = sorted({m.error for m in measured if m.error is not None} - set(allowed))
        self.failures += [f"{self.name}: error {kind}" for kind in kinds]


async def closed_loop(clients: Sequence[Client], target: Target, seconds: float) -> tuple[list[Measured], float]:
    """One worker for each of ``clients``, one request after the other; all measurements, and how long it took."""
    sounds, measured, start = recordings(), [], time.monotonic()
    target = dataclasses.replace(target, end=start + seconds)

    async def worker(client: Client) -> None:
        while time.monotonic() - start < seconds:
            done = await client(target, sounds)
            measured.extend(done)
            if any(one.error in REFUSED for one in done):
                await asyncio.sleep(1.0)  # what Retry-After says

    await asyncio.gather(*(worker(client) for client in clients))
    return measured, time.monotonic() - start


async def poisson(
    clients: Sequence[Client], target: Target, seconds: float, rate: float
) -> tuple[list[Measured], float]:
    """``rate`` arrivals a second, of each of ``clients`` in turn."""
    sounds, measured, tasks, start = recordings(), [], [], time.monotonic()

    async def one(client: Client) -> None:
        measured.extend(await client(target, sounds))

    while time.monotonic() - start < seconds:
        tasks.append(asyncio.ensure_future(one(clients[len(tasks) % len(clients)])))
        await asyncio.sleep(random.expovariate(rate))
    await asyncio.gather(*tasks)
    return measured, time.monotonic() - start


async def steady(clients: Sequence[Client], target: Target, seconds: float, rate: float | None) -> Phase:
    """No error, memory flat. ``rate``: Poisson arrivals instead of a closed loop."""
    phase, memory = Phase("steady"), Memory(target)
    async with memory.sampling():
        arrivals = closed_loop(clients, target, seconds) if rate is None else poisson(clients, target, seconds, rate)
        measured, taken = await arrivals
    phase.add(measured, taken)
    phase.fail_on_errors(measured)
    phase.memory = memory.rows()
    if seconds >= 60:
        phase.failures += [
            f"steady: {row['process']} grew by {row['growth']:.1%}" for row in phase.memory if row["growth"] > FLAT
        ]
    return phase


async def flood(clients: Sequence[Client], target: Target, seconds: float, rate: float | None) -> Phase:
    """The same load without and with ``rate`` more arrivals a second than the server may take; those get 429."""
    phase, extra = Phase("flood"), [clients[0]]
    alone, taken = await closed_loop(clients, target, seconds)
    phase.add(alone, taken, "before")
    (beside, taken), (flooders, _) = await asyncio.gather(
        closed_loop(clients, target, seconds), poisson(extra, target, seconds, rate or 20.0)
    )
    phase.add(beside + flooders, taken, "during")
    phase.fail_on_errors(alone)
    phase.fail_on_errors(beside + flooders, REFUSED)
    refused = [m for m in beside + flooders if m.error in REFUSED]
    if not refused:
        phase.failures.append("flood: nothing was refused; lower the server's max_in_flight")
    before, during = (_latency(part, clients[0]) for part in (alone, beside + flooders))
    phase.rows.append(
        {"phase": "flood", "scenario": "slowdown", "latency_ratio": during / before, "refused": len(refused)}
    )
    if during > SLOWER * before:
        phase.failures.append(f"flood: accepted answers took {during:.2f} s, {before:.2f} s without the flood")
    return phase


def _latency(measured: list[Measured], client: Client) -> float:
    """Median seconds of the good answers of a kind of client."""
    name = client.__name__
    return summary(name, [m for m in measured if m.scenario == name], 1.0)["latency_p50"] or float("nan")


async def leave(clients: Sequence[Client], target: Target, seconds: float, rate: float | None) -> Phase:
    """Half of the clients leave in the middle; nothing of them may stay in the server."""
    phase = Phase("leave")
    before = await asyncio.to_thread(scrape, target)
    leaving = dataclasses.replace(target, hangup=target.hangup or 0.5)
    memory = Memory(target)
    async with memory.sampling():
        measured, taken = await closed_loop(clients, leaving, seconds)
    phase.add(measured, taken)
    phase.fail_on_errors(measured)
    phase.memory = memory.rows()
    left = await left_behind(target, before)
    phase.rows.append({"phase": "leave", "scenario": "left behind"} | left)
    phase.failures += [f"leave: {name} {count:g} left behind" for name, count in left.items() if count]
    if not any(m.left for m in measured):
        phase.failures.append("leave: no client left; make it longer")
    return phase


PHASES = {"steady": steady, "flood": flood, "leave": leave}
