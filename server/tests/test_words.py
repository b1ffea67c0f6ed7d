"""A text that is tokenized by its words has the tokens that the library finds in the whole."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import qwen3_nano
from qwen3_triton_gateway import words
from qwen3_triton_gateway.segments import Segmenter, create_segmenter
from qwen3_triton_gateway.words import WordTokens

# Plain characters of every kind, contractions, and what is left to the library.
CHARACTERS = "abXYZ éßſ Жω عس 한글 's 'Ll 'VE 0123 ,.;:!<=>|_-' – — “ ” ‘ ’ … • € \n \r \t"
TEXTS = st.lists(
    st.one_of(
        st.text(alphabet=CHARACTERS, max_size=8),
        st.sampled_from(["<|endoftext|>", "<|im_", "\u0301", "你好", "\x1c", "a" * 40, " " * 40]),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(name="nano", scope="module")
def _nano() -> Tokenizer:
    return Tokenizer.from_file(str(qwen3_nano.model_dir() / "tokenizer.json"))


@pytest.fixture(name="by_words", scope="module")
def _by_words(nano: Tokenizer) -> WordTokens:
    return WordTokens(nano, create_segmenter(nano))


def found_by_library(nano: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [nano.encode(text, add_special_tokens=False).ids for text in texts]


def found_by_words(by_words: WordTokens, texts: Sequence[str]) -> list[list[int]]:
    return [ids.tolist() for ids in by_words.encode(texts)]


@given(texts=st.lists(TEXTS, max_size=4))
@settings(max_examples=200, deadline=None)
def test_words_have_the_tokens_of_their_texts(
    nano: Tokenizer, by_words: WordTokens, texts: list[str]
) -> None:
    assert found_by_words(by_words, texts) == found_by_library(nano, texts)


def test_the_library_splits_around_every_plain_character_as_we_do(
    nano: Tokenizer, by_words: WordTokens
) -> None:
    plain = [chr(code) for code in range(0xAC00) if not words.NOT_PLAIN.search(chr(code))]
    hangul = [chr(code) for code in range(0xAC00, 0xD7A4, 97)]
    texts = [f"{c}{c} {c}x 1{c}2 '{c} .{c} !{c}\n{c}'s{c}  {c}" for c in plain + hangul]
    assert found_by_words(by_words, texts) == found_by_library(nano, texts)


def test_of_an_unknown_tokenizer_no_words_are_assumed(nano: Tokenizer) -> None:
    by_words = WordTokens(nano, Segmenter(whole_tokens=(), knows_words=False))
    assert found_by_words(by_words, ["two words"]) == found_by_library(nano, ["two words"])
    assert len(by_words) == 0


def test_what_is_remembered_is_bounded(nano: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 10)
    by_words = WordTokens(nano, create_segmenter(nano))
    letters = "abcdefgh"
    for text in (f"{a}{b}{c} {c}{a}{b}" for a in letters for b in letters for c in letters):
        assert found_by_words(by_words, [text]) == found_by_library(nano, [text])
        assert len(by_words) <= 10


def test_threads_share_what_is_remembered(nano: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 10)
    by_words = WordTokens(nano, create_segmenter(nano))
    texts = [f"{first} {second}" for first in "abcdefgh" for second in "ABCDEFGH"]
    whole = found_by_library(nano, texts)
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda _: found_by_words(by_words, texts), range(40))
    assert all(run == whole for run in runs)
