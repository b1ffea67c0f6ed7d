"""`qwen3-triton model pool`."""

from __future__ import annotations

from pathlib import Path

import click

from qwen3_triton_gateway.cli import plain_errors

from .output import json_option, print_json


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="An .onnx file, or a folder to make a whole model folder of; default NAME_pooled.onnx "
    "beside the model.",
)
@click.option("--keep-hidden", is_flag=True, help="Keep the hidden state as an output too.")
@click.option(
    "--copy",
    is_flag=True,
    help="Copy weights to another folder, do not hard-link them: `onnx` itself refuses links.",
)
@click.option("--force", is_flag=True, help="Replace what is there.")
@json_option
def pool(
    path: Path,
    *,
    out: Path | None,
    keep_hidden: bool,
    copy: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Append last-token pooling to an ONNX export: vectors leave Triton, not hidden states.

    PATH is an ONNX file or a folder with one. Adds the output `sentence_embedding`, float32 of
    shape (batch, hidden size), right for padding on either side. Vectors are not normalized in the
    graph: the gateway cuts them to `dimensions` first. The weights are not loaded, and files of
    weights are shared or hard-linked, or copied to another disk.

    \b
    Examples:
      qwen3-triton model pool ./qwen3-embedding-4b
      qwen3-triton model pool ./qwen3-embedding-4b -o ./qwen3-embedding-4b-pooled
      qwen3-triton model pool ./model.onnx -o ./pooled.onnx --keep-hidden
    """
    from ..model.errors import ModelToolError
    from ..model.locate import find_model
    from ..model.pool import pool_model
    from ..onnx_file import OnnxFileError

    with plain_errors(ModelToolError, OnnxFileError):
        done = pool_model(
            find_model(path),
            out,
            keep_hidden=keep_hidden,
            force=force,
            transfer="copy" if copy else "auto",
        )
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "hidden_size": done.hidden_size,
                "already_pooled": done.already,
                "external_files": done.external_files,
                "checked_by": done.checked,
            }
        )
    elif done.already:
        click.echo(f"{done.path} is pooled already; nothing was written.")
    else:
        click.echo(f"{done.path} gives `sentence_embedding`, float32 (batch, {done.hidden_size}).")
        click.echo("Not normalized: the gateway cuts to `dimensions`, then normalizes.")
        if done.external_files:
            click.echo(f"{done.external_files} file(s) of weights lie beside it.")
