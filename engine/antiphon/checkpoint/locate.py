"""Where a model lies: a folder, or a name on the hub that is fetched on use; then its configuration."""

from __future__ import annotations

import re
from pathlib import Path

from ..config import (
    HOP_OUT,
    SAMPLE_RATE_OUT,
    EncoderConfig,
    FlowConfig,
    LlmConfig,
    ModelConfig,
    QuantizationConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from ..errors import CheckpointError, ConfigError

SPEECH_TOKENIZER_FOLDER = "glm-4-voice-tokenizer"
SPEECH_TOKENIZER_HUB_NAME = "THUDM/glm-4-voice-tokenizer"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_model_config(
    path: str | Path, speech_tokenizer: str | Path | None = None, load_detokenizer: bool = True
) -> ModelConfig:
    """Read and cross-check all configuration files of a model in the official layout.

    Args:
        path: a folder, or a hub name ``owner/name``, which is downloaded (or found in the hub's cache).
        speech_tokenizer: folder or hub name of the GLM-4-Voice tokenizer. Default: ``glm-4-voice-tokenizer/`` inside
            the model folder, else ``THUDM/glm-4-voice-tokenizer`` from the hub.
        load_detokenizer: False leaves out DiT and vocoder, whose folders may then be absent.

    Raises:
        CheckpointError: a folder or file is missing or cannot be parsed.
        ConfigError: a value is missing, unsupported, or the parts do not fit together.
    """
    folder = resolve(path)
    tokenizer = _speech_tokenizer_folder(folder, speech_tokenizer)
    flow = vocoder = None
    if load_detokenizer:
        flow = FlowConfig.from_file(folder / "audio_detokenizer" / "config.yaml")
        vocoder = VocoderConfig.from_file(folder / "vocoder" / "config.json")
    config = ModelConfig(
        path=folder,
        speech_tokenizer_path=tokenizer,
        llm=LlmConfig.from_file(folder / "config.json"),
        whisper=EncoderConfig.from_file(folder / "whisper-large-v3" / "config.json"),
        speech_tokenizer=SpeechTokenizerConfig.from_file(tokenizer / "config.json"),
        flow=flow,
        vocoder=vocoder,
        quantization=QuantizationConfig.from_file(folder / "config.json"),
    )
    check_fit(config)
    return config


def resolve(path: str | Path) -> Path:
    """The local folder of ``path``, a folder or a hub name; a hub name is downloaded if the hub's cache lacks it."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; expected the model's folder")
    if not HUB_NAME.fullmatch(str(path)):
        raise CheckpointError(
            f"there is no folder {folder}; expected a model in the official layout or a hub name owner/name"
        )
    return _download(str(path))


def check_fit(config: ModelConfig) -> None:
    """Raise :class:`ConfigError` where two parts disagree on a size that they share."""
    llm, codes = config.llm, config.speech_tokenizer.codebook_size
    pairs = [
        ("4 x Whisper d_model and kimia_adaptor_input_dim", 4 * config.whisper.d_model == llm.adaptor_input_dim),
        ("quantize_vocab_size and the audio vocabulary", codes <= llm.vocab_size - llm.audio_token_offset),
    ]
    if config.flow is not None and config.vocoder is not None:
        pairs += [
            ("quantize_vocab_size and semantic_vocab_size", codes <= config.flow.semantic_vocab_size),
            ("mel bins of detokenizer and vocoder", config.flow.num_mels == config.vocoder.num_mels),
            (f"the product of upsample_rates and {HOP_OUT}", config.vocoder.hop == HOP_OUT),
            (f"sampling_rate and {SAMPLE_RATE_OUT}", config.vocoder.sample_rate == SAMPLE_RATE_OUT),
        ]
    if wrong := [what for what, fits in pairs if not fits]:
        raise ConfigError(f"{config.path}: parts of different models? These do not fit: {'; '.join(wrong)}")


def _speech_tokenizer_folder(folder: Path, given: str | Path | None) -> Path:
    if given is not None:
        return resolve(given)
    inside = folder / SPEECH_TOKENIZER_FOLDER
    return inside if inside.is_dir() else _download(SPEECH_TOKENIZER_HUB_NAME)


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{name} is no local folder; pip install huggingface_hub to fetch it from the hub"
        ) from error
    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} is no local folder and could not be fetched from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no details'}); download it by hand and give its folder"
        ) from error
