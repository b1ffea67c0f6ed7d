"""Read the demo's documents and questions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Document:
    """A paragraph on one topic, and a question that it answers in other words."""

    id: str
    subject: str
    title: str
    text: str
    question: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the ids of the documents that answer it."""

    text: str
    expected: frozenset[str]


def load_documents() -> list[Document]:
    """Return all documents, in file order."""
    lines = (_FOLDER / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return [Document(**json.loads(line)) for line in lines]


def load_questions() -> list[Question]:
    """Return the demo's questions."""
    entries: list[dict[str, Any]] = json.loads(
        (_FOLDER / "questions.json").read_text(encoding="utf-8")
    )
    return [Question(entry["question"], frozenset(entry["expected"])) for entry in entries]


def title_searches(documents: Sequence[Document]) -> list[Question]:
    """Return a search for the title of each document; only its own text is expected."""
    return [Question(each.title, frozenset({each.id})) for each in documents]
