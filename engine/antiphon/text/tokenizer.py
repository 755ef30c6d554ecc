"""Byte-level BPE from the official rank file (reference behaviour section 2)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from pathlib import Path

import tiktoken

from ..config import NUM_SPECIAL_TOKENS
from ..errors import CheckpointError, InputError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_ENCODE_CHARS = 400_000
MAX_RUN_CHARS = 25_000

_NAMED = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_msg_end|>",
    3: "<|im_user_msg_start|>",
    4: "<|im_assistant_msg_start|>",
    9: "[EOT]",
    18: "<|im_media_begin|>",
    20: "<|im_media_end|>",
    23: "<|im_kimia_text_blank|>",
    24: "<|im_kimia_text_eos|>",
    27: "<|im_kimia_user_msg_start|>",
    28: "<|im_kimia_assistant_msg_start|>",
    32: "<|im_kimia_speech_ct_id|>",
    33: "<|im_kimia_speech_ctd_id|>",
}


def special_token_names() -> tuple[str, ...]:
    """Names of all 421 special tokens in index order; unnamed ones count up as ``<|reserved_token_k|>``."""
    reserved = (f"<|reserved_token_{k}|>" for k in range(NUM_SPECIAL_TOKENS))
    return tuple(_NAMED.get(index) or next(reserved) for index in range(NUM_SPECIAL_TOKENS))


class TextTokenizer:
    """Text to ids and back. Ids below ``num_base`` are byte sequences, the 421 ids after them special tokens.

    Args:
        ranks: byte sequence -> rank, ranks 0..num_base-1, all 256 single bytes among them.
    """

    def __init__(self, ranks: dict[bytes, int]):
        self.num_base = len(ranks)
        self.special_tokens = {name: self.num_base + i for i, name in enumerate(special_token_names())}
        self._encoding = tiktoken.Encoding("kimi-audio", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._bytes = [b""] * (self.num_base + NUM_SPECIAL_TOKENS)
        for piece, rank in ranks.items():
            self._bytes[rank] = piece
        for name, token in self.special_tokens.items():
            self._bytes[token] = name.encode("utf-8")
        self.whole = _Whole(self)

    @classmethod
    def from_file(cls, path: Path, num_base: int | None = None) -> TextTokenizer:
        """Read ``tiktoken.model``: per line base64 of the bytes, a space, the rank.

        Args:
            num_base: expected number of ranks (token offset of the model's config minus 421), if known.

        Raises:
            CheckpointError: the file is missing, damaged, or has another number of ranks; names file and line.
        """
        ranks = _read_ranks(path)
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise CheckpointError(f"{path}: expected every rank from 0 to {len(ranks) - 1} once")
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise CheckpointError(f"{path}: no rank for {len(missing)} single bytes, the first is 0x{missing[0]:02x}")
        if num_base is not None and num_base != len(ranks):
            raise CheckpointError(f"{path}: {len(ranks)} ranks, but the model's config.json implies {num_base}")
        return cls(ranks)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``. Names of special tokens are ordinary text; nothing is added; ``""`` gives no ids."""
        ids: list[int] = []
        for start in range(0, len(text), MAX_ENCODE_CHARS):
            for part in split_runs(text[start : start + MAX_ENCODE_CHARS], MAX_RUN_CHARS):
                ids += self._encoding.encode_ordinary(part)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Joined bytes of ``ids``; a special id contributes its name. InputError for an id outside the text range."""
        return b"".join(self.piece(token) for token in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; each maximal ill-formed part of the UTF-8 becomes one U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def piece(self, token: int) -> bytes:
        """Bytes of one id; InputError for an id outside the text range."""
        if not 0 <= token < len(self._bytes):
            raise InputError(f"text id {token}: expected 0 <= id < {len(self._bytes)}")
        return self._bytes[token]


class _Whole(dict):
    """``whole[token]``: text of one id, None if its bytes are not complete characters; found at the first look."""

    def __init__(self, tokenizer: TextTokenizer):
        super().__init__()
        self._piece = tokenizer.piece

    def __missing__(self, token: int) -> str | None:
        try:
            self[token] = self._piece(token).decode("utf-8")
        except UnicodeDecodeError:
            self[token] = None
        return self[token]


def split_runs(text: str, limit: int) -> Iterator[str]:
    """Cut ``text`` inside every run of more than ``limit`` characters that are all, or all not, whitespace.

    A run longer than the limit would make BPE slow: its cost grows with the square of a piece. The cut falls after
    every ``limit`` characters of the run, as in the official tokenizer, so ids across a cut are never merged.
    """
    if len(text) <= limit:
        yield text
        return
    start, run, run_is_space = 0, 0, text[0].isspace()
    for i, character in enumerate(text):
        if character.isspace() != run_is_space:
            run, run_is_space = 1, not run_is_space
        elif run == limit:
            yield text[start:i]
            start, run = i, 1
        else:
            run += 1
    yield text[start:]


def _read_ranks(path: Path) -> dict[bytes, int]:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a Kimi-Audio folder in the official layout has it")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(f"{path} line {number}: expected base64, a space and a rank, got {line!r}") from error
    if not ranks:
        raise CheckpointError(f"{path} holds no ranks")
    return ranks
