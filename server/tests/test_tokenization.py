from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

import qwen3_nano
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.tensors import TokenCount
from qwen3_triton_gateway.tokenization import TextTokenizer, format_inputs

# What a text is made of where it may be split early, and what forbids that: combining marks,
# contractions, digits, runs of spaces and line ends.
LETTERS_AND_SEPARATORS = (
    "abcdeXYZ é ß 你好世界 , . ; : ! ？ 。 ， \u0301 's 'll 12 \n\r\t  ² य\u093e"
)
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


@cache
def nano_tokenizer(max_length: int) -> TextTokenizer:
    """A tokenizer that examples share, because reading its file takes much longer than they do."""
    return TextTokenizer(qwen3_nano.model_dir(), max_length=max_length)


@given(st.text(alphabet=LETTERS_AND_SEPARATORS, max_size=400), st.integers(2, 12))
@pytest.mark.slow
def test_a_huge_text_is_shortened_first_and_has_the_tokens_of_the_whole(
    text: str, max_length: int
) -> None:
    tokenizer = nano_tokenizer(max_length)
    (early,) = tokenizer.encode([text])
    (whole,) = tokenizer.encode([text], cut="start")  # this side is never cut early
    (reference,) = nano_tokenizer(10_000).encode([text])
    assert early.input_ids[:-1].tolist() == reference.input_ids[: early.length - 1].tolist()
    assert early.count.truncated == whole.count.truncated
    assert early.count.total <= reference.length
    if early.count.exact:
        assert early.count.total == reference.length


def test_a_huge_text_takes_no_longer_than_its_beginning() -> None:
    tokenizer = TextTokenizer(qwen3_nano.model_dir(), max_length=16)
    (cut,) = tokenizer.encode(["whales sing " * 1_000_000])
    assert cut.count == TokenCount(kept=16, total=cut.count.total, exact=False)
    assert cut.count.total < 1000


def test_a_huge_text_of_few_tokens_is_not_shortened() -> None:
    tokenizer = TextTokenizer(qwen3_nano.model_dir(), max_length=64)
    text = "word" + " " * 2000 + ". end"
    (kept,) = tokenizer.encode([text])
    assert kept.count.exact


def test_tokens_are_listed_with_their_offsets() -> None:
    tokenizer = TextTokenizer(qwen3_nano.model_dir(), max_length=4)
    text = "Bread rises, since yeast grows."
    (listed,) = tokenizer.list_tokens([text], add_special_tokens=True)
    assert "".join(token.text for token in listed[:-1]) == text
    assert [text[token.start : token.stop] for token in listed[:-1]] == [
        token.text for token in listed[:-1]
    ]
    assert (listed[-1].text, listed[-1].special, listed[-1].start) == ("<|endoftext|>", True, None)


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
