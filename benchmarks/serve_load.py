"""Load on a server: ``python -m benchmarks.serve_load --url http://127.0.0.1:8000 --scenario chat --concurrency 16``.

Closed loop with ``--concurrency`` clients, or Poisson arrivals with ``--rate``. Reports percentiles of TTFT and TTFA (from the end of
the request, or of the user's speech), gaps between pieces of sound, viability (share of pieces in time), RTF, errors and memory.

The whole acceptance test, with servers of its own (``--serve``); the second one's limit is what its clients fill, so that a flood
can only be refused:

    python -m benchmarks.serve_load --serve examples/demo_model --serve-options "--set max_sequences=24" \\
        --clients chat=16,realtime=8 --turns 3 --phases steady,leave --seconds 180,30
    python -m benchmarks.serve_load --serve examples/demo_model --serve-options "--set max_in_flight=6" \\
        --clients chat=6 --phases flood --seconds 30

Ends with 1 and says why if anything happened that must not: an error, growth of memory, something left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import urllib.request
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

from .report import add_json_option, publish, table
from .serve_clients import CLIENTS, SCENARIOS, Target
from .serve_phases import PHASES, Client, Phase
from .serve_process import serving
from .serve_summary import COLUMNS, MEMORY_COLUMNS, plot

T = TypeVar("T")


def main() -> int:
    arguments = parse()
    own = (
        serving(arguments.serve, arguments.serve_options.split())
        if arguments.serve
        else contextlib.nullcontext(arguments.url)
    )
    with own as url:
        model = arguments.model or served_model(url, arguments.key)
        target = Target(url.rstrip("/"), model, arguments.key, arguments.hangup, arguments.turns)
        phases = run_loop(run(arguments, target))
    rows = [row for phase in phases for row in phase.rows]
    memory = [row for phase in phases for row in phase.memory]
    failures = [failure for phase in phases for failure in phase.failures]
    print(table([row for row in rows if "requests" in row], COLUMNS))
    for row in rows:
        if "requests" not in row:
            print(
                ", ".join(
                    f"{name} {value:.3g}" if isinstance(value, float) else f"{value}" for name, value in row.items()
                )
            )
    if memory:
        print(table(memory, MEMORY_COLUMNS))
    if arguments.plot:
        plot([m for phase in phases for m in phase.measured], arguments.plot)
    more = {"seconds": [phase.seconds for phase in phases], "model": model, "memory": memory, "failures": failures}
    publish("serve_load", rows, arguments.json, **more)
    print("\n".join(failures), file=sys.stderr)
    return int(bool(failures) and arguments.strict)


def run_loop(work: Coroutine[None, None, T]) -> T:
    """``asyncio.run``, on uvloop where it is installed: the clients share the server's processors."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def run(arguments: argparse.Namespace, target: Target) -> list[Phase]:
    """All phases, one after the other."""
    done = []
    for name, seconds in zip(arguments.phases, arguments.seconds):
        done.append(await PHASES[name](arguments.mix, target, seconds, arguments.rate))
    return done


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a server that runs")
    where.add_argument("--serve", metavar="MODEL", help="start one over this folder (or `null`) for the test")
    parser.add_argument("--serve-options", default="", help="more arguments of `antiphon serve`")
    parser.add_argument("--model", help="default: the one that is served")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="chat")
    parser.add_argument("--concurrency", type=int, default=4, help="clients of the closed loop")
    parser.add_argument("--clients", metavar="KIND=N,...", help=f"clients by kind instead; kinds: {', '.join(CLIENTS)}")
    parser.add_argument(
        "--rate", type=float, help="arrivals per second instead of a closed loop; of a flood: how many more"
    )
    parser.add_argument(
        "--phases", default="steady", help=f"of {', '.join(PHASES)}, with commas between (default: steady)"
    )
    parser.add_argument(
        "--seconds", default="30", help="of each phase, with commas between, or one for all (default: 30)"
    )
    parser.add_argument("--turns", type=int, default=1, help="questions of one realtime session")
    parser.add_argument("--hangup", type=float, default=0.0, help="share of the clients that leave in the middle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lenient", dest="strict", action="store_false", help="end with 0 whatever happened")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    add_json_option(parser)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    try:
        arguments.mix = mix(arguments)
        arguments.phases = arguments.phases.split(",")
        seconds = [float(one) for one in arguments.seconds.split(",")]
        arguments.seconds = seconds * len(arguments.phases) if len(seconds) == 1 else seconds
    except (ValueError, KeyError) as error:
        parser.error(f"not understood: {error}")
    if not set(arguments.phases) <= set(PHASES) or len(arguments.seconds) != len(arguments.phases):
        parser.error(f"--phases are of {', '.join(PHASES)}, with one number of --seconds or as many")
    return arguments


def mix(arguments: argparse.Namespace) -> list[Client]:
    """The clients of the closed loop."""
    if arguments.clients is None:
        kinds = SCENARIOS[arguments.scenario]
        return [kinds[number % len(kinds)] for number in range(arguments.concurrency)]
    named = dict(one.split("=") for one in arguments.clients.split(","))
    return [CLIENTS[name] for name, count in named.items() for _ in range(int(count))]


def served_model(url: str, key: str) -> str:
    """The first model of ``/v1/models``."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(
        urllib.request.Request(url.rstrip("/") + "/v1/models", headers=headers), timeout=10
    ) as answer:
        return json.load(answer)["data"][0]["id"]


if __name__ == "__main__":
    sys.exit(main())
