"""An engine that runs several decode steps per launch gives every request what single steps give it."""

from __future__ import annotations

import numpy as np
import pytest
from engine_outcome import REQUESTS, Outcome, request

from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.errors import ConfigError
from antiphon.execution.graphs import TapeGraphs
from antiphon_kernels import native, use_backend


@pytest.fixture(scope="module")
def single(tiny_runtime):
    return Outcome(tiny_runtime, REQUESTS, 1)


@pytest.mark.parametrize("launch", [2, 5, 16])
def test_the_same_answers(tiny_runtime, single, launch):
    several = Outcome(tiny_runtime, REQUESTS, launch, TapeGraphs())
    assert set(several.launches) == {1, launch} and len(several.launches) < len(single.launches)
    assert several.text == single.text and several.finish == single.finish
    for got, want in zip(several.sound.values(), single.sound.values(), strict=True):
        np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=2e-5)


@pytest.mark.skipif(not native.available, reason="native module not built")
def test_the_native_step_runs_several_without_graphs(tiny_runtime, single):
    several = Outcome(tiny_runtime, REQUESTS, 8)
    assert set(several.launches) == {1, 8} and len(several.launches) < len(single.launches)
    assert several.text == single.text and several.finish == single.finish
    for got, want in zip(several.sound.values(), single.sound.values(), strict=True):
        np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=2e-5)  # other chunks share a solve


def test_without_graphs_and_native_steps_they_are_single(tiny_runtime, single):
    with use_backend("reference"):
        plain = Outcome(tiny_runtime, REQUESTS, 8)
    assert set(plain.launches) == {1} and plain.text == single.text


def test_a_stop_text_inside_a_launch_ends_the_answer_there(tiny_runtime, single):
    words = next(iter(single.text.values()))
    stop = words[len(words) // 2 : len(words) // 2 + 1]
    asked = [request("What is the capital of France?", "text", 1, 21, stop=(stop,))]
    one, several = Outcome(tiny_runtime, asked, 1), Outcome(tiny_runtime, asked, 16, TapeGraphs())
    assert list(several.text.values()) == list(one.text.values()) == [words[: words.index(stop)]]
    assert several.finish == one.finish and 16 in several.launches


def test_when_pages_are_short_steps_are_single_again(tiny_runtime, single):
    short = Outcome(tiny_runtime, REQUESTS, 16, TapeGraphs(), kv_pages=8, prefix_caching=False)
    assert short.text == single.text and short.launches.count(1) > 10


@pytest.mark.parametrize("launch", [0, 17])
def test_sizes_that_make_no_sense_are_refused(launch):
    with pytest.raises(ConfigError, match="decode_steps_per_launch"):
        EngineConfig(decode_steps_per_launch=launch)


def test_native_steps_follow_each_other_unless_told_otherwise(tiny_runtime):
    chosen = Engine(tiny_runtime, EngineConfig()).config.decode_steps_per_launch
    assert chosen == (8 if native.available else 1)
    assert Engine(tiny_runtime, EngineConfig(decode_steps_per_launch=1)).config.decode_steps_per_launch == 1
