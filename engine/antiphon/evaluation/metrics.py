"""Error rates as the field computes them: normalise both texts, align, count (jiwer, whisper-normalizer).

English goes through Whisper's English normaliser. It writes numbers as digits and joins neighbours: "one two three" becomes the
one word "123". A list of numbers with one slip is then one wrong word out of one, so beside the usual rate we keep a second
one over plain words (lower case, no punctuation), which is also how the demo checkpoint's own numbers were computed.
Chinese (any text with a Han character) is counted by character, for both rates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True)
class ErrorRate:
    """Edits and reference length, in words or characters; adds up over items."""

    errors: int = 0
    total: int = 0

    def __add__(self, other: ErrorRate) -> ErrorRate:
        return ErrorRate(self.errors + other.errors, self.total + other.total)

    @property
    def rate(self) -> float | None:
        """Edits per reference unit, None without any reference."""
        return self.errors / self.total if self.total else None


def has_han(text: str) -> bool:
    """Whether ``text`` is treated as Chinese."""
    return _HAN.search(text) is not None


def normalise(text: str, *, chinese: bool) -> str:
    """Whisper's English normaliser, or its basic one with Han characters set apart by spaces."""
    english, basic = _normalisers()
    if not chinese:
        return english(text)
    return " ".join(_HAN.sub(lambda match: f" {match[0]} ", basic(text)).split())


def plain_words(text: str, *, chinese: bool) -> str:
    """Lower case, no punctuation, numbers as they are written; Han characters set apart."""
    _, basic = _normalisers()
    return normalise(text, chinese=True) if chinese else " ".join(basic(text).split())


def word_errors(reference: str, hypothesis: str, *, plain: bool = False) -> ErrorRate:
    """Word edits of ``hypothesis`` after normalisation; Han characters count as words."""
    chinese = has_han(reference)
    rule = plain_words if plain else normalise
    return _count("process_words", rule(reference, chinese=chinese), rule(hypothesis, chinese=chinese))


def char_errors(reference: str, hypothesis: str) -> ErrorRate:
    """Character edits after normalisation; between Han characters there are no spaces."""
    chinese = has_han(reference)
    texts = [normalise(text, chinese=chinese) for text in (reference, hypothesis)]
    if chinese:
        texts = [text.replace(" ", "") for text in texts]
    return _count("process_characters", *texts)


def total(rates: Iterable[ErrorRate]) -> ErrorRate:
    """The sum: errors over all items per reference length over all items, not a mean of rates."""
    return sum(rates, ErrorRate())


@lru_cache(maxsize=1)
def _normalisers():
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer(), BasicTextNormalizer()


def _count(method: str, reference: str, hypothesis: str) -> ErrorRate:
    import jiwer

    if not reference:  # jiwer refuses an empty reference; everything said is then an insertion
        said = hypothesis.split() if method == "process_words" else hypothesis
        return ErrorRate(len(said), 0)
    out = getattr(jiwer, method)(reference, hypothesis)
    return ErrorRate(out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions)
