"""The options of a load. Each is declared here once, with its default, flag and description.

The command line reads these declarations (`commands/options.py`), and so does the documentation.
All values can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, TypeAlias, TypeVar, cast

from qwen3_triton_client import API_KEY_VARIABLE, BASE_URL_VARIABLE, DEFAULT_BASE_URL

from .layouts import LayoutName

SourceFormat: TypeAlias = Literal[
    "jsonl",
    "csv",
    "parquet",
    "text",
    "rst",
    "markdown",
    "html",
    "pdf",
    "office",
    "json",
    "ipynb",
    "xml",
    "epub",
    "eml",
    "archive",
    "converter",
    "sql",
]
Engine: TypeAlias = Literal["threads", "ray"]
IndexPolicy: TypeAlias = Literal["auto", "keep", "rebuild", "none"]
TextIndexPolicy: TypeAlias = Literal["auto", "tsvector", "paradedb", "none"]
VanishedPolicy: TypeAlias = Literal["auto", "delete", "keep"]
ConflictPolicy: TypeAlias = Literal["skip", "fail", "replace"]
Context: TypeAlias = Literal["headings", "none"]

MIB = 1024 * 1024
AUTO_ENCODING = "auto"
"""UTF-8 where it is valid, else what a file's bytes look like."""

_Value = TypeVar("_Value")
_Class = TypeVar("_Class")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How the command line offers a field; the field's type and default say the rest.

    Attributes:
        help: One or two sentences, for `--help` and the documentation.
        flag: Such as `-k, --k`. Default: `--` and the field's name.
        metavar: Placeholder of the value in `--help`.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.
        variable: Environment variable that the flag is read from.
        shown_default: Default in `--help`, if the field's is None.
        unit: What the flag's value is multiplied by.
        is_inverted: Whether the flag switches off a field that is on by default.
        is_path: Whether the value is an existing file or folder.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    variable: str | None = None
    shown_default: str | None = None
    unit: int = 1
    is_inverted: bool = False
    is_path: bool = False


def option(default: _Value, help: str, *, repr: bool = True, **details: Any) -> _Value:  # noqa: A002 - as click and `field` call them
    """Declare a field of a dataclass that is an option as well; the details are `Option`'s."""
    return field(default=default, repr=repr, metadata=_metadata(help, **details))


def option_of(cls: type[Any], name: str) -> Option:
    """Return how a field of a dataclass is offered.

    Raises:
        KeyError: The field is not an option.
    """
    return {each.name: each.metadata["option"] for each in fields(cls) if each.metadata}[name]


def documented(cls: type[_Class]) -> type[_Class]:
    """List the options of a dataclass in its docstring."""
    options = [each for each in fields(cast("Any", cls)) if "option" in each.metadata]
    lines = "".join(f"\n        {each.name}: {_description(each)}" for each in options)
    cls.__doc__ = f"{cls.__doc__}\n\n    Attributes:{lines}\n    "
    return cls


def _description(declared: Field[Any]) -> str:
    how: Option = declared.metadata["option"]
    return f"If False: {how.help}" if how.is_inverted else how.help


def _metadata(help: str, **details: Any) -> dict[str, Option]:  # noqa: A002 - see `option`
    return {"option": Option(help=help, **details)}


@documented
@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How sources are read."""

    format: SourceFormat | None = option(
        None, "Format of the sources. Default: by each file's extension."
    )
    text_column: str = option("text", "Column or key that contains the text.", metavar="NAME")
    id_column: str | None = option(
        None,
        "Column that contains the document id. Default: `id` if there is one, else the id is a "
        "digest of the text.",
        metavar="NAME",
    )
    metadata_columns: tuple[str, ...] | None = option(
        None,
        "Column to keep as metadata; repeat the flag for more. Default: all other columns.",
        flag="--metadata",
        metavar="NAME",
    )
    vector_column: str | None = option(
        None,
        "Column with precomputed vectors; the texts are then not split or embedded. Needs "
        "--fingerprint and --dimensions.",
        metavar="NAME",
    )
    delimiter: str | None = option(
        None,
        "Character between the fields of CSV files, or `tab`. Default: found in each file.",
        metavar="CHARACTER",
    )
    quote: str | None = option(
        None,
        "Character around fields of CSV files, or `none`. Default: found in each file.",
        metavar="CHARACTER",
    )
    has_header: bool = option(
        True,
        "CSV files begin without a header; their columns are called 1, 2 and so on.",
        flag="--no-header",
        is_inverted=True,
    )
    encoding: str = option(
        AUTO_ENCODING,
        "Encoding of text files. auto: UTF-8 where it is valid, else what the file looks like; "
        "the report names it.",
        metavar="NAME",
    )
    encodings: Mapping[str, str] = field(
        default_factory=dict[str, str],
        metadata=_metadata(
            "Encoding of the files that match a pattern, such as `legacy/*.txt=cp1252`; repeat the "
            "flag for more.",
            flag="--encoding-of",
            metavar="PATTERN=NAME",
        ),
    )
    include: tuple[str, ...] | None = option(
        None,
        "Load only files of folders and patterns that match, such as `*.md` or `guides/**`; repeat "
        "the flag for more.",
        metavar="PATTERN",
    )
    exclude: tuple[str, ...] | None = option(
        None,
        "Leave out files and folders that match, such as `drafts` or `*.min.html`; repeat the flag "
        "for more.",
        metavar="PATTERN",
    )
    follow_links: bool = option(
        False,
        "Follow symbolic links that lead out of a folder, and those to folders.",
    )
    pdf_password: str | None = option(
        None,
        "Password of encrypted PDF files.",
        repr=False,
        metavar="PASSWORD",
        variable="QWEN3_TRITON_PDF_PASSWORD",
    )
    converters: Mapping[str, str] = field(
        default_factory=dict[str, str],
        metadata=_metadata(
            "Command that prints a file with an extension as Markdown, such as `org=pandoc -t gfm "
            "{path}`; repeat the flag for more. It runs without a shell.",
            flag="--converter",
            metavar="EXT=COMMAND",
        ),
    )
    replace_nul: bool = option(
        False,
        "Replace NUL characters, which PostgreSQL cannot store, with U+FFFD, instead of skipping "
        "the document.",
    )
    max_document_bytes: int = option(
        32 * MIB,
        "Largest document to load; larger ones are skipped.",
        flag="--max-document-mib",
        metavar="MIB",
        minimum=0,
        unit=MIB,
    )
    max_metadata_bytes: int = 64 * 1024
    max_convert_bytes: int = option(
        1024 * MIB,
        "Most memory to read a PDF, HTML, Office, Parquet or other file with that is read in a "
        "process of its own; files that take more are skipped.",
        flag="--max-convert-mib",
        metavar="MIB",
        minimum=0,
        unit=MIB,
    )
    max_convert_seconds: float = option(
        120.0, "Longest time to read such a file.", metavar="SECONDS", minimum=0
    )
    source_name: str | None = option(
        None,
        "Name of the source, to which its documents belong. Default: the absolute path of a file, "
        "folder or pattern; a digest of the query. Set it where these change.",
        metavar="NAME",
    )
    query: str | None = option(
        None,
        "Load the rows of this query; SOURCE is then the URI of the database, or `sql` for the "
        "database that is loaded into.",
        metavar="SQL",
    )


@documented
@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How documents are split into chunks."""

    chunk_tokens: int = option(
        512, "Most tokens per chunk, including the end token; 0 keeps documents whole.", minimum=0
    )
    overlap_tokens: int = option(
        64, "Tokens that a chunk repeats from the chunk before it.", minimum=0
    )
    context: Context | None = option(
        None,
        "What precedes each chunk when it is embedded, and is not stored: the path of its "
        "headings, or nothing. A change embeds the documents of a table with headings again.",
        shown_default="the table's; headings for a new one",
    )
    tokenizer_path: str | None = option(
        None,
        "A tokenizer.json, or the folder that contains it. Default: ask the gateway for its own.",
        flag="--tokenizer",
        is_path=True,
    )


@documented
@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How the gateway is reached. For None, the client's variables and defaults apply."""

    url: str | None = option(
        None,
        "URL of the gateway.",
        flag="--gateway-url",
        metavar="URL",
        variable=BASE_URL_VARIABLE,
        shown_default=DEFAULT_BASE_URL,
    )
    api_key: str | None = option(
        None,
        "API key, if the gateway requires one.",
        repr=False,
        metavar="KEY",
        variable=API_KEY_VARIABLE,
    )
    max_concurrency: int = option(
        16, "Most concurrent requests to the gateway, across all workers.", minimum=1
    )
    instruction: str | None = option(
        None,
        "Embed the texts as queries with this instruction, for symmetric tasks such as duplicate "
        "detection and clustering. Default: embed them as documents.",
    )
    dimensions: int | None = option(
        None, "Dimensions of the vectors. Default: the gateway's.", minimum=1
    )
    truncate: bool = option(
        False,
        "Truncate chunks that are too long for the model, instead of skipping their documents.",
    )


@documented
@dataclass(frozen=True, slots=True)
class IndexOptions:
    """Which indexes the table gets after the load."""

    policy: IndexPolicy = option(
        "auto",
        "When to build the vector index. auto: drop it and build it again if the new rows are "
        "many compared to the old ones, else keep it.",
        flag="--index",
    )
    halfvec: bool = option(
        True,
        "Index float32 vectors instead of half precision, which takes a third of the size at "
        "equal recall.",
        flag="--full-precision-index",
        is_inverted=True,
    )
    m: int = option(16, "Neighbors per row in the HNSW index.", flag="--hnsw-m")
    ef_construction: int = option(
        64, "Candidates considered per row of the HNSW build.", flag="--hnsw-ef-construction"
    )
    maintenance_work_mem: str | None = option(
        None,
        "Memory for the index build, such as 2GB. Default: what the rows need, within limits.",
        metavar="SIZE",
    )
    parallel_workers: int | None = option(
        None,
        "Parallel workers for the index build. Default: as many as the server allows.",
        flag="--index-workers",
        minimum=0,
    )
    concurrently: bool = option(
        False, "Let others write to the table during the index build, which then takes longer."
    )
    text: TextIndexPolicy = option(
        "auto",
        "Index for text search. auto: ParadeDB's if pg_search is installed, else PostgreSQL's own.",
        flag="--text-index",
    )
    text_search_config: str = option(
        "auto",
        "Text search configuration for the language of the texts. auto: inferred from their "
        "commonest words; `simple` where the language has no configuration.",
        flag="--text-config",
        metavar="NAME",
    )


@documented
@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Everything about a load except its sources and its table."""

    layout: LayoutName = option(
        "own", "Columns of the table: our own, or those of a framework's PGVectorStore."
    )
    read: ReadOptions = field(default_factory=ReadOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    gateway: GatewayOptions = field(default_factory=GatewayOptions)
    index: IndexOptions = field(default_factory=IndexOptions)
    engine: Engine = option(
        "threads", "Where shards are processed: threads of this process, or a Ray cluster."
    )
    engine_address: str | None = option(
        None,
        "Address of the Ray cluster. Default: the one on this machine, or a new one.",
        metavar="ADDRESS",
    )
    workers: int = option(2, "Shards to process at the same time.", minimum=1)
    vanished: VanishedPolicy = option(
        "auto",
        "What to do with documents that are no longer in their source. auto: delete them, unless "
        "more than --max-vanished are gone or records of their file cannot be read.",
    )
    max_vanished_fraction: float | None = option(
        None,
        "Delete nothing if more than this fraction of the documents that a source had has "
        "vanished; 1 deletes all of them.",
        flag="--max-vanished",
        metavar="FRACTION",
        minimum=0,
        maximum=1,
        shown_default="0.2; 1 with --vanished delete",
    )
    on_conflict: ConflictPolicy = option(
        "skip",
        "What to do with a document whose id another source's document has. skip: report it. "
        "fail: end the load. replace: it takes the other one's place.",
    )
    adopt: bool = option(
        False,
        "Take over a table that already has rows; you confirm that the gateway's model made their "
        "vectors.",
    )
    fingerprint: str | None = option(
        None, "Embedding space of the vectors in --vector-column.", metavar="FINGERPRINT"
    )
    retry_seconds: float = option(
        120.0,
        "How long to wait for PostgreSQL while it is unavailable.",
        metavar="SECONDS",
        minimum=0,
    )
    labels: Mapping[str, str] = field(
        default_factory=dict[str, str],
        metadata=_metadata(
            "Metadata that every document gets; repeat the flag for more.",
            flag="--label",
            metavar="KEY=VALUE",
        ),
    )
