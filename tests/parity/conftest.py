"""An export that takes seconds to make, for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from exported_models import Qwen3Model, make_model, write_export


@pytest.fixture(name="dynamo_export", scope="session")
def _dynamo_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Qwen3Model]:
    """The folder of an export by torch's default exporter, and its model."""
    folder, model = tmp_path_factory.mktemp("dynamo"), make_model()
    write_export(model, folder, "dynamo")
    return folder, model
