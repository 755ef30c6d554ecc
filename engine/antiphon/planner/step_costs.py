"""Roofline times of the engine's steps on a named GPU: bytes over bandwidth or operations over arithmetic, whichever is
longer, each at an assumed share of the published figure. A projection, never a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..config import FRAMES_PER_TOKEN, EncoderConfig, LlmConfig, ModelConfig, VocoderConfig
from .gpus import GpuSpec


@dataclass(frozen=True)
class Efficiency:
    """Assumed shares of the published figures, and fixed times in seconds.

    gemm, vocoder_conv: of the tensor cores' arithmetic. bandwidth: of the memory's. step_overhead: launches and host work of
    one language-model step that nothing hides. speech_overhead: the same for one ODE solve with its vocoder pass.
    """

    gemm: float = 0.6
    vocoder_conv: float = 0.25
    bandwidth: float = 0.8
    step_overhead: float = 0.5e-3
    speech_overhead: float = 2e-3


@dataclass(frozen=True)
class Work:
    """Bytes that move and operations that are done in one part of a step."""

    num_bytes: float
    flops: float


class StepCosts:
    """Times of one engine on one GPU, bf16 weights and cache. Implements the scheduler's ``CostModel``.

    Args:
        evaluations: network passes per chunk, Euler steps plus the one that fills the window.
        window_frames: mel frames of history that every ODE evaluation attends to.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        model: ModelConfig,
        evaluations: int = 30,
        efficiency: Efficiency = Efficiency(),
        window_frames: int = 900,
        bytes_per_weight: float = 2.0,
    ):
        assert model.flow is not None and model.vocoder is not None
        self.gpu = gpu
        self.model = model
        self.evaluations = evaluations
        self.efficiency = efficiency
        self.window_frames = window_frames
        self.weight_bytes = bytes_per_weight
        self._layer = layer_params(model.llm)

    # -- the scheduler's CostModel -------------------------------------------------------------------------------

    def llm_step(self, prefill_tokens: int, decode_rows: int) -> float:
        """A step in which every row runs both branches, with 400 positions of context each."""
        rows = prefill_tokens + decode_rows
        return self.step(rows, rows, rows, decode_rows + 1, decode_rows + 1, 400 * (decode_rows + 1))

    def speech(self, frames: Sequence[int]) -> float:
        """Solve and vocode chunks of so many mel frames in one batch."""
        return self.flow(frames) + self.vocoder(sum(frames)) + self.efficiency.speech_overhead

    # -- parts -----------------------------------------------------------------------------------------------------

    def step(
        self, rows: int, text_rows: int, audio_rows: int, text_heads: int, audio_heads: int, context: int
    ) -> float:
        """One ragged language-model step. ``context``: cached positions read, summed over the sequences."""
        c = self.model.llm
        kv = 2 * c.num_kv_heads * c.head_dim * 2
        parts = [
            self._layers(c.num_trunk_layers, rows, kv * context),
            self._layers(c.num_text_layers, text_rows, kv * context * text_rows / max(rows, 1)),
            self._layers(c.num_audio_layers, audio_rows, kv * context * audio_rows / max(rows, 1)),
            self._gemm(c.vocab_size * c.hidden_size, text_heads),
            self._gemm(c.vocab_size * c.hidden_size, audio_heads),
        ]
        return self.efficiency.step_overhead + sum(self._seconds(part) for part in parts)

    def flow(self, frames: Sequence[int]) -> float:
        """All evaluations of one ragged batch of chunks; conditioning once per token, not per frame."""
        c, n = self.model.flow, sum(frames)
        mixing = c.depth * (4 + 2 * c.mlp_ratio) * c.hidden_size**2
        modulation = c.depth * 6 * c.hidden_size**2
        attention = sum(4 * c.hidden_size * f * (f + self.window_frames) for f in frames) * c.depth
        window = 2 * c.hidden_size * self.window_frames * len(frames) * c.depth * 2
        flops = 2 * mixing * n + 2 * modulation * n / FRAMES_PER_TOKEN + attention
        work = Work(self.weight_bytes * (mixing + modulation) + window, flops)
        return self.evaluations * self._seconds(work)

    def vocoder(self, frames: int) -> float:
        """BigVGAN over so many mel frames."""
        work = vocoder_work(self.model.vocoder, frames)
        return max(
            work.flops / (self.gpu.bf16_flops * self.efficiency.vocoder_conv),
            work.num_bytes / (self.gpu.bandwidth * self.efficiency.bandwidth),
        )

    def encode(self, seconds: float) -> float:
        """Whisper (always whole 30 s segments) and the speech tokenizer over one recording."""
        segments = -(-seconds // 30)
        whisper = encoder_work(self.model.whisper, int(segments * self.model.whisper.max_positions))
        tokenizer = encoder_work(self.model.speech_tokenizer.encoder, int(seconds * 50) + 1)
        return self._seconds(whisper) + self._seconds(tokenizer) + self.efficiency.step_overhead

    # -- memory ----------------------------------------------------------------------------------------------------

    @property
    def kv_page_bytes(self) -> tuple[int, int]:
        """Bytes of one page of 16 positions in the trunk and in one branch."""
        c = self.model.llm
        row = 16 * 2 * c.num_kv_heads * c.head_dim * 2
        return c.num_trunk_layers * row, c.num_audio_layers * row

    @property
    def window_bytes(self) -> float:
        """One stream's window of the flow network."""
        c = self.model.flow
        return 2.0 * c.hidden_size * self.window_frames * c.depth * 2

    @property
    def total_weight_bytes(self) -> float:
        """All parts of the model."""
        c, flow = self.model.llm, self.model.flow
        layers = c.num_layers + c.num_audio_layers
        llm = layers * self._layer + 3 * c.vocab_size * c.hidden_size
        encoders = (encoder_params(e) for e in (self.model.whisper, self.model.speech_tokenizer.encoder))
        dit = flow.depth * (10 + 2 * flow.mlp_ratio) * flow.hidden_size**2
        return self.weight_bytes * llm + 2.0 * (sum(encoders) + dit + vocoder_params(self.model.vocoder))

    def assumptions(self) -> dict[str, object]:
        """Everything the figures rest on, for printing."""
        return {
            "gpu": asdict(self.gpu),
            "efficiency": asdict(self.efficiency),
            "evaluations": self.evaluations,
            "bytes_per_weight": self.weight_bytes,
            "weights_gb": round(self.total_weight_bytes / 1e9, 1),
            "flow_window_mb_per_stream": round(self.window_bytes / 1e6),
            "kv_bytes_per_position": sum(self.kv_page_bytes) // 16 + self.kv_page_bytes[1] // 16,
            "execution": "one device queue: encoding, language model and speech take turns, nothing overlaps",
        }

    # -- rooflines ---------------------------------------------------------------------------------------------------

    def _layers(self, count: int, rows: int, kv_bytes: float) -> Work:
        if not rows:
            return Work(0, 0)
        return Work(count * (self.weight_bytes * self._layer + kv_bytes), 2.0 * count * self._layer * rows)

    def _gemm(self, params: int, rows: int) -> Work:
        return Work(self.weight_bytes * params, 2.0 * params * rows) if rows else Work(0, 0)

    def _seconds(self, work: Work) -> float:
        return max(
            work.num_bytes / (self.gpu.bandwidth * self.efficiency.bandwidth),
            work.flops / (self.gpu.bf16_flops * self.efficiency.gemm),
        )


def layer_params(config: LlmConfig) -> int:
    """Weights of one transformer layer of the language model."""
    attention = config.hidden_size * (config.qkv_size + config.num_heads * config.head_dim)
    return attention + 3 * config.hidden_size * config.intermediate_size


def encoder_params(config: EncoderConfig) -> int:
    """Weights of an encoder's layers."""
    return config.num_layers * (4 * config.d_model**2 + 2 * config.d_model * config.ffn_dim)


def encoder_work(config: EncoderConfig, rows: int) -> Work:
    """An encoder over ``rows`` frames after the convolutions."""
    attention = 4.0 * config.num_layers * config.d_model * rows * min(rows, config.max_positions)
    return Work(2.0 * encoder_params(config), 2.0 * encoder_params(config) * rows + attention)


def vocoder_params(config: VocoderConfig) -> int:
    """Weights of BigVGAN, up to the small first and last convolutions."""
    return sum(up + blocks for up, blocks, _ in _vocoder_stages(config))


def vocoder_work(config: VocoderConfig, frames: int) -> Work:
    """BigVGAN over ``frames``: per residual unit two convolutions and two activations, each one read and one write."""
    flops = num_bytes = 0.0
    for stage, (up, blocks, samples) in enumerate(_vocoder_stages(config)):
        channels = config.upsample_initial_channel >> (stage + 1)
        units = sum(len(d) for d in config.resblock_dilation_sizes)
        flops += 2.0 * frames * samples * (up / config.upsample_rates[stage] + blocks)
        num_bytes += 2.0 * frames * samples * channels * units * 8
    return Work(num_bytes + 2.0 * vocoder_params(config), flops)


def _vocoder_stages(config: VocoderConfig) -> list[tuple[int, int, int]]:
    """Per stage: weights of the transposed convolution, weights of its residual blocks, samples per mel frame."""
    stages, samples = [], 1
    for index, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)):
        samples *= rate
        channels = config.upsample_initial_channel >> (index + 1)
        sizes = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        blocks = sum(2 * len(dilations) * size for size, dilations in sizes) * channels**2
        stages.append((2 * channels * channels * kernel, blocks, samples))
    return stages
