"""``antiphon serve``: OpenAI's HTTP interface, Realtime and a web page over one model."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from .options import add_model_options, add_weight_options, chosen_compact

ENGINE_OPTIONS = (
    "max_sequences", "token_budget", "kv_bytes", "kv_pages", "max_speech_batch", "max_waiting", "decode_steps_per_launch",
)  # fmt: skip


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over HTTP and WebSocket",
        description="Serve chat with audio, transcription and live voice conversation to OpenAI clients. Every option can "
        "stand in a YAML file (--config), with the command line in front of it; docs/serving.md explains them. "
        "ANTIPHON_API_KEY, if set, is a key that clients must send.",
    )
    add_model_options(parser)
    add_weight_options(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of options; `engine_options` for the engine's")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8000)")
    parser.add_argument("--served-name", help="the model's name in the API (default: its folder's name)")
    parser.add_argument("--engine", choices=("process", "thread"), help="where the engine runs (default: process)")
    parser.add_argument("--store", help="conversations: memory, a file, or redis://… (default: memory)")
    parser.add_argument("--api-keys-file", help="file with accepted keys, one a line")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other option, as YAML")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        from ..server.run import serve
    except ImportError as error:
        raise ConfigError(f"{error}; `antiphon serve` needs the extra: pip install 'antiphon[serve]'") from error
    config, engine_options = _configuration(arguments)
    serve(config, _spec(arguments, engine_options))
    return 0


def _configuration(arguments: argparse.Namespace):
    """Defaults, then the file, then the command line."""
    import yaml

    from ..environment import api_key
    from ..server.config import ServerConfig, read_config, with_options

    options = read_config(arguments.config) if arguments.config else {}
    for name in ("model", "device", "dtype", "speech_tokenizer", "draft", "compact"):
        if name in options:
            raise ConfigError(f"{arguments.config}: {name} is an option of the command line (--{name.replace('_', '-')})")
    engine_options = options.pop("engine_options", {}) or {}
    for name in ("host", "port", "served_name", "engine", "store", "api_keys_file"):
        if getattr(arguments, name) is not None:
            options[name] = getattr(arguments, name)
    for item in arguments.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: expected NAME=VALUE")
        target = engine_options if name in ENGINE_OPTIONS else options
        target[name] = yaml.safe_load(value)
    config = with_options(ServerConfig(), options)
    if api_key():
        config = dataclasses.replace(config, api_keys=(*config.api_keys, api_key()))
    return config, engine_options


def _spec(arguments: argparse.Namespace, engine_options: dict):
    from ..engine_config import EngineConfig
    from ..engine_spec import ModelSpec
    from ..null_engine import NullSpec

    if arguments.model == "null":
        return NullSpec()
    unknown = set(engine_options) - {field.name for field in dataclasses.fields(EngineConfig)}
    if unknown:
        raise ConfigError(f"unknown engine options: {', '.join(sorted(unknown))}")
    if Path(arguments.model).is_absolute() and not Path(arguments.model).is_dir():
        raise CheckpointError(f"{arguments.model} is not a folder")
    return ModelSpec(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        speech_tokenizer=arguments.speech_tokenizer,
        draft=arguments.draft,
        compact=chosen_compact(arguments),
        config=EngineConfig(**{"keep_text_branch": True, **engine_options}),
    )
