"""The asyncio face over both backends: deltas, abandonment, errors, death and return."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from antiphon.async_engine import AsyncEngine
from antiphon.deltas import AudioDelta, FinishDelta, TextDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.engine_process import ProcessBackend
from antiphon.engine_spec import ModelSpec
from antiphon.engine_thread import ThreadBackend
from antiphon.errors import EngineDeadError, EngineError, InputError, OverloadedError
from antiphon.null_engine import NullSpec
from antiphon.request import GenerationRequest, SamplingParams

SLOW = NullSpec(steps=10_000, step_seconds=0.002)
BACKENDS = pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend])


def text(words):
    return [{"role": "user", "message_type": "text", "content": words}]


def request(words="hello", output_type="text", limit=-1, seed=3):
    return GenerationRequest(text(words), output_type, SamplingParams(max_new_tokens=limit, seed=seed))


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 120))


async def idle(engine, seconds=3.0):
    """Wait until neither side holds a request."""
    end = time.monotonic() + seconds
    while engine.num_in_flight or engine.statistics.running or engine.statistics.waiting:
        assert time.monotonic() < end, engine.statistics
        await asyncio.sleep(0.02)


@BACKENDS
def test_a_stream_of_typed_deltas(backend):
    async def main():
        async with AsyncEngine(backend(NullSpec(steps=3))) as engine:
            deltas = [delta async for delta in engine.generate(request(output_type="both"))]
            assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "word word word "
            assert sum(len(d.pcm) for d in deltas if isinstance(d, AudioDelta)) == 3 * 4800
            assert isinstance(deltas[-1], FinishDelta) and deltas[-1].usage.steps == 3
            assert engine.num_in_flight == 0 and engine.info.can_speak

    run(main)


@BACKENDS
def test_errors_are_typed_and_end_one_request_alone(backend):
    async def main():
        async with AsyncEngine(backend(NullSpec(steps=50, step_seconds=0.002))) as engine:
            good = engine.generate(request())
            bad = engine.generate(GenerationRequest([{"role": "robot"}]))
            with pytest.raises(InputError, match="robot"):
                await bad.accepted()
            await good.accepted()
            assert isinstance([delta async for delta in good][-1], FinishDelta)

    run(main)


@BACKENDS
def test_abandoned_requests_end(backend):
    async def main():
        async with AsyncEngine(backend(SLOW)) as engine:
            streams = [engine.generate(request()) for _ in range(4)]
            for stream in streams:
                await anext(stream)
            await streams[0].aclose()

            async def consume():
                async for _ in streams[1]:
                    pass

            task = asyncio.create_task(consume())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            streams[2].abort()
            streams.clear()
            del stream
            await idle(engine)

    run(main)


def test_a_slow_reader_gets_larger_deltas_and_in_the_end_an_error():
    async def main():
        async with AsyncEngine(ThreadBackend(NullSpec(steps=40, step_seconds=0.001))) as engine:
            stream = engine.generate(request())
            await asyncio.sleep(0.3)
            first = await anext(stream)
            assert first.text.count("word") > 10
        async with AsyncEngine(ThreadBackend(SLOW), max_buffered_bytes=100_000) as engine:
            stream = engine.generate(request(output_type="both"))
            with pytest.raises(EngineError, match="100000 bytes"):
                await asyncio.sleep(0.5)
                async for _ in stream:
                    await asyncio.sleep(0.5)
            await idle(engine)

    run(main)


def test_more_requests_than_allowed_are_refused():
    async def main():
        async with AsyncEngine(ThreadBackend(SLOW), max_in_flight=2) as engine:
            held = [engine.generate(request()) for _ in range(2)]
            with pytest.raises(OverloadedError):
                engine.generate(request())
            held[0].abort()
            assert await anext(engine.generate(request())) is not None
        async with AsyncEngine(ThreadBackend(NullSpec(steps=10_000, step_seconds=0.002, max_in_flight=1))) as engine:
            first = engine.generate(request())
            await anext(first)
            with pytest.raises(OverloadedError):
                await engine.generate(request()).accepted()

    run(main)


def test_killed_under_load_everyone_hears_of_it_and_service_returns():
    async def main():
        async with AsyncEngine(ProcessBackend(dataclasses.replace(SLOW, load_seconds=1.0))) as engine:
            streams = [engine.generate(request()) for _ in range(16)]
            for stream in streams:
                await anext(stream)

            async def until_error(stream):
                with pytest.raises(EngineDeadError):
                    async for _ in stream:
                        pass
                return time.monotonic()

            tasks = [asyncio.create_task(until_error(stream)) for stream in streams]
            await asyncio.sleep(0.1)
            killed = time.monotonic()
            os.kill(engine.backend.pid, signal.SIGKILL)
            assert max(await asyncio.gather(*tasks)) - killed < 1.0
            with pytest.raises(EngineDeadError, match="restarting"):
                engine.generate(request())
            await engine.wait_ready(60)
            deltas = [delta async for delta in engine.generate(request(limit=2))]
            assert isinstance(deltas[-1], FinishDelta) and engine.num_deaths == 1

    run(main)


def test_an_engine_that_hangs_counts_as_dead():
    async def main():
        backend = ProcessBackend(NullSpec(step_seconds=1000.0), step_timeout=1.0)
        async with AsyncEngine(backend) as engine:
            with pytest.raises(EngineDeadError, match="code 70"):
                await anext(engine.generate(request()))
            await engine.wait_ready(60)

    run(main)


def test_a_model_that_cannot_be_loaded_is_said_once(tmp_path):
    async def main():
        for backend in (ThreadBackend, ProcessBackend):
            engine = AsyncEngine(backend(ModelSpec(str(tmp_path))))
            with pytest.raises(EngineDeadError, match="failed"):
                await engine.start(60)
            await engine.close()

    run(main)


@BACKENDS
def test_the_model_answers_as_it_does_in_the_plain_engine(backend, tiny, tiny_runtime):
    sound = (np.sin(np.arange(8000) / 9).astype(np.float32), 16000)
    spoken = GenerationRequest(
        [{"role": "user", "message_type": "audio", "content": sound}], "both", SamplingParams(max_new_tokens=45, seed=7)
    )
    plain = Engine(tiny_runtime, EngineConfig(max_sequences=1))
    plain.add(spoken)
    expected = []
    while plain.has_work:
        expected += [output.delta for output in plain.step()]

    async def main():
        spec = ModelSpec(str(tiny), device="cpu", dtype="float32", config=EngineConfig(max_sequences=4))
        async with AsyncEngine(backend(spec)) as engine:
            streams = [engine.generate(spoken, keep=index == 0) for index in range(3)]
            for stream in streams:
                check([delta async for delta in stream], expected)
            kept = streams[0].conversation
            assert kept is not None and streams[1].conversation is None
            turn = engine.generate(request("and?", limit=1), history=kept.conversation)
            usage = [delta async for delta in turn][-1].usage
            assert usage.prompt_tokens > kept.prompt_len and usage.cached_tokens >= kept.prompt_len

    def check(deltas, expected):
        for kind, field in ((TextDelta, "text"), (AudioDelta, "pcm")):
            got, want = ([getattr(d, field) for d in some if isinstance(d, kind)] for some in (deltas, expected))
            if kind is TextDelta:
                assert "".join(got) == "".join(want)
            else:
                np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=2e-5)
        assert deltas[-1].usage.steps == expected[-1].usage.steps

    run(main)


def test_a_main_module_without_a_guard_is_an_error_and_no_hang(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import asyncio\n"
        "from antiphon.async_engine import AsyncEngine\n"
        "from antiphon.engine_process import ProcessBackend\n"
        "from antiphon.null_engine import NullSpec\n"
        "async def main():\n"
        "    async with AsyncEngine(ProcessBackend(NullSpec())) as engine:\n"
        "        print('ready')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode != 0 and "EngineDeadError: the engine is failed" in done.stderr
