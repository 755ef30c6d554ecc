"""The ``antiphon`` command: one module in ``commands`` per subcommand, errors as one line and an exit code.

Exit codes: 0 done; 2 the caller's mistake (``antiphon: error: …`` on stderr); 130 interrupted; 1 our own mistake, with
its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .errors import AntiphonError, ConfigError

COMMANDS = ("transcribe", "chat", "inspect", "trace", "eval", "quantize", "plan", "serve")
"""Modules of :mod:`antiphon.commands`; each has ``add(subparsers)`` and imports nothing heavy before it runs."""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand; its namespace carries ``run``, the function to call."""
    parser = argparse.ArgumentParser(
        prog="antiphon", description="Inference for Kimi-Audio: speech and text in, text and speech out."
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f".commands.{name}", __package__).add(subparsers)
    return parser


def check_backend() -> None:
    """``ANTIPHON_BACKEND``, which the kernels read when they are imported, names one of theirs.

    Raises:
        ConfigError: it does not.
    """
    if "ANTIPHON_BACKEND" in os.environ:
        try:
            importlib.import_module("antiphon_kernels")
        except ValueError as error:
            raise ConfigError(f"ANTIPHON_BACKEND: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` without the program name, by default the process's own."""
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message; --help is 0, anything wrong is 2
        return int(stop.code or 0)
    try:
        check_backend()
        return arguments.run(arguments)
    except AntiphonError as error:
        print(f"antiphon: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("antiphon: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `antiphon … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


if __name__ == "__main__":
    sys.exit(main())
