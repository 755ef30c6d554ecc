"""What a decode step reads from the device's state: live rows, idle rows, stopped requests, branches that do not run."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import decode_inputs

PAGE, BLANK = 16, 9


def case(rows: int = 5):
    """Slots 0..3 and the spare one, 4; rows: three requests, one of them stopped, then idle rows."""
    slots = torch.tensor([2, 0, 3] + [4] * (rows - 3))
    history = torch.arange(5 * 40, dtype=torch.int32).view(5, 40)
    return {
        "slots": slots, "base": torch.tensor([20, 3, 7] + [0] * (rows - 3)),
        "runs": torch.tensor([[True, False, True] + [False] * (rows - 3), [True, True, True] + [False] * (rows - 3)]),
        "tables": torch.arange(3 * rows * 4, dtype=torch.int32).view(3, rows, 4) + 50,
        "spare": torch.tensor([200, 300, 300]), "text": history, "audio": history + 1000,
        "length": torch.tensor([2, 0, 15, 4, 7]), "stop": torch.tensor([0, 0, 0, 1, 4]),
    }  # fmt: skip


def test_live_idle_and_stopped_rows():
    c = case()
    slots, text, audio, positions, cache, lengths = decode_inputs(*c.values(), PAGE, BLANK)
    assert slots.tolist() == [2, 0, 4, 4, 4]
    assert text.tolist() == [2 * 40 + 14, 1, BLANK, BLANK, BLANK]
    assert audio.tolist() == [1000 + 2 * 40 + 14, 1001, BLANK, BLANK, BLANK]
    assert positions.tolist() == [[35, 5, 0, 0, 0]] * 2
    tables = case()["tables"]
    assert cache[0].tolist() == [int(tables[0, 0, 2]) * 16 + 3, int(tables[0, 1, 0]) * 16 + 5, *[200 * 16] * 3]
    assert cache[1].tolist() == [int(tables[1, 0, 2]) * 16 + 3, *[300 * 16] * 4], "row 1 does not run the text branch"
    assert lengths.tolist() == [[36, 6, 1, 1, 1], [36, 1, 1, 1, 1], [36, 6, 1, 1, 1]]
    assert c["length"].tolist() == [2, 0, 15, 4, 0] and c["stop"].tolist() == [0, 0, 0, 1, 0]


def test_schema_and_fake():
    torch.library.opcheck(torch.ops.antiphon.decode_inputs.default, (*case().values(), PAGE, BLANK))


@pytest.mark.parametrize("rows", [3, 5, 127, 128, 129])
def test_triton(rows):
    triton_support = pytest.importorskip("antiphon_kernels.triton_support")
    if not triton_support.interpreted:
        pytest.skip("needs TRITON_INTERPRET=1")
    from antiphon_kernels import triton_interpreter
    from antiphon_kernels.decode_inputs import decode_inputs_triton, reference

    triton_interpreter.install()
    ours, theirs = case(rows), case(rows)
    for got, want in zip(decode_inputs_triton(*ours.values(), PAGE, BLANK), reference(*theirs.values(), PAGE, BLANK)):
        assert got.dtype == want.dtype and torch.equal(got, want)
    assert torch.equal(ours["length"], theirs["length"]) and torch.equal(ours["stop"], theirs["stop"])
