"""The group `qwen3-triton model`."""

from __future__ import annotations

import click

from .model_inspect import inspect_command
from .model_pool import pool
from .model_pull import pull
from .model_repository import repository
from .model_verify import verify


@click.group()
def model() -> None:
    """Look into ONNX exports of Qwen3-Embedding, fetch, pool, deploy and verify them.

    \b
    Examples:
      qwen3-triton model inspect ./qwen3-embedding-0.6b
      qwen3-triton model verify http://localhost:8101
    """


model.add_command(inspect_command)
model.add_command(pool)
model.add_command(repository)
model.add_command(pull)
model.add_command(verify)
