"""Exports that take seconds to make, for all tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from card_rerankers import Rerankers
from exported_models import TOKENIZER, Qwen3Model, make_model, write_export
from transformers import PreTrainedTokenizerFast


@pytest.fixture(name="dynamo_export", scope="session")
def _dynamo_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Qwen3Model]:
    """The folder of an export by torch's default exporter, and its model."""
    folder, model = tmp_path_factory.mktemp("dynamo"), make_model()
    write_export(model, folder, "dynamo")
    return folder, model


@pytest.fixture(name="rerankers", scope="session")
def _rerankers(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Rerankers:
    return Rerankers(tmp_path_factory.mktemp("rerankers"), tokenizer)


@pytest.fixture(name="tokenizer", scope="session")
def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER),
        pad_token="<|endoftext|>",
        padding_side="left",
    )
