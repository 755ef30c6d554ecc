"""An engine whose model has a draft gives every request what one without gives; drafts that cannot be are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from engine_outcome import REQUESTS, Outcome

from antiphon.checkpoint import load_model_config
from antiphon.checkpoint.quantize import quantize_checkpoint
from antiphon.deltas import TextDelta
from antiphon.draft import check_draft, draft_bytes
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.errors import ConfigError
from antiphon.runtime import load_runtime
from antiphon.scheduler import FcfsPolicy, LinearCostModel
from antiphon_kernels import native, use_backend

if not native.available:
    pytest.skip("native module not built", allow_module_level=True)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def plain(request, tiny):
    """The toy model, and what its requests get without a draft, several steps a launch, as with one."""
    runtime = load_runtime(tiny, device="cpu", dtype=request.param)
    return runtime, Outcome(runtime, REQUESTS, 8)


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("converted") / "int8"
    quantize_checkpoint(load_model_config(tiny), folder, "int8")
    return folder


@pytest.mark.parametrize("draft", ["int8", "int4", "folder"])
def test_the_same_answers(plain, tiny, converted, draft):
    runtime, expected = plain
    chosen = converted if draft == "folder" else draft
    drafting = load_runtime(tiny, device="cpu", dtype=runtime.dtype, draft=chosen)
    got = Outcome(drafting, REQUESTS, None)
    assert got.text == expected.text and got.finish == expected.finish
    for ours, theirs in zip(got.sound.values(), expected.sound.values(), strict=True):
        np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(theirs))
    work = got.engine.runner.counters
    assert work.drafted > 20 and work.accepted > (0.2 if draft == "int4" else 0.5) * work.drafted
    print(f"{work.accepted} of {work.drafted} pairs accepted")


def test_the_deadline_policy_lets_it_draft(tiny):
    """The default policy of every engine, on a machine whose steps take longer than it would let a newcomer wait."""
    drafting = load_runtime(tiny, device="cpu", dtype="bfloat16", draft="int8")
    slow = LinearCostModel(step_base=0.3, smoothing=0.0)
    engine = Engine(drafting, EngineConfig(max_sequences=4))
    assert engine.config.decode_steps_per_launch == engine.scheduler.policy.options.min_launch == 8
    engine.scheduler.policy.cost = slow
    engine.add(REQUESTS[1])
    while engine.has_work:
        engine.step()
    engine.check()
    assert engine.runner.counters.drafted > 10


def two_turns(runtime) -> tuple[list, int]:
    """Deltas' contents of an answer and of the next turn's, and how many positions the second found in the cache."""
    engine = Engine(runtime, EngineConfig(max_sequences=1, keep_text_branch=True), FcfsPolicy())
    said, history = [], None
    for turn in (REQUESTS[1], REQUESTS[2]):
        request_id = engine.add(dataclasses.replace(turn, history=history))
        live = engine.live[request_id]
        while engine.has_work:
            said += [d.text if isinstance(d, TextDelta) else getattr(d, "usage", None) for _, d in engine.step()]
        history = engine.conversation(live)
        engine.check()
    return [*said, live.streams.text, live.streams.audio], live.generation.cached_tokens


def test_a_next_turn_after_a_draft(plain, tiny):
    """Positions of an answer that are found in the prefix cache are the model's own, not its draft's."""
    runtime, _ = plain
    drafting = load_runtime(tiny, device="cpu", dtype=runtime.dtype, draft="int4")
    (got, cached), (expected, _) = two_turns(drafting), two_turns(runtime)
    assert [x for x in got if not isinstance(x, str)] == [x for x in expected if not isinstance(x, str)]
    assert "".join(x for x in got if isinstance(x, str)) == "".join(x for x in expected if isinstance(x, str))
    assert cached > 30, "the answer's positions, not the prompt's alone"


def test_what_it_shares_and_what_it_holds(tiny):
    """Quantised matrices and their scales are the draft's own, everything else is the model's; the plan counts them."""
    runtime = load_runtime(tiny, device="cpu", dtype="float32", draft="int4")
    own = {name for name, t in runtime.draft.weights.items() if t is not runtime.llm.weights.get(name)}
    assert own == {n for n in runtime.draft.weights if runtime.draft.weights[n].dtype in (torch.int8, torch.uint8)} | {
        n for n in runtime.draft.weights if n.endswith(".scale")
    }
    assert runtime.draft.lm_head.scheme == "int8" and runtime.draft.trunk[0].down.scheme == "int4"
    plan = Engine(runtime, EngineConfig(max_sequences=2)).memory
    assert plan.weights["draft"] == draft_bytes(runtime.draft, runtime.llm) == sum(
        runtime.draft.weights[name].nbytes for name in own
    )


def test_a_converted_draft_stays_in_its_file(tiny, converted):
    """The folder's matrices are those of its file: the same as quantised at load, from the bfloat16 model."""
    made = load_runtime(tiny, device="cpu", dtype="bfloat16", draft="int8").draft
    mapped = load_runtime(tiny, device="cpu", dtype="bfloat16", draft=converted).draft
    assert made.weights.keys() == mapped.weights.keys()
    assert all(torch.equal(made.weights[name], mapped.weights[name]) for name in made.weights)


def test_backends_that_do_not_draft(tiny):
    """Where operators are told not to run natively an engine refuses: a draft that is asked for works or raises."""
    drafting = load_runtime(tiny, device="cpu", dtype="float32", draft="int8")
    with use_backend("reference"), pytest.raises(ConfigError, match="native steps"):
        Engine(drafting)


def test_values_that_make_no_sense(tiny, converted, tmp_path, demo):
    """Each refusal names what was given and says what would do."""

    def load(path=tiny, **options):
        return load_runtime(path, load_detokenizer=False, device="cpu", **options)

    with pytest.raises(ConfigError, match="'int3'.*int8, int4, or the folder"):
        load(draft="int3")
    with pytest.raises(ConfigError, match="int8 layers.*without a draft"):
        load(converted, draft="int4")
    with pytest.raises(ConfigError, match="expected a converted checkpoint"):
        load(draft=tiny)
    with pytest.raises(ConfigError, match="other sizes"):
        load(demo, draft=converted)
    with pytest.raises(ConfigError, match="'meta'.*device='cpu'"):
        check_draft("int8", load_model_config(tiny), torch.device("meta"))
    config = json.loads((converted / "config.json").read_text())
    config["quantization_config"]["calibration"] = "manifest.jsonl"
    shutil.copytree(converted, tmp_path / "calibrated")
    (tmp_path / "calibrated" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"manifest.jsonl.*without --calibrate"):
        load(draft=tmp_path / "calibrated")


def test_without_the_native_module(tiny, monkeypatch):
    monkeypatch.setattr(native, "available", False)
    with pytest.raises(ConfigError, match="native decode step.*builds them"):
        check_draft("int8", load_model_config(tiny), torch.device("cpu"))


def test_engines_that_could_not_use_it(tiny):
    """One step a launch leaves nothing to propose; more requests than a native step has rows are never one launch."""
    drafting = load_runtime(tiny, device="cpu", draft="int8")
    with pytest.raises(ConfigError, match="decode_steps_per_launch to 2"):
        Engine(drafting, EngineConfig(decode_steps_per_launch=1))
    with pytest.raises(ConfigError, match="max_sequences is 17"):
        Engine(drafting, EngineConfig(max_sequences=17))
