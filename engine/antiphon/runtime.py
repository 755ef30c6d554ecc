"""A model in memory: every part of a checkpoint loaded, on one device, in one dtype."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from antiphon_kernels import native

from . import checkpoint
from .checkpoint.compact import resolve_compact
from .checkpoint.network_weights import choose_arrangement
from .config import NUM_SPECIAL_TOKENS, ModelConfig
from .draft import check_draft, load_draft
from .errors import ConfigError
from .execution.audio_encoder import AudioEncoder
from .models.bigvgan import BigVgan
from .models.dual_qwen import DualQwen
from .models.flow_dit import FlowDit
from .models.speech_tokenizer import SpeechTokenizer
from .models.whisper_encoder import WhisperEncoder
from .prompt import PromptBuilder
from .text import TextTokenizer

logger = logging.getLogger(__name__)

SMALL_MODEL_PARAMETERS = 200_000_000
"""Below this many parameters ``auto`` keeps float32 on a CPU, although bfloat16 is faster with AMX (docs/cpu.md)."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Runtime:
    """All parts of a model, ready to run; ``flow`` and ``vocoder`` are None when it was loaded without a voice.

    ``draft``: the language model with quantised matrices, which makes decoding cheaper, or None.
    """

    config: ModelConfig
    tokenizer: TextTokenizer
    builder: PromptBuilder
    encoder: AudioEncoder
    llm: DualQwen
    flow: FlowDit | None
    vocoder: BigVgan | None
    dtype: torch.dtype
    device: torch.device
    draft: DualQwen | None = None

    @property
    def can_speak(self) -> bool:
        return self.flow is not None


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is the first CUDA device if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: PyTorch {torch.__version__} sees no CUDA device; use 'cpu' or 'auto'")
    return chosen


def check_instruction_set() -> None:
    """``ANTIPHON_CPU_ISA``, which the native module reads at its first use, names one of this CPU's.

    Raises:
        ConfigError: it does not.
    """
    try:
        native.status()
    except ValueError as error:
        raise ConfigError(f"ANTIPHON_CPU_ISA: {error}; choose one of these or unset it") from error


def resolve_dtype(dtype: str | torch.dtype, device: torch.device, num_parameters: int) -> torch.dtype:
    """``auto`` is bfloat16, as in the official code, except float32 for small models on a CPU."""
    if dtype == "auto":
        small = device.type == "cpu" and num_parameters < SMALL_MODEL_PARAMETERS
        return torch.float32 if small else torch.bfloat16
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ConfigError(f"dtype {dtype!r}: expected 'auto', 'float32' or 'bfloat16'")
    return chosen


def load_runtime(
    path: str | Path,
    *,
    load_detokenizer: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    speech_tokenizer: str | Path | None = None,
    cache_bytes: int = 256 << 20,
    draft: str | Path | None = None,
    compact: bool | None = None,
) -> Runtime:
    """Load a model in the official layout (folder or hub name).

    Args:
        load_detokenizer: False leaves out DiT and vocoder; the model then only writes.
        dtype: working precision of everything but the speech tokenizer, which is float32 as in the official code.
        cache_bytes: memory for encoded recordings, by content.
        draft: ``int8``, ``int4`` or the folder of a converted checkpoint: quantised matrices beside the model's own
            propose tokens, which the model checks several at a time; the tokens stay the same. On a CPU only.
        compact: hold bfloat16 matrices without loss in 12 bits a weight, so that a CPU reads three quarters of the bytes in
            decoding, three eighths in float32; the results are the same bits. None: where that pays. False: all matrices, those of the other networks
            as well, lie as they are stored.

    Raises:
        CheckpointError, ConfigError: as ``checkpoint.load_model_config`` and the loaders say.
    """
    config = checkpoint.load_model_config(path, speech_tokenizer, load_detokenizer)
    place = resolve_device(device)
    if place.type == "cpu":
        check_instruction_set()
    if draft is not None:
        check_draft(draft, config, place)
    llm = config.llm
    layers = llm.num_layers + llm.num_audio_layers
    size = layers * llm.hidden_size * (llm.qkv_size + llm.hidden_size + 3 * llm.intermediate_size)
    working = resolve_dtype(dtype, place, size + 3 * llm.vocab_size * llm.hidden_size)
    smaller = resolve_compact(compact, config, working, place)
    networks, float32 = (choose_arrangement(compact, kind, place) for kind in (working, torch.float32))
    logger.info("loading %s as %s on %s", config.path, working, place)
    tokenizer = TextTokenizer.from_file(config.path / "tiktoken.model", llm.audio_token_offset - NUM_SPECIAL_TOKENS)
    whisper = WhisperEncoder(checkpoint.load_whisper(config, working, place, networks), config.whisper)
    codes = SpeechTokenizer(
        checkpoint.load_speech_tokenizer(config, torch.float32, place, float32), config.speech_tokenizer
    )
    model = DualQwen(llm, checkpoint.load_llm(config, working, place, smaller))
    return Runtime(
        config=config,
        tokenizer=tokenizer,
        builder=PromptBuilder(tokenizer, llm),
        encoder=AudioEncoder(whisper, codes, cache_bytes=cache_bytes),
        llm=model,
        flow=FlowDit(config.flow, checkpoint.load_flow(config, working, place, networks)) if config.flow else None,
        vocoder=BigVgan(config.vocoder, checkpoint.load_vocoder(config, working, place)) if config.vocoder else None,
        dtype=working,
        device=place,
        draft=None if draft is None else load_draft(draft, config, model),
    )
