"""`qwen3-triton-ingest search`: search a table."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

import click

from ..config import GatewayOptions
from ..errors import FilterError
from ..layouts import LayoutName
from ..search.options import SearchOptions
from ..search.text_indexes import BACKENDS, TextBackendChoice
from .options import database_options, json_option, option_flags
from .output import plain_errors, print_json

if TYPE_CHECKING:
    from ..search import Hit

SNIPPET_CHARACTERS = 240


@click.command()
@click.argument("question")
@database_options
@option_flags(GatewayOptions, only=("url", "api_key"))
@option_flags(SearchOptions)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="Condition on the metadata: lang=en, 'year>=2020', 'topic in a,b', 'tags contains x', or "
    "JSON. Repeat the flag for more; all must hold.",
)
@click.option(
    "--layout",
    type=click.Choice(get_args(LayoutName)),
    help="Layout of the table. Default: inferred from its columns.",
)
@click.option(
    "--text-backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="Text search to use. auto: BM25 if the table has an index for it, else PostgreSQL's own.",
)
@click.option(
    "--text-config",
    metavar="NAME",
    help="Text search configuration. Default: the index's.",
)
@click.option(
    "--collection",
    metavar="NAME",
    help="Collection of LangChain's old PGVector. Default: the only one.",
)
@click.option("--instruction", help="What the question is for. Default: the gateway's instruction.")
@click.option("--show-sql", is_flag=True, help="Print the SQL instead of running it.")
@json_option
def search(
    *,
    question: str,
    dsn: str,
    table: str,
    url: str | None,
    api_key: str | None,
    filters: tuple[str, ...],
    layout: LayoutName | None,
    text_backend: TextBackendChoice,
    text_config: str | None,
    collection: str | None,
    instruction: str | None,
    show_sql: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the chunks of a table that best answer QUESTION.

    The gateway must serve the model that made the table's vectors; otherwise the search fails. With
    --rerank it must also serve a reranker, which reads the question together with each chunk.

    \b
    Examples:
      qwen3-triton-ingest search "How do I reset the pump?" --table manuals
      qwen3-triton-ingest search "error E-42" --table manuals --mode text -k 3
      qwen3-triton-ingest search "pump" --table manuals --filter lang=en --filter 'year>=2020'
      qwen3-triton-ingest search "How do I reset the pump?" --table manuals --rerank -k 5
      qwen3-triton-ingest search "pump" --table manuals --json | jq -r '.hits[].doc_id'
      qwen3-triton-ingest search "pump" --table manuals --show-sql
    """
    from ..search import Searcher, parse_filters

    for option in ("fetch_k", "rerank_instruction"):
        if options[option] is not None and not options["rerank"]:
            flag = f"--{option.replace('_', '-')}"
            raise click.UsageError(f"{flag} is for reranking. Pass --rerank, too.")
    try:
        options["filter"] = parse_filters(filters)
    except FilterError as error:
        raise click.UsageError(f"--filter: {error}") from None
    gateway = GatewayOptions(url=url, api_key=api_key, instruction=instruction)
    with (
        plain_errors(ValueError),
        Searcher(
            dsn,
            table,
            layout=layout,
            gateway=gateway,
            text_backend=text_backend,
            text_config=text_config,
            collection=collection,
        ) as searcher,
    ):
        if show_sql:
            click.echo(searcher.sql(**options))
            return
        hits = searcher.search(question, **options)
    if as_json:
        print_json({"hits": [_document(hit) for hit in hits]})
    else:
        _print(hits)


def _document(hit: Hit) -> dict[str, object]:
    names = [each.name for each in fields(hit) if each.name != "stored_metadata"]
    return {name: getattr(hit, name) for name in names}


def _print(hits: list[Hit]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    if not hits:
        console.print("Nothing found.")
    for place, hit in enumerate(hits, 1):
        heading = Text(f"{place}. ", style="bold")
        heading.append(hit.doc_id or hit.id, style="bold cyan")
        if hit.seq is not None:
            heading.append(f"  chunk {hit.seq}")
        heading.append(f"  {_ranks(hit)}", style="dim")
        console.print(heading)
        console.print(Text(_snippet(hit.text)))


def _ranks(hit: Hit) -> str:
    parts = [f"score {hit.score:.4f}"]
    if hit.search_rank is not None:
        parts.insert(0, _rerank(hit))
    if hit.vector_rank is not None and hit.distance is not None:
        parts.append(f"vector #{hit.vector_rank} at {hit.distance:.3f}")
    if hit.text_rank is not None:
        parts.append(f"text #{hit.text_rank}")
    return ", ".join(parts)


def _rerank(hit: Hit) -> str:
    blank = "" if hit.text.strip() else ", no text"
    cut = ", text truncated" if hit.rerank_truncated else ""
    return f"rerank {hit.rerank_score:.4f}{blank} (was #{hit.search_rank}{cut})"


def _snippet(text: str) -> str:
    # The content of a document must not control the terminal.
    plain = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    if len(plain) <= SNIPPET_CHARACTERS:
        return plain
    return plain[: SNIPPET_CHARACTERS - 1].rstrip() + "…"
