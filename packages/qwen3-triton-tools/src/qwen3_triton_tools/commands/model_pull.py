"""`qwen3-triton model pull`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from qwen3_triton_gateway.cli import plain_errors

from .output import endpoint_option, json_option, print_json


@click.command()
@click.argument("repo", metavar="REPO")
@click.option("--revision", help="Branch, tag or commit; default the newest.")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to fill; default one named after the repository.",
)
@click.option("--variant", metavar="NAME", help="fp16, int8, q4 …: model_NAME.onnx of many.")
@click.option("--include", metavar="GLOB", multiple=True, help="Other files to fetch as well.")
@endpoint_option
@json_option
def pull(
    *,
    repo: str,
    revision: str | None,
    folder: Path | None,
    variant: str | None,
    include: tuple[str, ...],
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Fetch an ONNX export from the Hugging Face hub into a folder that can be served.

    Only what serving needs comes: the graph as model.onnx, its weights, the tokenizer and the
    configuration. Checksums are compared and written to qwen3-triton.json; run again, the command
    checks the folder and completes what is missing or was interrupted.

    \b
    Known exports:
      zhiqing/Qwen3-Embedding-0.6B-ONNX          float16
      zhiqing/Qwen3-Embedding-4B-ONNX            float16, 8 GB
      onnx-community/Qwen3-Embedding-0.6B-ONNX   --variant fp16, int8, q4 …
      onnx-community/Qwen3-Embedding-4B-ONNX     float32, 16 GB; -8B-ONNX 30 GB
      Qdrant/Qwen3-Embedding-0.6B-onnx           float32, 2.4 GB

    \b
    Examples:
      qwen3-triton model pull zhiqing/Qwen3-Embedding-0.6B-ONNX
      qwen3-triton model pull onnx-community/Qwen3-Embedding-0.6B-ONNX --variant fp16 --to ./qwen3
      qwen3-triton serve --model-dir ./qwen3
    """
    from ..model.errors import ModelToolError
    from ..model.pulling import Pull, default_folder, pull_model

    wanted = Pull(repo, folder or default_folder(repo, variant), revision, variant, include)
    with plain_errors(ModelToolError):
        manifest = pull_model(wanted, endpoint=endpoint, say=_say)
    if as_json:
        print_json({"folder": str(wanted.folder)} | asdict(manifest))
        return
    total = sum(file.size_bytes for file in manifest.files) / 1e6
    click.echo(
        f"{wanted.folder} holds {repo} at {manifest.revision[:12]}: {len(manifest.files)} files, "
        f"{total:,.1f} MB, checksums right."
    )
    click.echo(f"Serve it: qwen3-triton serve --model-dir {wanted.folder}")


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)
