"""Text: the byte-level tokenizer and incremental UTF-8 decoding."""

from .stream import TextStream
from .tokenizer import TextTokenizer, special_token_names

__all__ = ["TextStream", "TextTokenizer", "special_token_names"]
