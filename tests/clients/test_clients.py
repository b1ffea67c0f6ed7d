"""Programs that people already use, unchanged, against the gateway; the run makes a table of them.

`make clients` runs this and compares the table in `docs/switching.md` with what it found;
`make clients WRITE=1` rewrites it.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pytest
import python_clients as python
from documented import check_table
from node_programs import NODE, node
from python_clients import Embed
from served_product import embed, running

HEADER = ("program", "setting", "tried version", "documents", "queries")

DOCUMENTS = ["Whales are mammals.", "Bread rises because of yeast, which is a fungus.", "x"]
QUERY = "Why does dough grow?"
SAME = 0.99999  # float32; below that it is another text or another model
EIGHT_BITS = 0.999  # whole numbers of up to 127 per component


@dataclass(frozen=True)
class Client:
    """A row of the table.

    Attributes:
        program: Its name, linked by readers to its documentation.
        setting: What points it at a gateway on this machine.
        package: Its distribution on PyPI or npm.
        embed: How it embeds.
    """

    program: str
    setting: str
    package: str
    embed: Embed

    @property
    def version(self) -> str:
        if self.embed.__module__ == python.__name__:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        manifest = NODE / "node_modules" / self.package / "package.json"
        return f"{self.package} {json.loads(manifest.read_text())['version']}"


OPENAI_URL = 'base_url="http://localhost:8101/v1"'
OPENAI_JS = 'baseURL: "http://localhost:8101/v1"'
CLIENTS = [
    Client("OpenAI, Python", f"`{OPENAI_URL}`", "openai", python.openai),
    Client("OpenAI, JavaScript", f"`{OPENAI_JS}`", "openai", node("openai")),
    Client("Ollama, Python", '`host="http://localhost:8101"`', "ollama", python.ollama),
    Client("Ollama, JavaScript", '`host: "http://localhost:8101"`', "ollama", node("ollama")),
    Client("Cohere, Python", '`base_url="http://localhost:8101"`', "cohere", python.cohere),
    Client(
        "Cohere, JavaScript", '`environment: "http://localhost:8101"`', "cohere-ai", node("cohere")
    ),
    Client("Voyage, Python", f"`{OPENAI_URL}`", "voyageai", python.voyageai),
    Client(
        "LiteLLM, `openai/`",
        '`api_base="http://localhost:8101/v1"`',
        "litellm",
        python.litellm_openai,
    ),
    Client(
        "LiteLLM, `hosted_vllm/`",
        '`api_base="http://localhost:8101/v1"`',
        "litellm",
        python.litellm_vllm,
    ),
    Client(
        "LiteLLM, `ollama/`", '`api_base="http://localhost:8101"`', "litellm", python.litellm_ollama
    ),
    Client(
        "LiteLLM, `cohere/`",
        '`api_base="http://localhost:8101/v2/embed"`',
        "litellm",
        python.litellm_cohere,
    ),
    Client(
        "LangChain, OpenAI",
        f"`{OPENAI_URL}, check_embedding_ctx_length=False`",
        "langchain-openai",
        python.langchain_openai,
    ),
    Client(
        "LangChain, Ollama",
        '`base_url="http://localhost:8101"`',
        "langchain-ollama",
        python.langchain_ollama,
    ),
    Client(
        "LangChain, NVIDIA",
        f"`{OPENAI_URL}`",
        "langchain-nvidia-ai-endpoints",
        python.langchain_nvidia,
    ),
    Client(
        "LangChain.js, OpenAI",
        f"`configuration: {{{OPENAI_JS}}}`",
        "@langchain/openai",
        node("langchain_openai"),
    ),
    Client(
        "LangChain.js, Ollama",
        '`baseUrl: "http://localhost:8101"`',
        "@langchain/ollama",
        node("langchain_ollama"),
    ),
    Client(
        "LlamaIndex, OpenAI-like",
        '`api_base="http://localhost:8101/v1"`',
        "llama-index-embeddings-openai-like",
        python.llamaindex_openai_like,
    ),
    Client(
        "LlamaIndex, TEI",
        '`base_url="http://localhost:8101", text_instruction=""`',
        "llama-index-embeddings-text-embeddings-inference",
        python.llamaindex_tei,
    ),
    Client("LlamaIndex.TS, OpenAI", f"`{OPENAI_JS}`", "@llamaindex/openai", node("llamaindex")),
    Client("AI SDK, OpenAI-compatible", f"`{OPENAI_JS}`", "ai", node("ai")),
    Client(
        "Haystack, OpenAI",
        '`api_base_url="http://localhost:8101/v1"`',
        "haystack-ai",
        python.haystack,
    ),
    Client(
        "Chroma, OpenAI",
        '`api_base="http://localhost:8101/v1"`',
        "chromadb",
        python.chromadb_openai,
    ),
    Client("Chroma, Ollama", '`url="http://localhost:8101"`', "chromadb", python.chromadb_ollama),
    Client(
        "Pydantic AI", f"`OpenAIProvider({OPENAI_URL})`", "pydantic-ai-slim", python.pydantic_ai
    ),
    Client("DSPy", '`api_base="http://localhost:8101/v1"`', "dspy", python.dspy),
    Client(
        "Hugging Face Hub",
        '`base_url="http://localhost:8101"`',
        "huggingface-hub",
        python.huggingface_hub,
    ),
]
ROWS: dict[str, str] = {}


@pytest.fixture(name="url", scope="module")
def _url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    log = tmp_path_factory.mktemp("gateway") / "log"
    # In float32: `auto` may take bfloat16, which differs between batches by more than SAME allows.
    with running("serve", "--precision", "float32", log=log) as url:
        yield url


def cosine(one: python.Vector, other: python.Vector) -> float:
    a, b = np.array(one), np.array(other)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.program)
def test_a_client_gets_the_native_vectors(url: str, client: Client) -> None:
    found = client.embed(url, DOCUMENTS, QUERY)
    expected = embed(url, DOCUMENTS)
    assert len(found.documents) == len(DOCUMENTS)
    assert min(map(cosine, found.documents, expected)) > SAME
    asked, plain = embed(url, [QUERY], input_type="query")[0], embed(url, [QUERY])[0]
    with_instruction = cosine(found.query, asked) > SAME
    queries = "with the instruction" if with_instruction else "without the instruction"
    if not with_instruction and cosine(found.query, plain) <= SAME:
        queries = "with another text around them"
    cells = [client.program, client.setting, client.version, "the same", queries]
    ROWS[client.program] = f"| {' | '.join(cells)} |"


def test_coheres_client_reads_every_embedding_type(url: str) -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    found = python.cohere_types(url, DOCUMENTS, types)
    exact = embed(url, DOCUMENTS)
    assert [base64.b64decode(row) for row in found.base64] == [row.tobytes() for row in exact]
    assert min(map(cosine, found.int8, exact)) > EIGHT_BITS
    assert (np.array(found.uint8) - 128 == np.array(found.int8)).all()
    bits = np.unpackbits(np.array(found.ubinary, dtype=np.uint8), axis=1)
    assert (bits == (exact > 0)).all()
    assert (np.array(found.ubinary) - 128 == np.array(found.binary)).all()


def test_the_table_in_the_documentation_is_what_was_tried() -> None:
    if set(ROWS) != {client.program for client in CLIENTS}:
        pytest.skip("some clients were not selected, or failed")
    check_table("clients", HEADER, {client.program: ROWS[client.program] for client in CLIENTS})
