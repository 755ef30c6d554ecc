"""A conversation as the model saw it: both token streams and the recordings behind the continuous positions.

Kept instead of messages, so that a next turn re-encodes nothing and finds its keys and values in the prefix cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .config import LlmConfig
from .execution.audio_encoder import EncodedAudio
from .prompt import Prompt
from .streams import TokenStreams


@dataclass(frozen=True, eq=False)
class Conversation:
    """Complete turns, [P] positions: audio_ids, text_ids, feature_rows int64; ``audios`` as in :class:`Prompt`."""

    audio_ids: torch.Tensor
    text_ids: torch.Tensor
    feature_rows: torch.Tensor
    audios: tuple[EncodedAudio, ...]

    def __len__(self) -> int:
        return len(self.audio_ids)

    def before(self, prompt: Prompt) -> Prompt:
        """The prompt of a next turn: this conversation, then ``prompt``."""
        offset = sum(audio.num_tokens for audio in self.audios)
        rows = torch.where(prompt.feature_rows >= 0, prompt.feature_rows + offset, prompt.feature_rows)
        feature_rows = torch.cat((self.feature_rows, rows))
        return replace(
            prompt,
            audio_ids=torch.cat((self.audio_ids, prompt.audio_ids)),
            text_ids=torch.cat((self.text_ids, prompt.text_ids)),
            feature_rows=feature_rows,
            continuous_mask=(feature_rows >= 0).to(torch.uint8),
            audios=self.audios + prompt.audios,
            all_audios=self.audios + prompt.all_audios,
        )

    @classmethod
    def after(cls, prompt: Prompt, streams: TokenStreams, config: LlmConfig) -> Conversation:
        """The conversation with the answer that was generated to ``prompt``, ended by ``msg_end`` if it was not."""
        special = config.special
        audio, text = list(streams.audio), list(streams.text)
        if not audio or audio[-1] != special.msg_end:
            audio.append(special.msg_end)
            text.append(special.text_blank)
        answer = torch.tensor([audio, text], dtype=torch.int64)
        return cls(
            audio_ids=torch.cat((prompt.audio_ids, answer[0])),
            text_ids=torch.cat((prompt.text_ids, answer[1])),
            feature_rows=torch.cat((prompt.feature_rows, torch.full_like(answer[0], -1))),
            audios=prompt.audios,
        )
