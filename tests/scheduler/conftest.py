"""A scheduler on a small machine with the model of integers behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from antiphon.scheduler import KVPools, Policy, RequestState, Scheduler, SchedulerConfig, StepPlan
from antiphon.scheduler.content_model import ContentModel, alone
from antiphon.scheduler.slot_table import SlotTable


def following(plan: StepPlan, step: int, table: SlotTable) -> StepPlan:
    """The ``step``-th step of a plan as a device runs it: the next row of everybody who has not ended, the same branches."""
    keep = table.decoding[plan.slots]
    columns = {name: getattr(plan, name)[keep] for name in ("slots", "lengths", "run_text", "run_audio", "samples")}
    return replace(
        plan, **columns, starts=plan.starts[keep] + step, num_generated=plan.num_generated[keep] + step,
        request_ids=tuple(name for name, kept in zip(plan.request_ids, keep.tolist()) if kept),
        num_decodes=int(keep.sum()), copies=(), assigned=(), table_writes=(),
    )  # fmt: skip


class Machine:
    """Adds requests, steps, and checks every finished request against the same request alone."""

    def __init__(self, pages: tuple[int, int, int], config: SchedulerConfig, policy: Policy | None):
        self.scheduler = Scheduler(config, KVPools(*pages), policy)
        self.seeds: dict[str, int] = {}
        self.expected: dict[str, tuple[list[int], list[int], str]] = {}
        self.model = ContentModel(self.scheduler, self.seeds)
        self.now = 0.0

    def add(
        self, name: str, prompt: int | np.ndarray = 20, kind: str = "both", limit: int = 10, **options
    ) -> RequestState:
        """A request with a prompt of so many positions (of its own, by name), or with the given ids in both streams."""
        if isinstance(prompt, int):
            prompt = np.random.default_rng([len(name), *name.encode()]).integers(1000, 2000, prompt)
        options.setdefault("arrival", self.now)
        self.seeds[name] = options.pop("seed", len(self.seeds) + 5)
        state = RequestState(name, prompt, prompt + 1, output_type=kind, max_new_tokens=limit, **options)
        self.scheduler.add(state)
        self.expected[name] = alone(state, self.seeds[name])
        return state

    def step(self, max_steps: int = 1) -> StepPlan | None:
        """One plan of at most so many steps; finished requests must equal the ones alone."""
        plan = self.scheduler.schedule(self.now, max_steps)
        if plan is None:
            return None
        finished = self.scheduler.commit(plan, self.model.run(plan))
        for step in range(1, plan.steps):
            later = following(plan, step, self.scheduler.table)
            finished += self.scheduler.commit_next(later.slots, self.model.run(later))
        for state in finished:
            result = (state.generated_text.tolist(), state.generated_audio.tolist(), state.finish_reason)
            assert result == self.expected[state.request_id]
        self.model.poison_free_pages()
        self.scheduler.check()
        self.now += 0.01
        return plan

    def run(self, max_steps: int = 2000) -> list[StepPlan]:
        """Step until idle; all pages must be free or cached then."""
        plans = []
        while (plan := self.step()) is not None:
            plans.append(plan)
            assert len(plans) < max_steps, "it does not end"
        assert all(pool.num_used == 0 for pool in self.scheduler.memory.pools.groups)
        return plans


@pytest.fixture
def machine() -> Callable[..., Machine]:
    """``machine(pages=..., policy=..., **scheduler_config)``."""

    def build(pages: int | tuple[int, int, int] = 64, policy: Policy | None = None, **config) -> Machine:
        pages = (pages, pages, pages) if isinstance(pages, int) else pages
        defaults = {"token_budget": 64, "max_sequences": 8, "max_positions": 512}
        return Machine(pages, SchedulerConfig(**{**defaults, **config}), policy)

    return build
