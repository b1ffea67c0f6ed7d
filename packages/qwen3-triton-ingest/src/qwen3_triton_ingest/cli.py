"""The command line."""

from __future__ import annotations

import click

from ._version import __version__
from .commands.load import load
from .commands.search import search
from .commands.status import status


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Load documents into pgvector or ParadeDB with Qwen3-Embedding vectors, and search them.

    \b
    Examples:
      qwen3-triton-ingest load docs/ --table manuals
      qwen3-triton-ingest search "How do I reset the pump?" --table manuals
      qwen3-triton-ingest status --table manuals

    Set the database with --dsn or DATABASE_URL, and the gateway with --gateway-url or
    QWEN3_TRITON_URL.
    """


main.add_command(load)
main.add_command(search)
main.add_command(status)
