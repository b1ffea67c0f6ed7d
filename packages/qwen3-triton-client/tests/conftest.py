import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from qwen3_triton_client import AsyncEmbeddingClient, EmbeddingClient, EmbeddingResult

sys.path.insert(0, str(Path(__file__).parent))

from fake_gateway import FakeGateway, fake_fixture

__all__ = ["fake_fixture"]

Embed = Callable[..., EmbeddingResult]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWEN3_TRITON_URL", raising=False)
    monkeypatch.delenv("QWEN3_TRITON_API_KEY", raising=False)
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=["sync", "async"])
def embed(request: pytest.FixtureRequest, fake: FakeGateway) -> Embed:
    """Embed with a new synchronous or asynchronous client, so that both pass the same tests."""
    kind: Literal["sync", "async"] = request.param

    def run(
        texts: Sequence[str], call: dict[str, Any] | None = None, **options: Any
    ) -> EmbeddingResult:
        if kind == "sync":
            with EmbeddingClient(fake.url, **options) as client:
                return client.embed(texts, **(call or {}))

        async def run_async() -> EmbeddingResult:
            async with AsyncEmbeddingClient(fake.url, **options) as client:
                return await client.embed(texts, **(call or {}))

        return asyncio.run(run_async())

    return run
