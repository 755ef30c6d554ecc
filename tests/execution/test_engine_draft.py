"""An engine whose model has a draft gives every request what one without gives it; drafts that cannot be are refused."""

from __future__ import annotations

import numpy as np
import pytest
from engine_outcome import REQUESTS, Outcome

from antiphon.checkpoint import load_model_config
from antiphon.checkpoint.quantize import quantize_checkpoint
from antiphon.runtime import load_runtime
from antiphon_kernels import native

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
