"""Options that several commands share, and the model that they describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..environment import HUB_MODEL, default_model
from ..errors import CheckpointError
from ..progress import StatusLine

if TYPE_CHECKING:
    from ..api import KimiAudio

SAMPLING = (
    ("audio_temperature", float, 0.0),
    ("audio_top_k", int, 5),
    ("text_temperature", float, 0.0),
    ("text_top_k", int, 5),
    ("audio_repetition_penalty", float, 1.0),
    ("audio_repetition_window_size", int, 64),
    ("text_repetition_penalty", float, 1.0),
    ("text_repetition_window_size", int, 16),
    ("max_new_tokens", int, -1),
)
"""The official sampling arguments: name, type, official default."""
COMPACT = {"auto": None, "on": True, "off": False}
"""Values of ``--compact``."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--device``, ``--dtype``, ``--speech-tokenizer``."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=default_model(),
        metavar="M",
        help="folder in the official layout, or a hub name (default: $ANTIPHON_MODEL, else the released checkpoint: "
        "%(default)s)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    group.add_argument(
        "--speech-tokenizer",
        metavar="DIR",
        help="GLM-4-Voice tokenizer, folder or hub name (default: inside the model folder)",
    )


def add_weight_options(parser: argparse.ArgumentParser) -> None:
    """``--draft`` and ``--compact``, for commands that run the model through the engine."""
    parser.add_argument(
        "--draft",
        metavar="int8|int4|DIR",
        help="on a CPU: a quantised copy of the language model (made now, or DIR of `antiphon quantize`) proposes tokens "
        "that the model checks; same tokens, more memory (docs/quantisation.md)",
    )
    parser.add_argument(
        "--compact",
        default="auto",
        choices=tuple(COMPACT),
        help="on a CPU: hold matrices of a bfloat16 checkpoint in 12 bits a weight, without loss; same results, less memory (default: auto, "
        "where it decodes faster; docs/quantisation.md)",
    )


def chosen_compact(arguments: argparse.Namespace) -> bool | None:
    """``--compact`` as ``load_runtime`` takes it; None for commands without the option."""
    return COMPACT[getattr(arguments, "compact", "auto")]


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The official sampling arguments with dashes, and ``--seed``."""
    group = parser.add_argument_group("sampling (official names and defaults)")
    for name, kind, default in SAMPLING:
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=default, metavar=kind.__name__, help=f"default: {default}"
        )
    group.add_argument("--seed", type=int, help="same seed, same tokens and samples (default: a fresh one)")


def sampling_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``KimiAudio.generate`` from :func:`add_sampling_options`."""
    return {name: getattr(arguments, name) for name, _, _ in SAMPLING} | {"seed": arguments.seed}


def load_model(arguments: argparse.Namespace, *, load_detokenizer: bool, status: StatusLine) -> KimiAudio:
    """The model of :func:`add_model_options`; raises what ``KimiAudio`` raises."""
    status.show(f"loading {arguments.model}")
    import antiphon

    try:
        return antiphon.KimiAudio(
            arguments.model,
            load_detokenizer=load_detokenizer,
            device=arguments.device,
            dtype=arguments.dtype,
            speech_tokenizer=arguments.speech_tokenizer,
            draft=getattr(arguments, "draft", None),
            compact=chosen_compact(arguments),
        )
    except CheckpointError as error:
        if arguments.model == HUB_MODEL:  # nobody chose it: say how to choose
            raise CheckpointError(f"{error}; --model or ANTIPHON_MODEL name another") from error
        raise
    finally:
        status.clear()
