"""The full-size engine on a fake CUDA device: no waiting, no mixed devices, and the bytes, launches and operations promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from antiphon.checkpoint.presets import kimi_audio_7b, nano
from antiphon.execution.audio_encoder import AudioEncoder
from antiphon.planner.fake_device import fake_cuda
from antiphon.planner.fake_model import build, packed_shapes
from antiphon.planner.floors import decode_bytes, flow_reference_flops
from antiphon.planner.gpus import gpu
from antiphon.planner.recorder import Recorder, RehearsalError
from antiphon.planner.rehearsal import Workload, _make_constants, rehearse
from antiphon.planner.report import launches_per_layer, project, text_report
from antiphon.upload import upload

CONFIG = kimi_audio_7b()
LOAD = Workload(batches=(1, 64), speech_batches=(1,), ode_steps=2)


@pytest.fixture(scope="module")
def h100():
    return rehearse(CONFIG, gpu("h100"), LOAD)


@pytest.mark.parametrize(("batch", "limit"), [(1, 1.05), (64, 1.15)])
@pytest.mark.parametrize("kind", ["decode text", "decode speech", "captured decode speech"])
def test_decode_moves_little_more_than_it_must(h100, batch, limit, kind):
    part = h100.parts[f"{kind} {batch}"]
    floor = decode_bytes(CONFIG.llm, batch, LOAD.context, True, "speech" in kind)
    assert 1.0 <= part.num_bytes / floor <= limit


def test_a_branch_that_no_row_needs_is_not_read(h100):
    whole, text, audio = (h100.parts[f"decode {kind} 1"].num_bytes for kind in ("speech", "text", "audio only"))
    assert text == pytest.approx(audio, rel=1e-3)
    assert text < 0.79 * whole


def test_at_most_eight_launches_a_layer(h100):
    for name in ("decode text 1", "decode speech 1", "decode speech 64", "captured decode speech 64"):
        assert launches_per_layer(h100.parts[name]) <= 8


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantised_layers_have_no_more_launches(quant):
    parts = rehearse(CONFIG, gpu("h100"), Workload(batches=(1,), speech_batches=(1,), ode_steps=1), quant).parts
    for name in ("decode text 1", "decode speech 1", "captured decode speech 1"):
        calls = {call.name for call in parts[name].calls}
        assert launches_per_layer(parts[name]) <= 8 and f"linear_{quant}_silu_mul" in calls and "silu_mul" not in calls


@pytest.mark.parametrize("part", ["ODE steady 1", "captured ODE steady 1"])
def test_the_dit_does_its_conditioning_once_per_token(h100, part):
    tokens = LOAD.look_ahead + LOAD.chunk
    reference = flow_reference_flops(CONFIG.flow, 4 * tokens, 4 * LOAD.chunk, 900, LOAD.ode_steps)
    assert h100.parts[part].flops <= 0.78 * reference


@pytest.mark.parametrize("chunk", ["first chunk", "steady 1"])
def test_captured_speech_does_what_plain_speech_does(h100, chunk):
    """The same kernels and bytes but for the copies around them; one upload for the solve and one for the fill."""
    short = chunk.removeprefix("steady ")
    for plain, captured, uploads in (("ODE", "captured ODE", 2), ("vocoder", "captured vocoder", 0)):
        plain, captured = (h100.parts[f"{name} {chunk if 'ODE' in name else short}"] for name in (plain, captured))
        assert captured.uploads == uploads
        assert abs(captured.launches - plain.launches) <= 8
        assert 0.99 * plain.num_bytes <= captured.num_bytes <= 1.1 * plain.num_bytes


def test_captured_passes_of_unequal_lengths_upload_the_lengths(h100):
    assert h100.parts["captured vocoder padded"].uploads == 1


@pytest.mark.parametrize("part", ["vocoder 1", "captured vocoder 1"])
def test_an_activation_of_the_vocoder_is_one_read_and_one_write(h100, part):
    calls = [c for c in h100.parts[part].calls if c.name == "alias_free_snake"]
    samples = [int(np.prod(eval(c.shapes[0].removeprefix("bfloat16")))) for c in calls]
    assert len(calls) == 7 * 4 * 6 + 1
    assert sum(c.cost.num_bytes for c in calls) <= 1.1 * 2 * 2 * sum(samples)


def test_every_operator_of_ours_has_a_gpu_kernel_and_one_or_two_launches(h100):
    calls = [c for part in h100.parts.values() for c in part.calls if c.backend not in ("torch", "reference")]
    assert {c.backend for c in calls} <= {"triton", "cuda"}
    assert all(1 <= c.launches <= 2 for c in calls)


def test_uploads_of_a_step_do_not_grow_with_the_batch(h100):
    assert h100.parts["decode speech 1"].uploads == h100.parts["decode speech 64"].uploads <= 3
    assert h100.parts["captured decode speech 64"].uploads == 1


def test_the_report_says_that_it_is_projected(h100):
    projection = project(h100, gpu("h100"), None, 64)
    text = text_report(projection)
    assert "PROJECTED" in text and "not measured" in text
    assert projection.memory.fits(gpu("h100").memory)
    assert not project(h100, gpu("l4"), None, 64).memory.fits(gpu("l4").memory)


def _recorded(work) -> None:
    recorder = Recorder(90)
    with fake_cuda() as device:
        x = torch.empty(4, 8, device=device)
        with recorder.part("wrong"):
            work(x)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[0, 0].item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool(x[0, 0]),
        lambda x: torch.zeros(4, 8).to(x.device),
    ],
)
def test_waiting_for_the_device_is_an_error_that_names_the_operator(work):
    with pytest.raises(RehearsalError, match=r"in 'wrong'.*wait"):
        _recorded(work)


def test_mixed_devices_are_an_error():
    with pytest.raises(RuntimeError, match=r"(?i)device"):
        _recorded(lambda x: x + torch.zeros(4, 8))
    with pytest.raises(RehearsalError, match="on cuda"):
        _recorded(lambda x: torch.ops.antiphon.silu_mul(torch.zeros(4, 8)))


def test_both_encoders_run_without_waiting_for_each_other_or_the_device():
    """What the engine starts beside the language model: two uploads a segment (sound, and lengths), nothing read back."""
    recorder, shapes = Recorder(90), packed_shapes(nano())
    with fake_cuda() as device:
        model = build(nano(), shapes, device)
        _make_constants(model, LOAD)
        encoder = AudioEncoder(model.whisper, model.tokenizer)
        with recorder.part("encoders") as part:
            encoding = encoder.start([np.zeros(20_000, np.float32), np.zeros(9_000, np.float32)], [True, False])
    assert {c.name for c in part.calls} >= {"encoder_attention", "vq_nearest"} and 0 < part.uploads <= 6
    assert all(t.device.type == "cuda" for t in (*encoding._features.values(), *encoding._arrivals._tensors))


def test_one_upload_carries_all_arrays():
    recorder = Recorder(90)
    arrays = [np.arange(5), np.ones((2, 3), np.int32), np.zeros(0, np.float32)]
    with fake_cuda() as device, recorder.part("upload") as part:
        tensors = upload(arrays, device)
    assert [(tuple(t.shape), t.device.type) for t in tensors] == [((5,), "cuda"), ((2, 3), "cuda"), ((0,), "cuda")]
    assert part.uploads == 1 and part.launches == 0


def test_upload_to_the_cpu_shares_memory():
    array = np.arange(4)
    (tensor,) = upload([array], torch.device("cpu"))
    array[0] = 7
    assert tensor[0] == 7
