"""Error rates against counts made by hand."""

from __future__ import annotations

import pytest

from antiphon.evaluation.metrics import ErrorRate, char_errors, normalise, total, word_errors


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "words"),
    [
        ("the sky is blue", "The sky is blue.", 0, 4),
        ("the sky is blue", "the sky was", 2, 4),
        ("i won't go", "I will not go", 0, 4),
        ("twenty five dollars", "$25", 0, 1),
        ("colour", "color", 0, 1),
        ("hello", "", 1, 1),
        ("", "hello there", 2, 0),
    ],
)
def test_english_words(reference, hypothesis, errors, words):
    assert word_errors(reference, hypothesis) == ErrorRate(errors, words)


def test_numbers_are_joined_by_the_usual_normaliser_and_not_by_the_plain_one():
    said, heard = "one two three four five", "one two tree four five"
    assert normalise(said, chinese=False) == "12345"
    assert word_errors(said, heard) == ErrorRate(3, 1)
    assert word_errors(said, heard, plain=True) == ErrorRate(1, 5)


@pytest.mark.parametrize("plain", [False, True])
def test_chinese_counts_characters(plain):
    assert word_errors("四月三日，我们见面。", "四月三号我们见面", plain=plain) == ErrorRate(1, 8)
    assert word_errors("用 GPU 跑", "用GPU跑", plain=plain) == ErrorRate(0, 3)


def test_characters():
    assert char_errors("the sky", "the sly") == ErrorRate(1, 7)
    assert char_errors("四月三日", "四 月 三 号") == ErrorRate(1, 4)
    assert char_errors("", "ab") == ErrorRate(2, 0)


def test_totals_weigh_by_length():
    assert total([ErrorRate(1, 1), ErrorRate(0, 9)]).rate == 0.1
    assert total([]).rate is None
