"""`qwen3-triton doctor`: what is wrong with this machine or a running stack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click
from click.core import ParameterSource
from pydantic import ValidationError

from qwen3_triton_gateway.settings import Settings

from .output import json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..doctor.checks import Section
    from ..doctor.examination import Patient

# Not `exists=True`: a folder that is not there is a finding, not bad usage.
ANY_PATH = click.Path(path_type=Path)
CHOSEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


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
    help="Triton, as `serve` takes it; by default the one that the gateway tells, or port 8200. "
    "[TRITON_URL]",
)
@click.option(
    "--triton-model",
    envvar="TRITON_MODEL",
    default=str(Settings.model_fields["triton_model"].default),
    help="Name of the model in Triton. [TRITON_MODEL; default the only one there]",
)
@click.option(
    "--model-repository", type=ANY_PATH, help="Triton's model repository, to look at its files."
)
@click.option(
    "--model-dir",
    envvar="EMBED_MODEL_DIR",
    type=ANY_PATH,
    help="Folder with model.onnx and tokenizer. [EMBED_MODEL_DIR]",
)
@click.option(
    "--tokenizer-path",
    envvar="TOKENIZER_PATH",
    type=ANY_PATH,
    help="Folder or file of tokenizer.json. [TOKENIZER_PATH]",
)
@click.option(
    "--output-dim",
    envvar="EMBED_OUTPUT_DIM",
    type=int,
    default=int(Settings.model_fields["output_dim"].default),
    help="Dimensions of the vectors, where no gateway tells. [EMBED_OUTPUT_DIM; default 1024]",
)
@click.option(
    "--api-key",
    envvar=["QWEN3_TRITON_API_KEY", "EMBED_API_KEYS"],
    help="A key of the gateway. [QWEN3_TRITON_API_KEY, or the first of EMBED_API_KEYS]",
)
@click.option(
    "--database-url",
    envvar="DATABASE_URL",
    help="PostgreSQL with pgvector or ParadeDB to look at, a libpq URI. [DATABASE_URL]",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For each call to the gateway and to Triton.",
)
@json_option
@click.pass_context
def doctor(context: click.Context, *, as_json: bool, **options: Any) -> None:
    """Check this machine and a running stack; say what is wrong and how to mend it.

    Nothing is changed. What is not there is skipped, unless an option or a variable names it:
    then its absence is a failure. Ends with 1 if anything failed, else with 0.

    \b
    Examples:
      qwen3-triton doctor
      qwen3-triton doctor --url http://gpu-box:8101 --database-url postgresql://localhost/rag
      qwen3-triton doctor --model-repository ./model_repository --triton-model qwen3_embed_4b_onnx
      qwen3-triton doctor --json | jq '.checks[] | select(.outcome == "failed")'
    """
    from ..doctor.examination import examine
    from ..doctor.report import any_failed, as_document, without_secrets

    patient = _patient(context, **options)
    sections = without_secrets(examine(patient), _secrets(patient, options["api_key"]))
    if as_json:
        print_json(as_document(sections))
    else:
        _print(sections)
    sys.exit(1 if any_failed(sections) else 0)


def _patient(
    context: click.Context,
    *,
    url: str,
    triton_url: str,
    api_key: str | None,
    database_url: str | None,
    **same: Any,
) -> Patient:
    from ..doctor.examination import Patient

    return Patient(
        url=(url if "://" in url else f"http://{url}").rstrip("/"),
        url_named=_named(context, "url"),
        triton_urls=tuple(part.strip() for part in triton_url.split(",") if part.strip()),
        triton_model_named=_named(context, "triton_model"),
        api_key=(api_key or "").split(",")[0].strip() or None,
        database_url=database_url or None,
        settings_problem=_settings_problem(),
        **same,
    )


def _print(sections: Sequence[Section]) -> None:
    from ..doctor.report import as_lines

    for line, color in as_lines(sections):
        click.secho(line, fg=color)


def _named(context: click.Context, parameter: str) -> bool:
    return context.get_parameter_source(parameter) in CHOSEN


def _settings_problem() -> str:
    """Read the environment as `serve` does, and say what it would refuse."""
    try:
        Settings()
    except ValidationError as error:
        problems = [
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]]))
            for item in error.errors(include_url=False, include_input=False)
        ]
        return "; ".join(problems)
    return ""


def _secrets(patient: Patient, api_keys: str | None) -> list[str]:
    """List what no line may show."""
    secrets = [key.strip() for key in (api_keys or "").split(",")]
    if patient.database_url:
        password = urlsplit(patient.database_url).password or ""
        # libpq quotes a URI that it cannot read.
        secrets += [patient.database_url, password, unquote(password)]
    return secrets
