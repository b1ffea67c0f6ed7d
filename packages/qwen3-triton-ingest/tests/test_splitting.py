"""Chunks fit the model, lose nothing, and take time linear in the length of the text."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway
from qwen3_triton_client import AuthenticationError, EmbeddingConnectionError
from qwen3_triton_ingest.config import GatewayOptions, SplitOptions
from qwen3_triton_ingest.documents import Document, Markup, Origin
from qwen3_triton_ingest.errors import IngestError
from qwen3_triton_ingest.splitting import Splitter, load_tokenizer, split_into_sections

TOKENIZER_FILE = Path(qwen3_nano.model_dir()) / "tokenizer.json"
TOKENIZER_JSON = TOKENIZER_FILE.read_bytes()
TOKENIZER = Tokenizer.from_file(str(TOKENIZER_FILE))
SMALL = SplitOptions(chunk_tokens=32, overlap_tokens=0)
TEXTS: dict[str, tuple[Markup, str]] = {
    "english": ("text", "The pump loses pressure. Check the seal, then the valve!\n\n" * 200),
    "chinese": ("text", "水泵压力下降。请先检查密封圈，然后检查阀门。\n" * 200),
    "code": ("text", Path(__file__).read_text("utf-8")),
    "emoji": ("text", "👨‍👩‍👧‍👦 family 🏳️‍🌈 e\u0301a\u0300 " * 300),
    "markdown": (
        "markdown",
        "# Title\n\nSome *text* with a [link](http://a.example/b).\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n- one\n- two\n" * 60,
    ),
    "one-word": ("text", "a" * 5000),
}


def document(text: str, markup: Markup = "text") -> Document:
    return Document("d", text, Origin("s", "p"), markup=markup)


def tokens(text: str) -> int:
    """As the gateway counts: the end token included."""
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids) + 1


@cache
def splitter_of(chunk_tokens: int) -> Splitter:
    """Return a splitter without overlap, which takes a tenth of a second to build."""
    return Splitter(SplitOptions(chunk_tokens=chunk_tokens, overlap_tokens=0), TOKENIZER_JSON)


def split(splitter: Splitter, text: str, markup: Markup = "text") -> list[str]:
    return [chunk.text for chunk in splitter.split(document(text, markup))]


def without_space(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("chunk_tokens", [16, 64, 512])
def test_chunks_fit_and_lose_nothing(name: str, chunk_tokens: int) -> None:
    markup, text = TEXTS[name]
    chunks = split(splitter_of(chunk_tokens), text, markup)
    assert len(chunks) > 1
    assert max(map(tokens, chunks)) <= chunk_tokens
    assert all(chunk.strip() for chunk in chunks)
    assert without_space("".join(chunks)) == without_space(text)


@given(st.text(max_size=400), st.sampled_from(["text", "markdown"]))
@example("\x1c\n\n\x1f", "text")
@settings(max_examples=150, deadline=None)
def test_any_text_is_split_without_loss(text: str, markup: Markup) -> None:
    chunks = split(splitter_of(32), text, markup)
    assert all(chunk.strip() for chunk in chunks)
    assert all(tokens(chunk) <= 32 for chunk in chunks)
    assert without_space("".join(chunks)) == without_space(text)


def test_chunks_overlap_as_requested() -> None:
    text = " ".join(f"word{number}" for number in range(2000))
    splitter = Splitter(SplitOptions(chunk_tokens=64, overlap_tokens=16), TOKENIZER_JSON)
    chunks = split(splitter, text)
    overlaps = [len(set(before.split()) & set(after.split())) for before, after in pairwise(chunks)]
    assert sum(1 for overlap in overlaps if overlap) > 0.9 * len(overlaps)


def test_markdown_is_split_before_headings() -> None:
    section = "## Part {}\n\n" + "One sentence about it. " * 6 + "\n\n"
    text = "".join(section.format(number) for number in range(10))
    chunks = split(splitter_of(64), text, "markdown")
    assert [chunk for chunk in chunks if "## Part" in chunk] == [
        chunk for chunk in chunks if chunk.startswith("## Part")
    ]


def test_zero_tokens_keep_a_document_whole() -> None:
    splitter = Splitter(SplitOptions(chunk_tokens=0), None)
    text = TEXTS["english"][1]
    assert split(splitter, text) == [text]


def test_a_truncating_tokenizer_still_counts_every_token() -> None:
    bounded = orjson.loads(TOKENIZER_JSON)
    bounded["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    text = TEXTS["english"][1]
    chunks = split(Splitter(SMALL, orjson.dumps(bounded)), text)
    assert chunks == split(splitter_of(32), text)


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        pytest.param("a" * 250_000, "text", id="one-letter"),
        pytest.param("你好世界" * 21_000, "markdown", id="chinese-without-punctuation"),
        pytest.param("".join(map(chr, range(0x4E00, 0x9FA5))) * 4, "text", id="rare-characters"),
    ],
)
@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.campaign)])
@pytest.mark.slow
def test_a_megabyte_without_any_boundary_takes_seconds(
    text: str, markup: Markup, times: int
) -> None:
    text *= times
    splitter = Splitter(SplitOptions(), TOKENIZER_JSON)
    began = time.process_time()
    chunks = split(splitter, text, markup)
    assert time.process_time() - began < 25  # it would take hours if it were not cut first
    assert len(without_space("".join(chunks))) >= len(text)
    assert max(map(tokens, chunks)) <= 512


@pytest.mark.parametrize(
    "megabytes", [pytest.param(1), pytest.param(10, marks=pytest.mark.campaign)]
)
@pytest.mark.slow
def test_a_large_document_is_split_without_loss(megabytes: int) -> None:
    paragraph = "Paragraph {}: the pump loses pressure. Check the seal, then the valve.\n\n"
    text = "".join(paragraph.format(number) for number in range(megabytes * 14_000))
    assert len(text) > megabytes * 1_000_000
    chunks = split(splitter_of(512), text)
    assert without_space("".join(chunks)) == without_space(text)
    lengths = [tokens(chunk) for chunk in chunks[::50]]
    assert max(lengths) <= 512
    assert sum(lengths) / len(lengths) > 400  # they are full


@given(st.text(alphabet="ab .。\n#", max_size=300), st.integers(2, 40))
@settings(deadline=None)
def test_joined_sections_are_the_text(text: str, longest: int) -> None:
    sections = list(split_into_sections(text, longest=longest))
    assert "".join(sections) == text
    assert all(0 < len(section) <= longest for section in sections)


def test_sections_end_at_the_best_place() -> None:
    text = "one. two\n\nthree. four\nfive. six " * 40
    sections = list(split_into_sections(text, longest=200))
    assert all(section.endswith("\n\n") for section in sections[:-1])
    # Text without long runs is one section. A run is divided, and keeps the text around it.
    assert list(split_into_sections(text, longest=10_000)) == [text]
    run = list(split_into_sections("before " + "x" * 5000 + " after", longest=10_000))
    assert [len(section) for section in run] == [7 + 2048, 2048, 5000 - 2 * 2048 + 6]


def test_threads_share_a_splitter() -> None:
    splitter = Splitter(SplitOptions(chunk_tokens=64, overlap_tokens=8), TOKENIZER_JSON)
    documents = [document(text, markup) for markup, text in TEXTS.values()]
    expected = [splitter.split(each) for each in documents]
    fresh = Splitter(SplitOptions(chunk_tokens=64, overlap_tokens=8), TOKENIZER_JSON)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(fresh.split, documents * 2)) == expected * 2


def test_the_version_depends_on_everything_that_decides_the_chunks() -> None:
    versions = {
        Splitter(SplitOptions(64, 8), TOKENIZER_JSON).version,
        Splitter(SplitOptions(64, 16), TOKENIZER_JSON).version,
        Splitter(SplitOptions(128, 8), TOKENIZER_JSON).version,
        Splitter(SplitOptions(64, 8), TOKENIZER_JSON + b"\n").version,
        Splitter(SplitOptions(64, 8, "headings"), TOKENIZER_JSON).version,
        Splitter(SplitOptions(0), None).version,
    }
    assert len(versions) == 6
    assert Splitter(SplitOptions(64, 8, "none"), TOKENIZER_JSON).version in versions
    assert Splitter(SplitOptions(64, 8), TOKENIZER_JSON.decode()).version in versions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SplitOptions(chunk_tokens=8), "`chunk_tokens` must be 0 .* or at least 16, not 8"),
        (SplitOptions(chunk_tokens=-1), "`chunk_tokens`"),
        (SplitOptions(chunk_tokens=64, overlap_tokens=33), "`overlap_tokens` must be 0 to 32"),
    ],
)
def test_lengths_out_of_range_are_rejected(options: SplitOptions, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Splitter(options, TOKENIZER_JSON)


@pytest.mark.parametrize("content", [b"", b"[]", b"not json", b"{}"])
def test_what_is_not_a_tokenizer_is_rejected(content: bytes) -> None:
    with pytest.raises(IngestError, match="tokenizer"):
        Splitter(SMALL, content)


def test_the_gateway_serves_its_tokenizer(in_process_gateway: GatewayProcess) -> None:
    content = load_tokenizer(SMALL, GatewayOptions(url=in_process_gateway.url))
    assert content == TOKENIZER_JSON


def test_the_tokenizer_may_be_a_file_or_its_folder(tmp_path: Path) -> None:
    unreachable = GatewayOptions(url="http://127.0.0.1:9")
    for path in (TOKENIZER_FILE, TOKENIZER_FILE.parent):
        options = SplitOptions(tokenizer_path=str(path))
        assert load_tokenizer(options, unreachable) == TOKENIZER_JSON
    with pytest.raises(IngestError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(SplitOptions(tokenizer_path=str(tmp_path)), unreachable)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(IngestError, match="git lfs pull"):
        load_tokenizer(SplitOptions(tokenizer_path=str(tmp_path)), unreachable)


@pytest.mark.stack
def test_a_gateway_with_keys_requires_one() -> None:
    with running_gateway("--api-keys", "secret-key") as gateway:
        options = GatewayOptions(url=gateway.url, api_key="secret-key")
        assert load_tokenizer(SMALL, options) == TOKENIZER_JSON
        with pytest.raises(AuthenticationError, match="QWEN3_TRITON_API_KEY") as caught:
            load_tokenizer(SMALL, GatewayOptions(url=gateway.url, api_key="wrong-key"))
        assert "wrong-key" not in str(caught.value)
        prefixed = GatewayOptions(url=f"{gateway.url}/elsewhere", api_key="secret-key")
        with pytest.raises(IngestError, match=r"answered 404: .* set `--tokenizer`"):
            load_tokenizer(SMALL, prefixed)


def test_a_gateway_that_stays_unavailable_is_an_error_after_a_while() -> None:
    with pytest.raises(EmbeddingConnectionError, match="Cannot reach the gateway") as caught:
        load_tokenizer(SMALL, GatewayOptions(url="http://127.0.0.1:9"), retry_seconds=1)
    assert caught.value.tries > 1
