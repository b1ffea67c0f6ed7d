from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.tokenization import TextTokenizer

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
    assert [text.truncated for text in texts] == [False, False]
    assert tokenizer.appends_end_token is (appended == "<|endoftext|>")


def test_truncation_never_cuts_the_end_token_and_is_told(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(write_tokenizer(tmp_path, appended=None), max_length=3)
    fits, cut = tokenizer.encode(["a b", "a b c c c"])
    assert (fits.input_ids.tolist(), fits.truncated) == ([0, 1, 3], False)
    assert (cut.input_ids.tolist(), cut.truncated, cut.total_tokens) == ([0, 1, 3], True, 6)


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
