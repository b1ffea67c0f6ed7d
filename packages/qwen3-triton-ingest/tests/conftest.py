"""Tables of real text with vectors of the nano model, in every layout."""

from __future__ import annotations

import ast
import json
import os
import pydoc_data.topics
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from filled_tables import DOCUMENTS, LAYOUTS, Corpus, Entry, Library, create_database, embed
from gateway_process import GatewayProcess
from qwen3_triton_ingest.layouts import LayoutName

PARAGRAPHS = 3_000


@pytest.fixture(name="vectors", scope="session")
def _vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the vectors that all workers of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(name="corpus", scope="session")
def _corpus(in_process_gateway: GatewayProcess, vectors: Path) -> Corpus:
    """The 312 short texts of the demo, each with a question."""
    entries = [
        Entry(
            uuid.uuid5(uuid.NAMESPACE_URL, line["id"]),
            line["id"],
            line["text"],
            {"subject": line["subject"], "title": line["title"], "number": number},
            line["question"],
        )
        for number, line in enumerate(map(json.loads, DOCUMENTS.read_text("utf-8").splitlines()))
    ]
    return embed(in_process_gateway.url, entries, vectors / "corpus.npz")


@pytest.fixture(name="paragraphs", scope="session")
def _paragraphs(in_process_gateway: GatewayProcess, vectors: Path) -> Corpus:
    """The beginnings of 3,000 paragraphs of Python's documentation; their metadata numbers them."""
    texts = dict.fromkeys(" ".join(paragraph.split())[:70] for paragraph in _documentation())
    entries = [
        Entry(
            uuid.uuid5(uuid.NAMESPACE_OID, text),
            f"paragraph-{number}",
            text,
            {"number": number, "one_in_100": number % 100, "one_in_1000": number % 1000},
        )
        for number, text in enumerate(list(texts)[:PARAGRAPHS])
    ]
    return embed(in_process_gateway.url, entries, vectors / "paragraphs.npz")


def _documentation() -> Generator[str]:
    documents = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        documents += [
            ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)
        ]
    for document in documents:
        yield from (part for part in document.split("\n\n") if len(part) > 60)


@pytest.fixture(name="library", scope="session")
def _library(postgres_uri: str, corpus: Corpus) -> Generator[Library]:
    """Do not write to it."""
    for dsn in create_database(postgres_uri):
        tables: dict[LayoutName, str] = {layout: f"manuals_{layout}" for layout in LAYOUTS}
        for layout, name in tables.items():
            corpus.fill(dsn, name, layout)
        yield Library(dsn, corpus, tables)
