"""The text tokenizer against golden cases, its special tokens, long inputs, and damaged rank files."""

from __future__ import annotations

import base64
import json

import pytest

from antiphon.errors import CheckpointError, InputError
from antiphon.text import TextTokenizer, special_token_names
from antiphon.text.tokenizer import MAX_ENCODE_CHARS, MAX_RUN_CHARS, split_runs


@pytest.fixture(scope="session")
def tokenizer(fixtures) -> TextTokenizer:
    return TextTokenizer.from_file(fixtures / "tiny" / "tiktoken.model", num_base=1024)


@pytest.fixture(scope="session")
def cases(fixtures) -> dict:
    return json.loads((fixtures / "golden" / "tokenizer.json").read_text(encoding="utf-8"))


def test_encode_matches_golden(tokenizer, cases):
    assert len(cases["encode"]) == 68
    for case in cases["encode"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_decode_matches_golden(tokenizer, cases):
    assert len(cases["decode"]) == 24
    for case in cases["decode"]:
        assert tokenizer.decode(case["ids"]) == case["text"], case["ids"]


def test_special_tokens_match_golden(tokenizer, cases):
    assert tokenizer.num_base == cases["num_base"]
    assert tokenizer.special_tokens == cases["special_tokens"]
    assert len(tokenizer.special_tokens) == 421


def test_reserved_names_count_in_index_order():
    names = special_token_names()
    assert (names[5], names[34], names[420]) == (
        "<|reserved_token_0|>", "<|reserved_token_20|>", "<|reserved_token_406|>",
    )  # fmt: skip


def test_special_names_are_ordinary_text(tokenizer):
    for name in special_token_names():
        ids = tokenizer.encode(name)
        assert max(ids) < tokenizer.num_base and tokenizer.decode(ids) == name


@pytest.mark.parametrize("token", [-1, 1445, 10**9])
def test_decode_refuses_ids_that_are_not_text(tokenizer, token):
    with pytest.raises(InputError, match=f"text id {token}.*1445"):
        tokenizer.decode([0, token])


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize(
    "text, limit, parts",
    [
        ("", 3, [""]),
        ("abc", 3, ["abc"]),
        ("abcd", 3, ["abc", "d"]),
        ("abcdefg", 3, ["abc", "def", "g"]),
        ("ab cd ef", 3, ["ab cd ef"]),
        ("ab    cd", 3, ["ab   ", " cd"]),
        ("a\n\t \u3000b", 2, ["a\n\t", " \u3000b"]),
    ],
)
def test_split_runs(text, limit, parts):
    assert list(split_runs(text, limit)) == parts


def test_long_inputs_are_cut_before_merging(tokenizer):
    run = "ab" * (MAX_RUN_CHARS // 2)
    assert len(run) == MAX_RUN_CHARS
    assert tokenizer.encode(run + "cd") == tokenizer.encode(run) + tokenizer.encode("cd")
    words = "ab " * (MAX_ENCODE_CHARS // 3)
    filled = words + "a" * (MAX_ENCODE_CHARS - len(words))
    assert tokenizer.encode(filled + "bc") == tokenizer.encode(filled) + tokenizer.encode("bc")
    assert tokenizer.decode(tokenizer.encode(filled + run)) == filled + run


def _rank_lines(num: int = 300) -> list[bytes]:
    pieces = [bytes([i]) for i in range(256)] + [bytes([97, i]) for i in range(num - 256)]
    return [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(pieces)]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: [], "holds no ranks"),
        (lambda lines: [*lines[:4], b"no base64!", *lines[5:]], "line 5"),
        (lambda lines: [*lines[:4], b"QQ==", *lines[5:]], "line 5"),
        (lambda lines: lines[1:], "every rank from 0"),
        (lambda lines: [*lines[:-1], base64.b64encode(b"xyz") + b" 0"], "every rank from 0"),
        (lambda lines: [base64.b64encode(b"xyz") + b" 0", *lines[1:]], "no rank for 1 single bytes.*0x00"),
        (lambda lines: lines[:-1], "299 ranks.*implies 300"),
    ],
)
def test_damaged_rank_files_are_named(tmp_path, change, message):
    path = tmp_path / "tiktoken.model"
    path.write_bytes(b"\n".join(change(_rank_lines())))
    with pytest.raises(CheckpointError, match=message) as caught:
        TextTokenizer.from_file(path, num_base=300)
    assert str(path) in str(caught.value)


def test_missing_rank_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"tiktoken\.model is missing"):
        TextTokenizer.from_file(tmp_path / "tiktoken.model")
