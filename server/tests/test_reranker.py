"""Scores against the model card's formula, in every form of export, and what is refused."""

from __future__ import annotations

import asyncio
import random
import re
import tracemalloc
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import pytest_asyncio
from onnx import numpy_helper

import qwen3_nano
from fake_backend import FakeBackend, FakeReranker, make_service
from qwen3_triton_gateway.backends import choose_backend, with_stated_lengths
from qwen3_triton_gateway.backends.base import Probe
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.backends.probe import SAME_MODEL, run_probe
from qwen3_triton_gateway.backends.replicas import ReplicatedBackend
from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.canary import rerank_canary_batch, state_canary
from qwen3_triton_gateway.errors import (
    BackendError,
    BackendUnavailableError,
    BadVectorError,
    EmbeddingServerError,
    InvalidRequestError,
    ModelNotFoundError,
    QueueFullError,
    StartupError,
)
from qwen3_triton_gateway.pooling import last_token_logits
from qwen3_triton_gateway.rerank_behavior import find_answers
from qwen3_triton_gateway.rerank_prompt import PREFIX
from qwen3_triton_gateway.reranker import RerankCall, Reranker, Scores
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings
from qwen3_triton_gateway.tensors import Float32Vector, HiddenStates, PooledStates, TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer
from reranker_graph import Form, nano_tokenizer, reference_logits, write_reranker

FORMS: tuple[Form, ...] = ("causal", "pooled", "seq-cls")
NANO = qwen3_nano.model_dir()
QUERY = "How do rivers carry sand?"
DOCUMENTS = [
    "tea",
    "Rivers carry sand towards the sea, grain after grain.",
    "日本語の文 😀",
    "word " * 120,
    "Überraschung",
    "tea",
]
VOCABULARY = nano_tokenizer().get_vocab_size()
# Rounding of float32 in batches of other shapes.
TOLERANCE = 1e-4


@pytest.fixture(name="folders", scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Form, Path]:
    root = tmp_path_factory.mktemp("rerankers")
    forms: tuple[Form, ...] = (*FORMS, "last-column")
    return {form: write_reranker(root / form, form) for form in forms}


@pytest.fixture(name="reference", scope="session")
def _reference(folders: dict[Form, Path]) -> np.ndarray[Any, Any]:
    """The logits of "no" and "yes" of each document, one by one, as on the model card."""
    return reference_logits(folders["causal"], QUERY, DOCUMENTS)


def settings_for(folder: Path | None = None, **values: Any) -> Settings:
    return Settings(**{"RERANK_MODEL_DIR": folder or NANO, **values})


def fake_service(backend: FakeBackend, **values: Any) -> EmbeddingService:
    return EmbeddingService(settings_for(**values), None, backend)


async def connected(backend: FakeBackend, **values: Any) -> Reranker:
    reranker = fake_service(backend, **values).reranker
    await reranker.connect()
    backend.calls.clear()
    return reranker


async def score(reranker: Reranker, *documents: str, **options: Any) -> Scores:
    call = RerankCall([QUERY] * len(documents), documents, **options)
    deadline = asyncio.get_running_loop().time() + 60
    scores, _ = await reranker.score(call, deadline=deadline)
    return scores


@pytest_asyncio.fixture(name="reranker", params=FORMS)
async def _reranker(
    request: pytest.FixtureRequest, folders: dict[Form, Path]
) -> AsyncGenerator[Reranker]:
    settings = settings_for(folders[request.param], EMBED_ENGINE="onnxruntime")
    service = EmbeddingService(settings, None, choose_backend(settings, "rerank"))
    await service.reranker.connect()
    yield service.reranker
    await service.close()


async def test_scores_are_those_of_the_model_card_alone_and_in_a_batch(
    reranker: Reranker, reference: np.ndarray[Any, Any]
) -> None:
    together = await score(reranker, *DOCUMENTS)
    alone = [await score(reranker, document) for document in DOCUMENTS]
    difference = reference[:, 1] - reference[:, 0]
    share = np.exp(reference[:, 1]) / np.exp(reference).sum(axis=1)
    assert abs(together.probabilities - share).max() < TOLERANCE
    assert abs(together.raw - difference).max() < TOLERANCE
    assert abs(np.concatenate([one.raw for one in alone]) - difference).max() < TOLERANCE
    assert together.raw[0] == together.raw[-1]  # the same document


async def test_a_document_that_is_too_long_is_cut_and_named(reranker: Reranker) -> None:
    long = "word " * 200
    cut = await score(reranker, "tea", long, max_tokens=200)
    assert cut.truncated == (1,)
    assert cut.prompt_tokens < 2 * 200
    with pytest.raises(InvalidRequestError, match=r"Document 1 has .* the limit is 200") as caught:
        await score(reranker, "tea", long, max_tokens=200, truncate=False)
    assert caught.value.param == "texts[1]"


def test_logits_are_selected_at_the_last_token_for_either_padding() -> None:
    logits = np.arange(24, dtype=np.float16).reshape(2, 4, 3)
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
    assert last_token_logits(logits, mask, [2, 0]).tolist() == [[5, 3], [23, 21]]
    assert last_token_logits(logits, mask).tolist() == [[3, 4, 5], [21, 22, 23]]


def test_extreme_logits_give_probabilities() -> None:
    scores = Scores(np.array([-1e6, -800.0, 0.0, 800.0]), 0, ())
    assert scores.probabilities.tolist() == [0, 0, 0.5, 1]


class NarrowChannel(OnnxBackend):
    """ONNX Runtime behind a channel that carries the logits of 600 tokens."""

    @property
    def max_output_bytes(self) -> int:
        return 600 * VOCABULARY * 4

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        states = await super().infer(batch, timeout_seconds=timeout_seconds, priority=priority)
        assert states.values.nbytes <= self.max_output_bytes
        return states


async def test_a_pair_has_no_more_tokens_than_logits_that_can_be_sent(
    folders: dict[Form, Path], caplog: pytest.LogCaptureFixture
) -> None:
    backend = NarrowChannel(folders["causal"], task="rerank")
    service = EmbeddingService(settings_for(folders["causal"]), None, backend)
    await service.reranker.connect()
    scores = await score(service.reranker, "word " * 800)
    await service.close()
    assert (scores.truncated, scores.prompt_tokens) == ((0,), 600)
    assert "at most 600 tokens here instead of RERANK_MAX_LENGTH (8,192)" in caplog.text


def test_only_grpc_bounds_what_triton_sends() -> None:
    backends = [TritonBackend(url, "model") for url in ("http://t:8000", "grpc://t:8001")]
    bound = ReplicatedBackend(backends).max_output_bytes
    assert [backend.max_output_bytes for backend in backends] == [None, bound]
    assert bound is not None
    assert bound < 1 << 31


async def test_a_graph_that_takes_the_last_column_is_refused(folders: dict[Form, Path]) -> None:
    settings = settings_for(folders["last-column"])
    backend = OnnxBackend(folders["last-column"], task="rerank")
    service = EmbeddingService(settings, None, backend)
    with pytest.raises(StartupError, match="differently with padding"):
        await service.reranker.connect()


async def test_an_embedding_model_is_not_served_as_a_reranker() -> None:
    service = EmbeddingService(settings_for(NANO), None, OnnxBackend(NANO, task="rerank"))
    with pytest.raises(StartupError, match="a reranker returns two logits"):
        await service.reranker.connect()


async def test_probabilities_are_not_activated_again(caplog: pytest.LogCaptureFixture) -> None:
    two, one = FakeReranker(), FakeReranker(width=1)
    two.corrupt = lambda _, logits: np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    with pytest.raises(StartupError, match="returns probabilities of no and yes"):
        await connected(two)
    one.corrupt = lambda _, logits: 1 / (1 + np.exp(-logits))
    await connected(one)
    assert "numbers from 0 to 1" in caplog.text


async def test_pairs_run_one_by_one_if_a_batch_changes_them() -> None:
    backend = FakeReranker()
    backend.corrupt = lambda batch, values: values * np.float32(len(batch.input_ids))
    reranker = await connected(backend)
    assert not reranker.shares_batches
    await score(reranker, *DOCUMENTS)
    assert {rows for rows, _ in backend.calls} == {1}


async def test_a_pair_without_a_finite_score_is_named_and_the_others_are_not_lost() -> None:
    backend = FakeReranker()
    reranker = await connected(backend)
    widest = max([text.length for text in await _tokenized(reranker)])

    def overflow(batch: Any, values: Any) -> Any:
        values = values.copy()
        values[batch.attention_mask.sum(axis=1) == widest] = np.nan
        return values

    backend.corrupt = overflow
    with pytest.raises(BadVectorError, match="Document 3 has no usable score") as caught:
        await score(reranker, *DOCUMENTS, documents_field="documents")
    assert caught.value.param == "documents[3]"
    assert np.isfinite((await score(reranker, *DOCUMENTS[:3])).raw).all()


async def _tokenized(reranker: Reranker) -> list[Any]:
    call = RerankCall([QUERY] * len(DOCUMENTS), DOCUMENTS)
    return await reranker._tokenize(call, asyncio.get_running_loop().time() + 60)


async def test_a_pair_that_the_model_refuses_is_named() -> None:
    backend = FakeReranker()
    reranker = await connected(backend)

    def refuse(batch: Any, values: Any) -> Any:
        if batch.input_ids.shape[1] > 180:
            raise BackendError("no")
        return values

    backend.corrupt = refuse
    with pytest.raises(BackendError, match=r"Document 3 could not be scored, even alone\. no"):
        await score(reranker, *DOCUMENTS)


@pytest.mark.parametrize("seed", range(4))
async def test_under_faults_every_pair_has_its_score_or_its_request_one_typed_error(
    seed: int,
) -> None:
    backend = FakeReranker()
    reranker = await connected(backend)
    numbers = random.Random(seed)
    documents = [f"{'word ' * numbers.randrange(20)}{number}" for number in range(60)]
    expected = dict(zip(documents, (await score(reranker, *documents)).raw.tolist(), strict=True))

    def fail(batch: Any, values: Any) -> Any:
        match numbers.randrange(12):
            case 0:
                raise BackendError("refused")
            case 1:
                raise BackendUnavailableError("away")
            case 2:
                return values[:-1]
            case 3:
                spoiled = values.copy()
                spoiled[numbers.randrange(len(values))] = np.nan
                return spoiled
            case _:
                return values

    backend.corrupt = fail
    outcomes: set[type[object]] = set()
    for _ in range(12):
        # They share batches, and some of their pairs.
        parts = [numbers.sample(documents, 15) for _ in range(4)]
        calls = (score(reranker, *part) for part in parts)
        for part, result in zip(
            parts, await asyncio.gather(*calls, return_exceptions=True), strict=True
        ):
            outcomes.add(type(result))
            if isinstance(result, Scores):
                assert result.raw.tolist() == pytest.approx([expected[text] for text in part])
            else:
                assert isinstance(result, EmbeddingServerError)
                named = isinstance(result, (BadVectorError, BackendError))
                assert named == (result.index is not None)
        assert reranker.state().batches_in_flight == 0
    assert {Scores, BackendUnavailableError} <= outcomes


async def test_pairs_with_a_long_query_are_charged_before_they_exist() -> None:
    service = fake_service(FakeReranker(), EMBED_MAX_MEMORY_BYTES=8 << 20)
    await service.reranker.connect()
    call = RerankCall(["word " * 2000] * 1000, [f"{number}" for number in range(1000)])
    with service.memory.reserve(0), service.memory.reserve(0) as memory:
        tracemalloc.start()
        with pytest.raises(QueueFullError, match="EMBED_MAX_MEMORY_BYTES"):
            await service.reranker.score(call, deadline=1e9, memory=memory)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 << 20


async def test_the_canary_notices_another_reranker() -> None:
    backend = FakeReranker()
    reranker = await connected(backend)
    backend.generation += 1
    backend.swap_weights()
    await reranker.check()
    with pytest.raises(BackendUnavailableError, match="has changed"):
        await reranker.confirm(asyncio.get_running_loop().time() + 60)


async def test_the_size_of_the_logits_counts_in_the_canary() -> None:
    backend = FakeReranker()
    reranker = await connected(backend)
    backend.generation += 1
    backend.corrupt = lambda _, values: values * 1.2
    await reranker.check()
    with pytest.raises(BackendUnavailableError, match="has changed"):
        await reranker.confirm(asyncio.get_running_loop().time() + 60)


async def test_what_both_logits_have_in_common_does_not_hide_a_change_of_scores() -> None:
    backend = FakeReranker()
    backend.corrupt = lambda _, values: values + 1000
    reranker = await connected(backend)
    backend.generation += 1
    backend.corrupt = lambda _, values: values * 1.1 + 1000
    await reranker.check()
    with pytest.raises(BackendUnavailableError, match=r"differs by .* in a raw score"):
        await reranker.confirm(asyncio.get_running_loop().time() + 60)


@pytest.mark.parametrize(
    "form",
    ["pooled", *(pytest.param(form, marks=pytest.mark.slow) for form in ("causal", "seq-cls"))],
)
async def test_the_canary_tells_rounded_weights_from_others(
    form: Form, folders: dict[Form, Path], tmp_path: Path
) -> None:
    source = folders[form] / "model.onnx"
    answer = await canary_answer(source)
    rounded = write_changed(source, tmp_path / "rounded.onnx", r".*", to_bfloat16)
    assert not SAME_MODEL.find_difference(await canary_answer(rounded), answer, "rerank")
    other = write_changed(source, tmp_path / "other.onnx", r"layers\.0\.input_norm", np.flip)
    assert SAME_MODEL.find_difference(await canary_answer(other), answer, "rerank")


async def canary_answer(path: Path) -> Float32Vector:
    backend, tokenizer = OnnxBackend(path, task="rerank"), TextTokenizer(NANO, max_length=512)
    answers = find_answers(await backend.connect(), tokenizer)
    answer = await run_probe(backend, Probe(rerank_canary_batch(tokenizer, 512), answers))
    await backend.close()
    return answer


def to_bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x8000) & np.uint32(0xFFFF0000)).view(np.float32)


def write_changed(
    source: Path, path: Path, names: str, change: Callable[[np.ndarray[Any, Any]], Any]
) -> Path:
    """Write a model with some of its float32 weights changed."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and re.fullmatch(names, tensor.name):
            values = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
            tensor.CopyFrom(numpy_helper.from_array(values.reshape(tensor.dims), tensor.name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("width", [1, 2])
async def test_scores_other_than_those_that_the_configuration_states_refuse_to_start(
    width: int,
) -> None:
    reranker = await connected(FakeReranker(width=width))
    batch = rerank_canary_batch(reranker.tokenizer, reranker.max_length)
    stated = state_canary(batch, await run_probe(reranker.backend, Probe(batch)))
    stating = FakeReranker(width=width, stated_canary=stated)
    stating.corrupt = lambda _, values: values * 1.05  # another engine may do that
    await connected(stating)
    stating.corrupt = lambda _, values: values**3 / 1000
    with pytest.raises(StartupError, match=r"config.pbtxt: the weights were replaced.*--force"):
        await connected(stating)


async def test_replicas_with_different_rerankers_are_noticed() -> None:
    backends = [FakeReranker() for _ in range(2)]
    backends[1].swap_weights()
    service = EmbeddingService(settings_for(), None, ReplicatedBackend(backends))
    with pytest.raises(StartupError, match="different answers to the same canary"):
        await service.reranker.connect()


async def test_the_canary_fits_a_model_that_takes_single_pairs() -> None:
    reranker = await connected(FakeReranker(max_batch_size=1))
    assert (await reranker.check()).ready


@pytest.mark.parametrize(
    ("query", "document", "message"),
    [("  ", "a", "The query is blank"), ("a", "\n", "Document 0 is blank")],
)
async def test_a_blank_text_is_refused(query: str, document: str, message: str) -> None:
    reranker = await connected(FakeReranker())
    with pytest.raises(InvalidRequestError, match=message):
        await reranker.score(RerankCall([query], [document]), deadline=1e9)


async def test_the_instruction_of_the_settings_is_that_of_a_request_without_one() -> None:
    plain = await connected(FakeReranker())
    instructed = await connected(FakeReranker(), RERANK_INSTRUCTION="Find recipes.")
    expected = await score(plain, "tea", instruction="Find recipes.")
    assert (await score(instructed, "tea")).raw == expected.raw
    assert (await score(instructed, "tea", instruction="Other")).raw != expected.raw


async def test_control_tokens_in_documents_are_split_on_request() -> None:
    plain = await connected(FakeReranker())
    split = await connected(FakeReranker(), RERANK_SPLIT_SPECIAL_TOKENS=True)
    texts = ("tea", "tea<|im_end|>")
    same, moved = (await score(plain, *texts)).raw - (await score(split, *texts)).raw
    assert same == 0
    assert moved != 0
    assert plain.fingerprint != split.fingerprint


@pytest.mark.parametrize("broken", [0, 1])
async def test_a_model_that_fails_leaves_the_other_one_in_service(
    tokenizer_dir: Path, broken: int
) -> None:
    backends = FakeBackend(), FakeReranker()
    settings = settings_for(TOKENIZER_PATH=tokenizer_dir)
    service = EmbeddingService(settings, *backends)
    failing, other = service.models[broken], service.models[1 - broken]
    await other.connect()
    assert not service.readiness.ready  # a new gateway waits for all of its models
    await failing.connect()
    assert service.readiness.ready
    assert service.is_complete

    backends[broken].ready = False
    await failing.check()
    assert service.readiness.ready
    assert not service.is_complete
    assert service.readiness.reason == f"{failing.model_id}: a fake is unavailable"
    assert other.require_ready()
    with pytest.raises(BackendUnavailableError, match="a fake is unavailable"):
        failing.require_ready()

    backends[1 - broken].ready = False
    await other.check()
    assert not service.readiness.ready


async def test_closing_drains_both_models(tokenizer_dir: Path) -> None:
    embedding, reranking = FakeBackend(), FakeReranker()
    settings = settings_for(TOKENIZER_PATH=tokenizer_dir)
    service = EmbeddingService(settings, embedding, reranking)
    for model in service.models:
        await model.connect()
    reranking.gate = asyncio.Event()
    scoring = asyncio.create_task(score(service.reranker, "tea"))
    while not service.reranker.state().batches_in_flight:
        await asyncio.sleep(0)
    closing = asyncio.create_task(service.close())
    reranking.gate.set()
    await closing
    assert np.isfinite((await scoring).raw).all()
    assert not embedding.ready
    assert not reranking.ready


async def test_each_model_has_metrics_of_its_own(tokenizer_dir: Path) -> None:
    settings = settings_for(TOKENIZER_PATH=tokenizer_dir)
    service = EmbeddingService(settings, FakeBackend(), FakeReranker())
    for model in service.models:
        await model.connect()
    await score(service.reranker, "tea", "coffee")
    text = service.metrics.render().decode()
    assert "qwen3_triton_rerank_pairs_total 2.0" in text
    assert 'qwen3_triton_rerank_batch_rows_count{lane="query"} 1.0' in text
    assert "qwen3_triton_rerank_ready 1.0" in text
    assert 'qwen3_triton_batch_rows_count{lane="query"}' not in text


@pytest.mark.parametrize(
    ("values", "embeds"),
    [
        ({}, True),
        ({"TRITON_URL": "http://t:8000"}, True),
        ({"TRITON_URL": "http://t:8000", "RERANK_MODEL_DIR": NANO}, True),
        ({"TRITON_URL": "http://t:8000", "RERANK_TRITON_MODEL": "r"}, False),
        (
            {"TRITON_URL": "http://t:8000", "RERANK_TRITON_MODEL": "r", "TOKENIZER_PATH": NANO},
            True,
        ),
        ({"TRITON_URL": "http://t:8000", "RERANK_TRITON_MODEL": "r", "TRITON_MODEL": "e"}, True),
        (
            {"TRITON_URL": "http://t:8000", "RERANK_TRITON_MODEL": "r", "EMBED_MODEL_DIR": NANO},
            True,
        ),
        ({"RERANK_MODEL_DIR": NANO}, False),
        ({"RERANK_MODEL_DIR": NANO, "EMBED_MODEL_DIR": NANO}, True),
    ],
)
def test_a_reranker_is_served_alone_only_if_no_embedding_model_is_named(
    values: dict[str, Any], embeds: bool
) -> None:
    settings = Settings(**values)
    assert settings.serves_embeddings is embeds
    assert settings.serves_reranker is any(name.startswith("RERANK") for name in values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RERANK_TRITON_MODEL": "r"}, "needs TRITON_URL"),
        (
            {"RERANK_TRITON_MODEL": "r", "RERANK_MODEL_DIR": NANO, "TRITON_URL": "http://t"},
            "both set",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_a_pair_has_no_more_tokens_than_the_model_was_made_for() -> None:
    assert with_stated_lengths(settings_for()).rerank_max_length == 2048


def test_more_tokens_than_the_model_was_made_for_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = with_stated_lengths(settings_for(RERANK_MAX_LENGTH=4096))
    assert settings.rerank_max_length == 4096
    assert "RERANK_MAX_LENGTH is 4,096, but the model was made for up to 2,048" in caplog.text


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{}", '{"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "yarn"}}'],
)
def test_a_configuration_that_states_no_length_bounds_none(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    settings = settings_for(RERANK_TOKENIZER_PATH=tmp_path)
    assert with_stated_lengths(settings).rerank_max_length == 8192


def test_a_missing_tokenizer_is_named_with_the_reranker_s_setting(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"No tokenizer at .* Set RERANK_TOKENIZER_PATH"):
        fake_service(FakeReranker(), RERANK_TOKENIZER_PATH=tmp_path)


def test_a_folder_that_does_not_exist_is_named_before_its_tokenizer() -> None:
    with pytest.raises(StartupError, match=r"RERANK_MODEL_DIR cannot be served\. There is no"):
        choose_backend(settings_for(RERANK_MODEL_DIR="/nowhere"), "rerank")


def test_a_tokenizer_without_the_answers_is_refused(tokenizer_dir: Path) -> None:
    spec = FakeBackend().spec  # as wide as a vocabulary
    with pytest.raises(StartupError, match="no tokens for 'no' and 'yes', whose logits are"):
        find_answers(spec, TextTokenizer(tokenizer_dir, max_length=128))


async def test_a_reranker_in_place_of_an_embedding_model_is_named(
    folders: dict[Form, Path],
) -> None:
    folder = folders["pooled"]
    settings = Settings(EMBED_MODEL_DIR=folder)  # pyright: ignore[reportCallIssue]
    service = EmbeddingService(settings, OnnxBackend(folder))
    with pytest.raises(
        StartupError, match=r"it is a reranker\..* RERANK_TRITON_MODEL or RERANK_MODE"
    ):
        await service.embedder.connect()
    await service.embedder.close()


def test_a_tokenizer_without_the_tokens_of_the_prompt_is_refused(tokenizer_dir: Path) -> None:
    with pytest.raises(StartupError, match=r"no token '<\|im_start\|>'"):
        fake_service(FakeReranker(), RERANK_TOKENIZER_PATH=tokenizer_dir)


def test_the_model_that_is_not_served_says_how_to_serve_it(tokenizer_dir: Path) -> None:
    alone = fake_service(FakeReranker())
    with pytest.raises(ModelNotFoundError, match="only a reranker"):
        _ = alone.embedder
    with pytest.raises(ModelNotFoundError, match="RERANK_TRITON_MODEL"):
        _ = make_service(tokenizer_dir, FakeBackend()).reranker


async def test_two_models_with_one_name_are_refused(tokenizer_dir: Path) -> None:
    settings = settings_for(
        TOKENIZER_PATH=tokenizer_dir, EMBED_MODEL_ALIASES="search", RERANK_MODEL_ID="search"
    )
    service = EmbeddingService(settings, FakeBackend(), FakeReranker())
    with pytest.raises(StartupError, match="both called 'search'"):
        await service.run()
    await service.close()


def test_two_folders_with_one_name_are_two_models() -> None:
    service = fake_service(FakeReranker(), EMBED_MODEL_DIR=NANO)
    assert service.reranker.model_id == f"{NANO.name}-reranker"


async def test_a_request_of_a_lower_priority_is_scored_first() -> None:
    backend = FakeReranker(max_batch_size=1)
    reranker = await connected(backend)
    backend.gate = asyncio.Event()
    finished: list[str] = []

    async def ask(document: str, priority: int) -> None:
        await score(reranker, document, priority=priority)
        finished.append(document)

    async with asyncio.TaskGroup() as requests:
        # As many batches are in flight as there are instances, and one more.
        for document, priority in [("a", 0), ("b", 0), ("late", 1), ("normal", 0), ("soon", -1)]:
            requests.create_task(ask(document, priority))
        while len(backend.calls) < 2:
            await asyncio.sleep(0)
        backend.gate.set()
    assert finished[2:] == ["soon", "normal", "late"]


async def test_a_client_that_writes_the_prompt_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reranker = await connected(FakeReranker())
    for query in ("plain", f"{PREFIX}<Query>: a", f"{PREFIX}<Query>: b"):
        call = RerankCall([query], ["a document"])
        await reranker.score(call, deadline=asyncio.get_running_loop().time() + 60)
    assert caplog.text.count("a prompt within the prompt") == 1
