"""Is what comes through a server what the model says offline? ``python -m benchmarks.serve_round_trip --serve MODEL --manifest F``.

Every recording of an evaluation set is transcribed offline, over HTTP and over Realtime; every question is answered in speech by
each, and the speech transcribed back the same way. Compared with offline on the same sound (a realtime session hears 16-bit
samples at 24 kHz). ``--state FILE`` keeps what is done, so that a long run can be cut into pieces.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from antiphon.evaluation import ItemResult, Report, evaluate, read_manifest, summarise
from antiphon.evaluation.manifest import Row

from .report import add_json_option, publish, table
from .serve_clients import Target
from .serve_load import served_model
from .serve_models import VIA, as_sent
from .serve_process import serving

COLUMNS = (
    "way",
    "recordings",
    "same_transcripts",
    "questions",
    "same_answers",
    "right",
    "wer_all",
    "heard_wer",
    "heard_exact",
)
Results = dict[str, list[ItemResult]]


class AsSent:
    """The offline model, which hears what a realtime session would."""

    def __init__(self, model: Any):
        self.model = model

    def generate(self, messages: list[dict], **how: Any) -> tuple[Any, str]:
        """As the model's own."""
        last = messages[-1]
        return self.model.generate([*messages[:-1], last | {"content": as_sent(*last["content"])}], **how)


def main() -> int:
    arguments = parse()
    rows = read_manifest(arguments.manifest)
    state = load_state(arguments.state, rows)
    with serving(arguments.serve) if arguments.serve else contextlib.nullcontext(arguments.url) as url:
        target = Target(url.rstrip("/"), served_model(url, arguments.key), arguments.key)
        complete = fill(state, rows, ways(arguments.offline or arguments.serve, target), arguments)
    results = {way: [found[row.id] for row in rows if row.id in found] for way, found in state.items()}
    shown = compare(results)
    print(table(shown, COLUMNS))
    publish("serve_round_trip", shown, arguments.json, complete=complete)
    return 0 if complete else 3


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a server that runs; needs --offline")
    where.add_argument("--serve", metavar="MODEL", help="start one over this folder")
    parser.add_argument("--offline", metavar="MODEL", help="the same model's folder (default: that of --serve)")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--state", type=Path, help="file with what is done; rows in it are not run again")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin nothing after so long; ends with 3 if rows are left"
    )
    add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.url and not arguments.offline:
        parser.error("--url needs --offline")
    return arguments


def ways(path: str, target: Target) -> dict[str, Any]:
    """Everything that has ``generate``."""
    from antiphon import KimiAudio

    offline = KimiAudio(path)
    return {"offline": offline, "offline 24 kHz": AsSent(offline)} | {name: made(target) for name, made in VIA.items()}


def fill(
    state: dict[str, dict[str, ItemResult]], rows: Sequence[Row], models: dict, arguments: argparse.Namespace
) -> bool:
    """Run what is missing; False if the time was over before the end."""
    start = time.monotonic()
    for row in rows:
        for way, model in models.items():
            if row.id in state.setdefault(way, {}):
                continue
            if time.monotonic() - start > arguments.seconds:
                return False
            (item,) = evaluate(model, [row], speech=True)
            state[way][row.id] = item
            print(f"{row.id} {way}: {item.transcript or ''} → {item.answer or ''} ⇒ {item.heard or ''}", flush=True)
            if arguments.state is not None:
                line = dataclasses.asdict(item) | {"row": row.id, "way": way}
                with arguments.state.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    return True


def load_state(path: Path | None, rows: Sequence[Row]) -> dict[str, dict[str, ItemResult]]:
    """What an earlier run has done, by way and row."""
    by_id, state = {row.id: row for row in rows}, {}
    if path is not None and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            way, row = item.pop("way"), by_id[item.pop("row")]
            state.setdefault(way, {})[row.id] = ItemResult(row=row, **item)
    return state


def compare(results: Results) -> list[dict]:
    """A row for each way; ``same_*``: as offline on the same sound."""
    shown = []
    for way, items in results.items():
        base = {item.row.id: item for item in results["offline 24 kHz" if way == "realtime" else "offline"]}
        pairs = [(item, base[item.row.id]) for item in items if item.row.id in base]
        report: Report = summarise(items)
        shown.append(
            {
                "way": way,
                "recordings": sum(item.transcript is not None for item in items),
                "same_transcripts": sum(a.transcript is not None and a.transcript == b.transcript for a, b in pairs),
                "questions": sum(item.answer is not None for item in items),
                "same_answers": sum(a.answer is not None and a.answer == b.answer for a, b in pairs),
                "right": report.answer_accuracy,
                "wer_all": report.plain.wer_all,
                "heard_wer": report.plain.round_trip_wer,
                "heard_wer_normalised": report.usual.round_trip_wer,
                "heard_exact": report.round_trip_exact,
            }
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
