"""The command line."""

from __future__ import annotations

import click

from ._version import __version__
from .commands.load import load
from .commands.search import search
from .commands.status import status

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Bring documents into pgvector or ParadeDB through the Qwen3-Embedding gateway, and search.

    \b
    Examples:
      qwen3-triton-ingest load docs/ --table manuals
      qwen3-triton-ingest search "How do I reset the pump?" --table manuals
      qwen3-triton-ingest status --table manuals

    The database is named by --dsn or DATABASE_URL, the gateway by --gateway-url or
    QWEN3_TRITON_URL.
    """


main.add_command(load)
main.add_command(search)
main.add_command(status)
