"""A conversation whose last answer was interrupted: the model must remember only what was heard."""

from __future__ import annotations

import torch

from .config import LlmConfig
from .conversation import Conversation

MILLISECONDS_PER_TOKEN = 80


def truncate(conversation: Conversation, prompt_len: int, heard_ms: int, config: LlmConfig) -> Conversation:
    """``conversation`` with its last answer cut behind ``heard_ms`` of sound and ended by ``msg_end``.

    Args:
        prompt_len: positions before the answer.
    """
    heard = max(0, heard_ms) // MILLISECONDS_PER_TOKEN
    end = prompt_len + (config.audio_delay + heard if heard else 0)
    if end >= len(conversation):
        return conversation
    special = config.special

    def cut(stream: torch.Tensor, last: int) -> torch.Tensor:
        return torch.cat((stream[:end], stream.new_tensor([last])))

    return Conversation(
        audio_ids=cut(conversation.audio_ids, special.msg_end),
        text_ids=cut(conversation.text_ids, special.text_blank),
        feature_rows=cut(conversation.feature_rows, -1),
        audios=conversation.audios,
    )
