"""The many options of `load`, in groups, and the values that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import click

from ..config import (
    Engine,
    GatewayOptions,
    IndexOptions,
    IndexPolicy,
    LoadOptions,
    ReadOptions,
    SourceFormat,
    SplitOptions,
    TextIndex,
    VanishedPolicy,
)
from ..layouts import LayoutName

__all__ = ["load_flags", "read_load_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

MIB = 1024 * 1024


def _choice(literal: Any) -> click.Choice[str]:
    return click.Choice(get_args(literal))


_READING = (
    click.option(
        "--format",
        "source_format",
        type=_choice(SourceFormat),
        help="What the sources are; default by each file's name.",
    ),
    click.option(
        "--query",
        metavar="SQL",
        help="Load the rows of a query; SOURCE is then the URI of its database.",
    ),
    click.option(
        "--text-column",
        default="text",
        show_default=True,
        metavar="NAME",
        help="Column or key that holds the text.",
    ),
    click.option(
        "--id-column",
        metavar="NAME",
        help="Column that holds the document's id; default `id`, else an id is made of the text.",
    ),
    click.option(
        "--metadata",
        "metadata_columns",
        multiple=True,
        metavar="NAME",
        help="Column to keep as metadata, again for each; default all the others.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="KEY=VALUE",
        help="Metadata that every document gets.",
    ),
    click.option("--encoding", default="utf-8", show_default=True, help="Of text files."),
    click.option(
        "--replace-nul",
        is_flag=True,
        help="Load texts with NUL characters, each replaced by U+FFFD.",
    ),
    click.option(
        "--max-document-mib",
        type=click.FloatRange(min=0, min_open=True),
        default=32,
        show_default=True,
        help="Larger documents are set aside.",
    ),
    click.option(
        "--vector-column",
        metavar="NAME",
        help="Column of vectors computed before; needs --fingerprint and --dimensions.",
    ),
    click.option("--fingerprint", help="Embedding space of the --vector-column."),
)
_SPLITTING = (
    click.option(
        "--chunk-tokens",
        type=click.IntRange(min=0),
        default=512,
        show_default=True,
        help="Most tokens of a chunk; 0 leaves documents whole.",
    ),
    click.option(
        "--overlap-tokens",
        type=click.IntRange(min=0),
        default=64,
        show_default=True,
        help="Tokens that a chunk repeats of the one before.",
    ),
    click.option(
        "--tokenizer",
        "tokenizer_path",
        type=click.Path(exists=True),
        help="A tokenizer.json; default the gateway's own.",
    ),
    click.option(
        "--truncate",
        is_flag=True,
        help="Cut chunks that are too long for the model, instead of setting them aside.",
    ),
)
_EMBEDDING = (
    click.option("--dimensions", type=click.IntRange(min=1), help="Default the gateway's."),
    click.option(
        "--instruction",
        help="Embed the texts as queries with this instruction, for tasks with like sides.",
    ),
    click.option(
        "--max-concurrency",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="Requests to the gateway at once, over all workers.",
    ),
)
_INDEXING = (
    click.option(
        "--index",
        "index_policy",
        type=_choice(IndexPolicy),
        default="auto",
        show_default=True,
        help="auto: drop and rebuild the vector index where the new rows are many.",
    ),
    click.option(
        "--full-precision-index",
        is_flag=True,
        help="Index float32 and not half precision: three times the size.",
    ),
    click.option("--hnsw-m", type=int, default=16, show_default=True, help="Neighbours a row."),
    click.option(
        "--hnsw-ef-construction",
        type=int,
        default=64,
        show_default=True,
        help="Candidates looked at for each row of the build.",
    ),
    click.option(
        "--maintenance-work-mem",
        metavar="SIZE",
        help="Memory of the build, such as 2GB; default what the rows need.",
    ),
    click.option(
        "--index-workers",
        type=click.IntRange(min=0),
        help="Parallel workers of the build; default as many as the server allows.",
    ),
    click.option(
        "--concurrently", is_flag=True, help="Let others write during the build; it takes longer."
    ),
    click.option(
        "--text-index",
        type=_choice(TextIndex),
        default="auto",
        show_default=True,
        help="Index for the search by words.",
    ),
    click.option(
        "--text-config",
        default="english",
        show_default=True,
        metavar="NAME",
        help="Text search configuration for the texts' language; simple for a mixture.",
    ),
)
_RUNNING = (
    click.option(
        "--layout",
        type=_choice(LayoutName),
        default="own",
        show_default=True,
        help="Columns of the table: ours, or those of a framework's PGVectorStore.",
    ),
    click.option(
        "--engine",
        type=_choice(Engine),
        default="threads",
        show_default=True,
        help="Where shards are worked on.",
    ),
    click.option("--engine-address", metavar="ADDRESS", help="Of the Ray or Dask cluster."),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        help="Shards under way at once.",
    ),
    click.option(
        "--vanished",
        type=_choice(VanishedPolicy),
        default="delete",
        show_default=True,
        help="What becomes of documents that their source no longer holds.",
    ),
    click.option(
        "--max-vanished",
        type=click.FloatRange(0, 1),
        default=0.2,
        show_default=True,
        help="Where a larger part has vanished, none is removed; 1 removes them all the same.",
    ),
    click.option(
        "--adopt",
        is_flag=True,
        help="Take over a table with rows, vouching that the gateway's model made them.",
    ),
    click.option(
        "--reembed",
        is_flag=True,
        help="First move the table to the model that the gateway serves now.",
    ),
    click.option(
        "--retry-seconds",
        type=click.FloatRange(min=0),
        default=120,
        show_default=True,
        help="How long PostgreSQL may be away.",
    ),
)


def load_flags(command: Command) -> Command:
    """Add the flags of `load`."""
    for option in reversed((*_READING, *_SPLITTING, *_EMBEDDING, *_INDEXING, *_RUNNING)):
        command = option(command)
    return command


def read_load_options(flags: Mapping[str, Any]) -> LoadOptions:
    """Turn the flags into options.

    Raises:
        click.UsageError: A label is no KEY=VALUE.
    """
    return LoadOptions(
        layout=flags["layout"],
        read=_reading(flags),
        split=SplitOptions(
            chunk_tokens=flags["chunk_tokens"],
            overlap_tokens=flags["overlap_tokens"],
            tokenizer_path=flags["tokenizer_path"],
        ),
        gateway=GatewayOptions(
            url=flags["gateway_url"],
            api_key=flags["api_key"],
            max_concurrency=flags["max_concurrency"],
            instruction=flags["instruction"],
            dimensions=flags["dimensions"],
            truncate=flags["truncate"],
        ),
        index=_indexing(flags),
        engine=flags["engine"],
        engine_address=flags["engine_address"],
        workers=flags["workers"],
        vanished=flags["vanished"],
        max_vanished_fraction=flags["max_vanished"],
        adopt=flags["adopt"],
        fingerprint=flags["fingerprint"],
        retry_seconds=flags["retry_seconds"],
        labels=dict(_label(label) for label in flags["labels"]),
    )


def _reading(flags: Mapping[str, Any]) -> ReadOptions:
    return ReadOptions(
        format=flags["source_format"],
        text_column=flags["text_column"],
        id_column=flags["id_column"],
        metadata_columns=flags["metadata_columns"] or None,
        vector_column=flags["vector_column"],
        encoding=flags["encoding"],
        replace_nul=flags["replace_nul"],
        max_document_bytes=int(flags["max_document_mib"] * MIB),
        query=flags["query"],
    )


def _indexing(flags: Mapping[str, Any]) -> IndexOptions:
    return IndexOptions(
        policy=flags["index_policy"],
        halfvec=not flags["full_precision_index"],
        m=flags["hnsw_m"],
        ef_construction=flags["hnsw_ef_construction"],
        maintenance_work_mem=flags["maintenance_work_mem"],
        parallel_workers=flags["index_workers"],
        concurrently=flags["concurrently"],
        text=flags["text_index"],
        text_search_config=flags["text_config"],
    )


def _label(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not equals or not key:
        raise click.UsageError(f"--label {label!r} must look like KEY=VALUE.")
    return key, value
