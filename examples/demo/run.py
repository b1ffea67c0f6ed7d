"""The steps of the demo, in order."""

import importlib
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace

from demo.answers import HITS_PER_QUESTION, Answer, answer_table, count_found, rerank_table
from demo.documents import Question, load_documents, load_questions, title_searches
from demo.embedded_postgres import embedded_postgres
from demo.screen import Screen
from demo.search_index import SearchIndex
from demo.stack import EmbeddingStack
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_tools.local_triton import ensure_runtime, unsupported_reason

# The nano model is small. Below this, something is broken rather than unlucky.
REQUIRED_SHARE_FOUND = 0.7
# The nano reranker helps where a search shares words with the text, as titles do, and less where a
# question avoids them, as the demo's questions do.
TITLES_EVERY = 26
CANDIDATES = 50  # to rerank
_READY_TIMEOUT_SECONDS = 180
_BATCH_DOCUMENTS = 32
_POLL_SECONDS = 0.5
_SLOW_IMPORTS = (
    "langchain_qwen3_triton",
    "llama_index.embeddings.qwen3_triton",
    "demo.with_langchain",
    "demo.with_llamaindex",
)


class DemoError(RuntimeError):
    """The demo ran but failed. The message says what was missing."""


def run_demo(screen: Screen, *, keep: bool) -> None:
    """Start everything, index, ask, rerank, judge, and stop everything.

    Args:
        screen: Shows progress and results.
        keep: Keep everything running until Ctrl-C, and print the addresses.

    Raises:
        DemoError: Too few questions found their answer, or a server exited while it was kept.
        StackError: Triton or the gateway did not start.
        EmbeddedPostgresError: PostgreSQL did not start.
    """
    began = time.monotonic()
    with_triton = _prepare_triton(screen)
    with ExitStack() as resources, _stopping(screen, resources):
        stack = resources.enter_context(EmbeddingStack(with_triton=with_triton))
        with screen.stage("Start PostgreSQL with pgvector"):
            postgres_uri = resources.enter_context(embedded_postgres(0))
        with screen.stage("Load LangChain and LlamaIndex"):
            for module in _SLOW_IMPORTS:
                importlib.import_module(module)
        _wait_for(stack, screen)
        with _showing_log_of(stack):
            questions = load_questions()
            answers: list[Answer] = []
            indexes: list[SearchIndex] = []
            for index in _open_indexes(stack.base_url, postgres_uri):
                indexes.append(resources.enter_context(closing(index)))
                _fill(index, screen)
                answers += _ask(index, questions, screen)
            before, after = _rerank(indexes[0], stack.base_url, screen)
        screen.console.print(answer_table(answers))
        screen.console.print(rerank_table(before, after))
        screen.console.print(f"From start to answers: {time.monotonic() - began:.1f} s")
        too_few = _judge(answers, screen)
        if keep:
            _stay(stack, postgres_uri, screen)
        if too_few:
            raise DemoError(f"Too few questions found their answer. {too_few}")


def _prepare_triton(screen: Screen) -> bool:
    """Install Triton if it is missing; return whether it can run on this machine."""
    if reason := unsupported_reason():
        screen.console.print(
            f"Triton cannot run here: {reason}.\n"
            "The gateway runs the model in its own process instead, with ONNX Runtime.",
            markup=False,
        )
        return False
    with screen.stage("Install Triton") as stage:
        ensure_runtime(stage.note)
    return True


@contextmanager
def _stopping(screen: Screen, resources: ExitStack) -> Generator[None]:
    try:
        yield
    finally:
        with screen.stage("Stop everything"):
            resources.close()


def _wait_for(stack: EmbeddingStack, screen: Screen) -> None:
    what = "Triton with the nano models and the gateway" if stack.with_triton else "the gateway"
    with screen.stage(f"Start {what}") as stage:
        stack.wait_until_ready(_READY_TIMEOUT_SECONDS, stage.note)


@contextmanager
def _showing_log_of(stack: EmbeddingStack) -> Generator[None]:
    """Add the end of the servers' log to any error inside the block."""
    try:
        yield
    except Exception as error:
        error.add_note(f"The end of the log of the gateway and Triton:\n{stack.log_tail()}")
        raise


def _open_indexes(base_url: str, postgres_uri: str) -> Iterator[SearchIndex]:
    from demo.with_langchain import LangChainIndex
    from demo.with_llamaindex import LlamaIndexIndex
    from langchain_qwen3_triton import Qwen3TritonEmbeddings
    from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding

    yield LangChainIndex(Qwen3TritonEmbeddings(base_url=base_url), postgres_uri)
    yield LlamaIndexIndex(Qwen3TritonEmbedding(base_url=base_url), postgres_uri)


def _fill(index: SearchIndex, screen: Screen) -> None:
    documents = load_documents()
    with screen.stage(f"Index with {index.framework}", total=len(documents)) as stage:
        for start in range(0, len(documents), _BATCH_DOCUMENTS):
            batch = documents[start : start + _BATCH_DOCUMENTS]
            index.add(batch)
            stage.advance(len(batch))
        index.finish()
        stage.result = f"{len(documents)} documents"


def _ask(index: SearchIndex, questions: Sequence[Question], screen: Screen) -> list[Answer]:
    answers: list[Answer] = []
    with screen.stage(f"Search with {index.framework}", total=len(questions)) as stage:
        for question in questions:
            hits = index.search(question.text, HITS_PER_QUESTION)
            answers.append(Answer(question, index.framework, tuple(hits)))
            stage.advance(1)
        stage.result = f"{len(questions)} questions"
    return answers


def _rerank(index: SearchIndex, base_url: str, screen: Screen) -> tuple[list[Answer], list[Answer]]:
    """Return what the index finds for some titles, and the same as the reranker orders it."""
    documents = load_documents()
    texts = {document.id: document.text for document in documents}
    searches = title_searches(documents[::TITLES_EVERY])
    before: list[Answer] = []
    after: list[Answer] = []
    with (
        screen.stage(f"Rerank the first {CANDIDATES}", total=len(searches)) as stage,
        EmbeddingClient(base_url) as client,
    ):
        for search in searches:
            hits = index.search(search.text, CANDIDATES)
            result = client.rerank(search.text, [texts[hit.document_id] for hit in hits])
            ordered = tuple(
                replace(hits[each.index], score=each.score) for each in result.documents
            )
            before.append(Answer(search, index.framework, tuple(hits)))
            after.append(Answer(search, "reranker", ordered))
            stage.advance(1)
        stage.result = f"{len(searches)} searches"
    return before, after


def _judge(answers: Sequence[Answer], screen: Screen) -> str:
    """Print the result per framework; return those that found too few, or an empty string."""
    asked = len({answer.question for answer in answers})
    required = round(REQUIRED_SHARE_FOUND * asked)
    too_few: list[str] = []
    for framework in sorted({answer.framework for answer in answers}):
        found = count_found(answers, framework)
        verdict = (
            f"{framework}: {found} of {asked} questions found an expected document in the top "
            f"{HITS_PER_QUESTION} ({required} required)"
        )
        screen.console.print(verdict)
        if found < required:
            too_few.append(verdict)
    return "; ".join(too_few)


def _stay(stack: EmbeddingStack, postgres_uri: str, screen: Screen) -> None:
    ports = stack.ports
    triton = (
        f"Triton HTTP  http://127.0.0.1:{ports.triton_http}\n"
        f"Triton gRPC  127.0.0.1:{ports.triton_grpc}\n"
        if stack.with_triton
        else "Triton       not running\n"
    )
    screen.console.print(
        f"\nGateway      {stack.base_url}\nAPI page     {stack.base_url}/docs\n{triton}"
        f"PostgreSQL   {postgres_uri}\n             tables demo_langchain, data_demo_llamaindex\n\n"
        f"curl {stack.base_url}/embed -H 'content-type: application/json' "
        """-d '{"texts": ["Why is the sky blue?"], "input_type": "query"}'\n\n"""
        "Press Ctrl-C to stop everything.",
        markup=False,
        soft_wrap=True,  # lines to copy must not be broken
    )
    with suppress(KeyboardInterrupt):
        while not stack.has_ended():
            time.sleep(_POLL_SECONDS)
        raise DemoError(f"A server exited on its own. The end of its log:\n{stack.log_tail()}")
