"""``antiphon inspect MODEL``: the model card of a checkpoint, without loading its weights."""

from __future__ import annotations

import argparse

from ..environment import default_model


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "inspect", help="sizes, parameters and memory of a checkpoint", description="Print a checkpoint's model card."
    )
    parser.add_argument(
        "model", nargs="?", default=default_model(), metavar="MODEL", help="folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--speech-tokenizer", metavar="DIR", help="GLM-4-Voice tokenizer, folder or hub name")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="to be loaded as (default: bfloat16)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from ..inspect import model_card

    print(model_card(arguments.model, arguments.speech_tokenizer, getattr(torch, arguments.dtype)))
    return 0
