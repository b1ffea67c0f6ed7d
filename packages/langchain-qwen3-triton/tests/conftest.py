import sys
from pathlib import Path

import pytest

# The fake gateway belongs to the client's tests.
sys.path.insert(0, str(Path(__file__).parents[2] / "qwen3-triton-client" / "tests"))

from fake_gateway import fake_fixture

__all__ = ["fake_fixture"]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWEN3_TRITON_URL", raising=False)
    monkeypatch.delenv("QWEN3_TRITON_API_KEY", raising=False)
