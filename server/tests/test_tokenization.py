from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

import qwen3_nano
from qwen3_triton_gateway import tokenization
from qwen3_triton_gateway.errors import InvalidRequestError, StartupError
from qwen3_triton_gateway.segments import create_segmenter
from qwen3_triton_gateway.tensors import TokenCount
from qwen3_triton_gateway.tokenization import CutSide, TextTokenizer, format_inputs

# What texts are made of around cuts, and what forbids one: combining marks, jamo, contractions,
# digits of several scripts, emoji, runs of spaces and line ends, special tokens.
CHARACTERS = (
    "abXYZ éßñ 你好世 , . ; : ! ？ 。 ， <=>|_-' 's 'll 'T ſ 0123 ²½٣ \u0301\u0338 यक\u093e กข 가"
    "\u1100\u1161\u11a8 🧬👍\u200d \n\r\t\u00a0\u2003\u180e\u200b\x1c\x85"
)
TEXTS = st.lists(
    st.one_of(
        st.text(alphabet=CHARACTERS, max_size=4),
        st.sampled_from(["<|endoftext|>", "<|im_end|>", "A\u0300", "   \n  \n", "...\n\n"]),
    ),
    max_size=40,
).map("".join)
NANO = qwen3_nano.model_dir()
VOCABULARY = {"a": 0, "b": 1, "c": 2, "<|endoftext|>": 3, "<|im_end|>": 4}


def write_tokenizer(folder: Path, *, appended: str | None, drop_end_token: bool = False) -> Path:
    vocabulary = dict(VOCABULARY)
    if drop_end_token:
        del vocabulary["<|endoftext|>"]
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if appended:
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {appended}", special_tokens=[(appended, VOCABULARY[appended])]
        )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("appended", ["<|endoftext|>", "<|im_end|>", None])
def test_every_text_ends_with_one_end_token_whatever_the_file_appends(
    tmp_path: Path, appended: str | None
) -> None:
    tokenizer = TextTokenizer(write_tokenizer(tmp_path, appended=appended), max_length=10)
    texts = tokenizer.encode(["a b c", "b"])
    assert [text.input_ids.tolist() for text in texts] == [[0, 1, 2, 3], [1, 3]]
    assert [text.count.truncated for text in texts] == [False, False]
    assert tokenizer.appends_end_token is (appended == "<|endoftext|>")


def test_truncation_keeps_the_end_token_and_is_reported(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(write_tokenizer(tmp_path, appended=None), max_length=3)
    fits, cut = tokenizer.encode(["a b", "a b c c c"])
    assert (fits.input_ids.tolist(), fits.count) == ([0, 1, 3], TokenCount(kept=3, total=3))
    assert (cut.input_ids.tolist(), cut.count) == ([0, 1, 3], TokenCount(kept=3, total=6))
    assert cut.count.truncated


def test_the_start_is_truncated_on_request(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(write_tokenizer(tmp_path, appended=None), max_length=3)
    (cut,) = tokenizer.encode(["a b c c b"], cut="start")
    assert cut.input_ids.tolist() == [2, 1, 3]


@pytest.fixture(name="nano", scope="module")
def _nano() -> Tokenizer:
    return Tokenizer.from_file(str(qwen3_nano.model_dir() / "tokenizer.json"))


@pytest.fixture(name="tokenizer", scope="module")
def _tokenizer() -> TextTokenizer:
    return TextTokenizer(NANO, max_length=16)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_the_tokens_of_both_sides_of_a_cut_are_those_of_the_whole(
    nano: Tokenizer, text: str
) -> None:
    segmenter = create_segmenter(nano)
    assert segmenter.knows_words
    cuts = {segmenter.end_of(text, 0, characters) for characters in range(1, len(text))}
    for cut in cuts - {None}:
        assert ids(nano, text[:cut]) + ids(nano, text[cut:]) == ids(nano, text)


@given(text=TEXTS, max_length=st.integers(2, 12), side=st.sampled_from(["end", "start"]))
@settings(max_examples=150, deadline=None)
def test_a_text_that_is_tokenized_in_parts_has_the_tokens_of_the_whole(
    nano: Tokenizer, tokenizer: TextTokenizer, text: str, max_length: int, side: CutSide
) -> None:
    whole = ids(nano, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "CHARACTERS_PER_TOKEN", 1)
        (parts,) = tokenizer.encode([text], cut=side, limit=max_length)
    room = max_length - 1
    kept = whole[:room] if side == "end" else whole[-room:]
    assert parts.input_ids.tolist() == [*kept, 0]
    assert parts.count.truncated == (len(whole) > room)
    total = len(whole) + 1
    assert parts.count.total == total if parts.count.exact else parts.count.total <= total


@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("character", ["a", "一", "🧬", "!", " ", "\n", "\u0301"])
def test_a_word_without_end_is_refused_by_the_number_of_its_text(
    tokenizer: TextTokenizer, character: str, side: CutSide
) -> None:
    with pytest.raises(InvalidRequestError, match="Text 1 has a word of more than 32768") as error:
        tokenizer.encode(["short", character * 1_000_000], cut=side)
    assert error.value.index == 1


@pytest.mark.parametrize(
    "unit", ["0123456789", "3.14,", "!a", "你好，", "नमस्ते ", "🧬 ", "\u0301 ", "word\n\n"]
)
def test_a_huge_text_of_any_script_is_tokenized_no_further_than_it_is_kept(
    tokenizer: TextTokenizer, unit: str
) -> None:
    for side in ("end", "start"):
        (kept,) = tokenizer.encode([unit * 500_000], cut=side)
        assert kept.count.kept == 16
        assert kept.count.total < 10_000


def test_a_huge_text_takes_no_longer_than_its_beginning() -> None:
    tokenizer = TextTokenizer(NANO, max_length=16)
    (cut,) = tokenizer.encode(["whales sing " * 1_000_000])
    assert cut.count == TokenCount(kept=16, total=cut.count.total, exact=False)
    assert cut.count.total < 1000


def test_a_long_text_of_few_tokens_is_not_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "CHARACTERS_PER_TOKEN", 1)
    tokenizer = TextTokenizer(NANO, max_length=64)
    (kept,) = tokenizer.encode(["whales sing " * 20])
    assert kept.count == TokenCount(kept=43, total=43)


def test_tokens_are_listed_with_their_offsets() -> None:
    tokenizer = TextTokenizer(NANO, max_length=4)
    text = "Bread rises, since yeast grows. " * 500  # several segments
    segments = tokenizer.list_tokens(text, add_special_tokens=True)
    listed: list[Any] = [token for segment in segments for token in segment]
    assert "".join(str(token["text"]) for token in listed[:-1]) == text
    assert [text[token["start"] : token["stop"]] for token in listed[:-1]] == [
        token["text"] for token in listed[:-1]
    ]
    end = listed[-1]
    assert (end["text"], end["special"], end["start"]) == ("<|endoftext|>", True, None)


def test_a_missing_tokenizer_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="TOKENIZER_PATH"):
        TextTokenizer(tmp_path, max_length=10)


def test_a_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartupError, match="is not a tokenizer file"):
        TextTokenizer(tmp_path, max_length=10)


def test_a_tokenizer_of_another_family_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, appended=None, drop_end_token=True)
    with pytest.raises(StartupError, match=r"has no token '<\|endoftext\|>'"):
        TextTokenizer(tmp_path, max_length=10)


def test_a_query_carries_the_instruction_with_no_space_after_the_colon() -> None:
    assert format_inputs(["What is the capital of China?"], input_type="query") == [
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
        "Query:What is the capital of China?"
    ]


def test_a_query_may_have_its_own_instruction() -> None:
    assert format_inputs([" x\n"], input_type="query", instruction="Find code") == [
        "Instruct: Find code\nQuery: x\n"
    ]


def test_a_document_is_left_unchanged() -> None:
    assert format_inputs(["  a\n\tb "], input_type="document") == ["  a\n\tb "]
