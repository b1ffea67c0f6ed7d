"""Exports that take seconds to make, for all tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from card_rerankers import Rerankers
from exported_models import TOKENIZER, make_reranker, write_export
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


@pytest.fixture(name="model", scope="session")
def _model() -> Qwen3ForCausalLM:
    return make_reranker()


@pytest.fixture(name="dynamo_export", scope="session")
def _dynamo_export(model: Qwen3ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model's trunk, exported by torch's default exporter."""
    folder = tmp_path_factory.mktemp("dynamo")
    write_export(model.model, folder, "dynamo")
    return folder


@pytest.fixture(name="rerankers", scope="session")
def _rerankers(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Rerankers:
    return Rerankers(tmp_path_factory.mktemp("rerankers"), tokenizer, {"tied": model})


@pytest.fixture(name="tokenizer", scope="session")
def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER),
        pad_token="<|endoftext|>",
        padding_side="left",
    )
