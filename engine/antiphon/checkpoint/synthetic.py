"""Synthetic checkpoints: random weights in the official layout, of any size, for benchmarks and tests.

    python -m antiphon.checkpoint.synthetic OUT --preset 0.5b --seed 0

The large files are written tensor by tensor, so memory use is that of the largest tensor (the two ``.pt`` files: of
the file). What the official files carry beyond what counts is written too: the GLM tokenizer's EMA statistics, second
position table and final norm, the detokenizer's ``resampler.kernel``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..config import ModelConfig
from ..errors import AntiphonError, CheckpointError
from . import expected, random_weights
from .expected import Shapes
from .locate import check_fit
from .official_files import write_byte_ranks, write_config_files
from .presets import PRESETS
from .random_weights import Rule
from .safetensors_files import SINGLE
from .safetensors_writer import Pieces, write_safetensors, write_sharded
from .source import ENCODER_PREFIX, FLOW_PREFIX

SHARD_BYTES = 5_000_000_000


def write_checkpoint(
    config: ModelConfig, folder: Path, seed: int = 0, shard_bytes: int = SHARD_BYTES, tokenizer_from: Path | None = None
) -> ModelConfig:
    """Write a checkpoint of ``config`` with random weights into ``folder`` and return the configuration placed there.

    Args:
        config: any configuration; DiT and vocoder are written if it has them.
        folder: must be absent or empty.
        seed: same seed, same bytes, whatever the order in which tensors are written.
        shard_bytes: a language model that is larger is split into shards with an index.
        tokenizer_from: folder whose ``tiktoken.model`` is copied; otherwise an untrained byte-level one is made.
    """
    check_fit(config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not an empty folder; give a new one")
    write_config_files(config, folder)
    _write_tokenizer(config, folder, tokenizer_from)
    _write_llm(config, folder, seed, shard_bytes)
    _write_encoders(config, folder, seed)
    if config.flow is not None:
        _write_flow(config, folder / "audio_detokenizer" / "model.pt", seed)
    if config.vocoder is not None:
        _write_vocoder(config, folder / "vocoder" / "model.pt", seed)
    return replace(config, path=folder, speech_tokenizer_path=folder / "glm-4-voice-tokenizer")


def _write_tokenizer(config: ModelConfig, folder: Path, tokenizer_from: Path | None) -> None:
    target, num_base = folder / "tiktoken.model", config.llm.special.msg_end - 2
    if tokenizer_from is None:
        return write_byte_ranks(target, num_base)
    source = tokenizer_from / "tiktoken.model"
    found = sum(1 for line in source.read_bytes().splitlines() if line) if source.is_file() else 0
    if found != num_base:
        raise CheckpointError(f"{source} has {found} ranks; the configuration needs {num_base}")
    shutil.copyfile(source, target)


def _write_llm(config: ModelConfig, folder: Path, seed: int, shard_bytes: int) -> None:
    shapes = expected.llm_keys(config.llm)
    pieces = _pieces(seed, "llm", shapes, torch.bfloat16, random_weights.llm_rule(config))
    write_sharded(folder, shapes, torch.bfloat16, pieces, shard_bytes)


def _write_encoders(config: ModelConfig, folder: Path, seed: int) -> None:
    glm = config.speech_tokenizer
    d, codes = glm.encoder.d_model, glm.codebook_size
    extras: Shapes = {
        "layer_norm.weight": (d,),
        "layer_norm.bias": (d,),
        "embed_positions2.weight": (glm.encoder.max_positions // glm.pooling_size, d),
        "ema_count": (codes,),
        "ema_weight": (codes, d),
    }
    parts = [
        ("whisper-large-v3", expected.whisper_keys(config.whisper), torch.float16, config.whisper.num_layers),
        ("glm-4-voice-tokenizer", expected.speech_tokenizer_keys(glm) | extras, torch.float32, glm.encoder.num_layers),
    ]
    for part, shapes, dtype, num_layers in parts:
        named = {ENCODER_PREFIX + key: shape for key, shape in shapes.items()}
        rule = random_weights.encoder_rule(num_layers)
        pieces = _pieces(seed, part, named, dtype, rule)
        write_safetensors(folder / part / SINGLE, named, dtype, pieces)


def _pieces(seed: int, part: str, shapes: Shapes, dtype: torch.dtype, rule: Rule) -> Pieces:
    return lambda key: random_weights.values(seed, part, key, shapes[key], dtype, rule(key, shapes[key]))


def _write_flow(config: ModelConfig, path: Path, seed: int) -> None:
    shapes = expected.flow_keys(config.flow)
    pieces = _pieces(seed, "flow", shapes, torch.float16, random_weights.flow_rule)
    tensors = {FLOW_PREFIX + key: _whole(pieces, key, shape) for key, shape in shapes.items()}
    _save(path, {"state_dict": tensors | {"resampler.kernel": torch.zeros(1, 1, 31)}})


def _write_vocoder(config: ModelConfig, path: Path, seed: int) -> None:
    shapes = expected.vocoder_keys(config.vocoder)
    rule = random_weights.vocoder_rule(config)
    half = _pieces(seed, "vocoder", shapes, torch.float16, rule)
    full = _pieces(seed, "vocoder", shapes, torch.float32, rule)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith("filter"):
            tensors[key] = random_weights.anti_alias_taps().view(shape)
        else:
            tensors[key] = _whole(full if ".act." in key else half, key, shape)
    _save(path, {"generator": tensors})


def _whole(pieces: Pieces, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.cat(list(pieces(key))).view(shape)


def _save(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(content), path)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="antiphon.checkpoint.synthetic", description="Write a synthetic checkpoint.")
    parser.add_argument("out", type=Path, metavar="OUT", help="new or empty folder")
    parser.add_argument("--preset", choices=PRESETS, default="0.5b", help="size (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: %(default)s)")
    parser.add_argument("--no-detokenizer", action="store_true", help="leave out DiT and vocoder")
    parser.add_argument(
        "--shard-gb", type=float, default=SHARD_BYTES / 1e9, help="largest LLM file (default: %(default)s)"
    )
    parser.add_argument("--tokenizer-from", type=Path, metavar="DIR", help="copy DIR/tiktoken.model")
    options = parser.parse_args(arguments)
    config = PRESETS[options.preset](options.out)
    if options.no_detokenizer:
        config = replace(config, flow=None, vocoder=None)
    try:
        write_checkpoint(config, options.out, options.seed, int(options.shard_gb * 1e9), options.tokenizer_from)
    except AntiphonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    total = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: preset {options.preset}, seed {options.seed}, {total / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
