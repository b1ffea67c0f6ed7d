"""`qwen3-triton doctor`: check this machine and a running stack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click
from click.core import ParameterSource
from pydantic import ValidationError

from qwen3_triton_gateway.settings import Settings, parse_headers

from . import json_option, print_json, print_lines

if TYPE_CHECKING:
    from ..doctor import Target

# Not `exists=True`: a missing folder is a finding, not bad usage.
ANY_PATH = click.Path(path_type=Path)
EXPLICIT_SOURCES = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


@click.command()
@click.option(
    "--url",
    envvar="QWEN3_TRITON_URL",
    default="http://localhost:8101",
    help="The gateway. [QWEN3_TRITON_URL; default http://localhost:8101]",
)
@click.option(
    "--triton-url",
    envvar="TRITON_URL",
    default="",
    help="Triton's URL, as for `serve`; default: the one that the gateway uses, or port 8200. "
    "[TRITON_URL]",
)
@click.option(
    "--triton-headers",
    envvar="EMBED_TRITON_HEADERS",
    default="",
    help="Headers of every request to Triton, as for `serve`. [EMBED_TRITON_HEADERS]",
)
@click.option(
    "--triton-ca-file",
    envvar="EMBED_TRITON_CA_FILE",
    type=ANY_PATH,
    help="Certificates to trust for https and grpcs. [EMBED_TRITON_CA_FILE]",
)
@click.option(
    "--triton-model",
    envvar="TRITON_MODEL",
    default=str(Settings.model_fields["triton_model"].default),
    help="Name of the model in Triton. [TRITON_MODEL; default: its only model]",
)
@click.option(
    "--rerank-triton-model",
    "rerank_model",
    envvar="RERANK_TRITON_MODEL",
    help="Name of a reranker in Triton. [RERANK_TRITON_MODEL; default: that of the gateway]",
)
@click.option(
    "--model-repository", type=ANY_PATH, help="Triton's model repository, to check its files."
)
@click.option(
    "--model-dir",
    envvar="EMBED_MODEL_DIR",
    type=ANY_PATH,
    help="Folder with model.onnx and tokenizer. [EMBED_MODEL_DIR]",
)
@click.option(
    "--rerank-model-dir",
    envvar="RERANK_MODEL_DIR",
    type=ANY_PATH,
    help="Folder with a reranker's model.onnx and tokenizer. [RERANK_MODEL_DIR]",
)
@click.option(
    "--tokenizer-path",
    envvar="TOKENIZER_PATH",
    type=ANY_PATH,
    help="Folder or file of tokenizer.json. [TOKENIZER_PATH]",
)
@click.option(
    "--rerank-tokenizer-path",
    envvar="RERANK_TOKENIZER_PATH",
    type=ANY_PATH,
    help="Folder or file of the reranker's tokenizer.json. [RERANK_TOKENIZER_PATH]",
)
@click.option(
    "--engine-cache-dir",
    envvar="EMBED_ENGINE_CACHE_DIR",
    type=ANY_PATH,
    help="Folder in which OpenVINO keeps compiled models. [EMBED_ENGINE_CACHE_DIR]",
)
@click.option(
    "--output-dim",
    envvar="EMBED_OUTPUT_DIM",
    type=int,
    default=int(Settings.model_fields["output_dim"].default),
    help="Dimensions of the vectors, if there is no gateway. [EMBED_OUTPUT_DIM; default 1024]",
)
@click.option(
    "--api-key",
    envvar=["QWEN3_TRITON_API_KEY", "EMBED_API_KEYS"],
    help="A key of the gateway. [QWEN3_TRITON_API_KEY, or the first of EMBED_API_KEYS]",
)
@click.option(
    "--database-url",
    envvar="DATABASE_URL",
    help="PostgreSQL with pgvector or ParadeDB to check, a libpq URI. [DATABASE_URL]",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Timeout of each request to the gateway and to Triton.",
)
@json_option
@click.pass_context
def doctor(context: click.Context, *, as_json: bool, **options: Any) -> None:
    """Check this machine and a running stack, and say what is wrong and how to fix it.

    Nothing is changed. What does not exist is skipped, unless an option or a variable refers to it:
    then its absence is a failure. Exits with 1 if anything failed, else with 0.

    \b
    Examples:
      qwen3-triton doctor
      qwen3-triton doctor --url http://gpu-box:8101 --database-url postgresql://localhost/rag
      qwen3-triton doctor --model-repository ./model_repository --triton-model qwen3_embed_4b_onnx
      qwen3-triton doctor --json | jq '.checks[] | select(.outcome == "failed")'
    """
    from ..doctor import as_document, run_checks
    from ..findings import has_errors, mask_secrets, render_sections

    target = _target(context, **options)
    sections = mask_secrets(run_checks(target), _secrets(target, options["api_key"]))
    if as_json:
        print_json(as_document(sections))
    else:
        print_lines(render_sections(sections))
    sys.exit(1 if any(has_errors(section.findings) for section in sections) else 0)


def _target(
    context: click.Context,
    *,
    url: str,
    triton_url: str,
    triton_headers: str,
    api_key: str | None,
    database_url: str | None,
    **unchanged: Any,
) -> Target:
    from ..doctor import Target

    return Target(
        url=(url if "://" in url else f"http://{url}").rstrip("/"),
        is_url_explicit=_is_explicit(context, "url"),
        triton_urls=tuple(part.strip() for part in triton_url.split(",") if part.strip()),
        triton_headers=_headers(context, triton_headers),
        is_model_explicit=_is_explicit(context, "triton_model"),
        api_key=(api_key or "").split(",")[0].strip() or None,
        database_url=database_url or None,
        settings_problem=_settings_problem(),
        **unchanged,
    )


def _headers(context: click.Context, text: str) -> dict[str, str]:
    try:
        return parse_headers(text)
    except ValueError as error:
        if context.get_parameter_source("triton_headers") is ParameterSource.ENVIRONMENT:
            return {}  # a finding of its own: see `_settings_problem`
        raise click.BadParameter(str(error), param_hint="--triton-headers") from None


def _is_explicit(context: click.Context, parameter: str) -> bool:
    return context.get_parameter_source(parameter) in EXPLICIT_SOURCES


def _settings_problem() -> str:
    """Read the environment as `serve` does, and return why it would refuse it."""
    try:
        Settings()
    except ValidationError as error:
        problems = [
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]]))
            for item in error.errors(include_url=False, include_input=False)
        ]
        return "; ".join(problems)
    return ""


def _secrets(target: Target, api_keys: str | None) -> list[str]:
    """Return the texts that must not be printed."""
    secrets = [key.strip() for key in (api_keys or "").split(",")]
    for url in target.triton_urls:
        password = url.rpartition("@")[0].rpartition("://")[2].partition(":")[2]
        secrets += [password, unquote(password)]
    secrets += target.triton_headers.values()
    if target.database_url:
        password = urlsplit(target.database_url).password or ""
        # libpq's errors quote a URI that it cannot parse.
        secrets += [target.database_url, password, unquote(password)]
    return secrets
