"""`qwen3-triton model inspect`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click

from qwen3_triton_gateway.cli import plain_errors

from .output import endpoint_option, json_option, print_json


@click.command("inspect")
@click.argument("path", metavar="PATH|REPO", type=click.Path(path_type=Path))
@click.option("--revision", help="Of a repository: branch, tag or commit; default the newest.")
@click.option("--variant", metavar="NAME", help="Of a repository: fp16, int8, q4 …")
@endpoint_option
@json_option
def inspect_command(
    path: Path, *, revision: str | None, variant: str | None, endpoint: str | None, as_json: bool
) -> None:
    """Say what an ONNX export is, what the gateway would do with it, and what is wrong.

    PATH is an ONNX file or a folder with one; REPO a repository of the Hugging Face hub, of which
    all but the weights is fetched for the moment. Weights are not loaded: gigabytes take
    milliseconds. Ends with 1 if the gateway could not serve the model.

    \b
    Examples:
      qwen3-triton model inspect ./qwen3-embedding-0.6b
      qwen3-triton model inspect ./qwen3-embedding-4b/model_fp16.onnx
      qwen3-triton model inspect ./qwen3-embedding-0.6b --json
      qwen3-triton model inspect zhiqing/Qwen3-Embedding-4B-ONNX
    """
    from ..model.errors import ModelToolError
    from ..model.hub_outline import fetched_outline
    from ..model.inspection import as_document, inspect_model
    from ..model.inspection_text import render_inspection
    from ..model.locate import find_model, is_hub_name
    from ..onnx_file import OnnxFileError

    place: AbstractContextManager[Path] = nullcontext(path)
    if is_hub_name(path):
        click.echo(f"There is no {path} on this machine; asking the hub for it.", err=True)
        place = fetched_outline(str(path), revision=revision, variant=variant, endpoint=endpoint)
    with plain_errors(ModelToolError, OnnxFileError), place as found:
        inspection = inspect_model(find_model(found))
    if as_json:
        print_json(as_document(inspection))
    else:
        click.echo(render_inspection(inspection))
    if not inspection.is_servable:
        sys.exit(1)
