import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage] - documented, but not in __all__
)
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent

# The fake gateway belongs to the client's tests.
sys.path.insert(0, str(Path(__file__).parents[2] / "qwen3-triton-client" / "tests"))

from fake_gateway import fake_fixture

__all__ = ["fake_fixture"]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWEN3_TRITON_URL", raising=False)
    monkeypatch.delenv("QWEN3_TRITON_API_KEY", raising=False)


class Recorder(BaseEventHandler):
    """A handler that records the events of embeddings and of rerankers."""

    seen: list[BaseEvent] = []  # noqa: RUF012 - pydantic copies it

    def handle(self, event: BaseEvent, **_: Any) -> None:
        ours = EmbeddingStartEvent | EmbeddingEndEvent | ReRankStartEvent | ReRankEndEvent
        if isinstance(event, ours):
            self.seen.append(event)


@pytest.fixture(name="events")
def _events() -> Iterator[list[BaseEvent]]:
    """What observers of LlamaIndex are told."""
    recorder = Recorder()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(recorder)
    yield recorder.seen
    dispatcher.event_handlers.remove(recorder)
