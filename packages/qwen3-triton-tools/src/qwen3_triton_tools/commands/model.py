"""`qwen3-triton model`: inspect, pool and pull; others are in files of their own."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import (
    endpoint_option,
    json_option,
    pooling_option,
    print_json,
    print_lines,
    report_progress,
    rerank_option,
    tool_errors,
)
from .model_quantize import quantize
from .model_repository import repository
from .model_verify import verify

if TYPE_CHECKING:
    from qwen3_triton_gateway.settings import Pooling

    from ..model.pool import PooledModel

# Reading and writing larger files takes long enough to say so.
LARGE_FILE_BYTES = 256 * 1024 * 1024


@click.group()
def model() -> None:
    """Inspect, fetch, pool, deploy and verify ONNX exports of Qwen3-Embedding and Qwen3-Reranker.

    \b
    Examples:
      qwen3-triton model inspect ./qwen3-embedding-0.6b
      qwen3-triton model verify http://localhost:8101
    """


model.add_command(quantize)
model.add_command(repository)
model.add_command(verify)


@model.command("inspect")
@click.argument("path", metavar="PATH|REPO", type=click.Path(path_type=Path))
@click.option("--revision", help="Of a repository: branch, tag or commit; default: the newest.")
@click.option("--variant", metavar="NAME", help="Of a repository: fp16, int8, q4 …")
@endpoint_option
@pooling_option
@rerank_option
@click.option("--no-probe", is_flag=True, help="Do not run the model on a few short texts.")
@json_option
def inspect_command(
    path: Path,
    *,
    revision: str | None,
    variant: str | None,
    endpoint: str | None,
    pooling: Pooling,
    rerank: bool,
    no_probe: bool,
    as_json: bool,
) -> None:
    """Show what an ONNX export is, what the gateway would do with it, and what is wrong.

    PATH is an ONNX file or a folder with one. REPO is a repository of the Hugging Face hub; all but
    its weights is fetched to a temporary folder. With up to 4 GiB of weights and a tokenizer, the
    model is run on a few short texts, which show what it returns; else the weights are not loaded.
    Exits with 1 if the gateway could not serve the model.

    Qwen3-Reranker is recognized by a name with `rerank`, of the file, its folder or the repository,
    or by --rerank: its graph is that of any causal language model. One that was pooled, or exported
    as a classifier (seq-cls), is recognized by its output.

    \b
    Examples:
      qwen3-triton model inspect ./qwen3-embedding-0.6b
      qwen3-triton model inspect ./qwen3-embedding-4b/model_fp16.onnx
      qwen3-triton model inspect ./qwen3-embedding-0.6b --json
      qwen3-triton model inspect zhiqing/Qwen3-Embedding-4B-ONNX
      qwen3-triton model inspect ./qwen3-reranker-0.6b
    """
    from ..findings import render_findings
    from ..model.files import find_model, is_hub_name
    from ..model.hub_selection import fetched_outline
    from ..model.inspection import inspect_model
    from ..model.inspection_report import as_document, describe
    from ..model.reranker import is_reranker_name

    source: AbstractContextManager[Path] = nullcontext(path)
    if is_hub_name(path):
        report_progress(f"There is no {path} on this machine; looking for it on the hub.")
        source = fetched_outline(str(path), revision=revision, variant=variant, endpoint=endpoint)
        rerank = rerank or is_reranker_name(str(path))
    with tool_errors(), source as local_path:
        model_path = find_model(local_path)
        _report_size(model_path, "Reading")
        inspection = inspect_model(model_path, rerank=rerank)
        if not no_probe and local_path == path:
            from ..model.probing import with_probe

            inspection = with_probe(inspection, pooling)
    if as_json:
        print_json(as_document(inspection))
    else:
        click.echo("\n".join([*describe(inspection), ""]))
        if inspection.problems:
            print_lines([*render_findings(inspection.problems), ("", None)])
        count = sum(finding.severity == "error" for finding in inspection.problems)
        errors = f"{count} error{'s' if count > 1 else ''} above"
        how = " as a reranker" if inspection.reranker else ""
        verdict = f"can serve it{how}." if inspection.is_servable else f"cannot serve it: {errors}."
        click.echo(f"The gateway {verdict}")
    if not inspection.is_servable:
        sys.exit(1)


@model.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="An .onnx file, or a folder to become a complete model folder; default: NAME_pooled.onnx "
    "next to the model.",
)
@click.option("--keep-hidden", is_flag=True, help="Keep the hidden state as an output too.")
@click.option(
    "--copy",
    is_flag=True,
    help="Copy weights to another folder, do not hard-link them: `onnx` itself refuses links.",
)
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option(
    "--no-probe", is_flag=True, help="Do not run the model and the result on a few texts."
)
@rerank_option
@json_option
def pool(
    path: Path,
    *,
    out: Path | None,
    keep_hidden: bool,
    copy: bool,
    force: bool,
    no_probe: bool,
    rerank: bool,
    as_json: bool,
) -> None:
    """Append last-token pooling to an ONNX export, for servers other than this project's.

    `model repository`, `triton` and `up` pool on the way and keep the export's fingerprint; a
    pooled file has another.

    PATH is an ONNX file or a folder with one. Adds the output `sentence_embedding`, float32 of
    shape (batch, hidden size), correct for padding on either side. Vectors are not normalized in
    the graph: the gateway cuts them to `dimensions` first. With up to 4 GiB of weights and a
    tokenizer, both are run on a few short texts: pooling in the graph must return what pooling
    outside of it returns. External weights are not loaded otherwise; they are shared or
    hard-linked, or copied to another disk. A file that contains its weights is read and written
    completely, and costs about three times its size in memory.

    A reranker's vocabulary head is cut down to "no" and "yes": the output is `logits`, float32 of
    shape (batch, 2) in that order, in place of (batch, length, vocabulary). Only those two rows of
    the head are read.

    \b
    Examples:
      qwen3-triton model pool ./qwen3-embedding-4b
      qwen3-triton model pool ./qwen3-reranker-0.6b -o ./qwen3-reranker-0.6b-pooled
      qwen3-triton model pool ./qwen3-embedding-4b -o ./qwen3-embedding-4b-pooled
      qwen3-triton model pool ./model.onnx -o ./pooled.onnx --keep-hidden
    """
    from ..model.files import find_model
    from ..model.pool import pool_model

    with tool_errors():
        model_path = find_model(path)
        _report_size(model_path, "Reading and writing")
        pooled = pool_model(
            model_path,
            out,
            keep_hidden=keep_hidden,
            force=force,
            transfer="copy" if copy else "auto",
            probe=not no_probe,
            rerank=rerank,
        )
    if as_json:
        print_json(asdict(pooled) | {"path": str(pooled.path)})
    elif pooled.already_pooled:
        click.echo(f"{pooled.path} is already pooled; nothing was written.")
    else:
        _report_pooled(pooled)


def _report_pooled(pooled: PooledModel) -> None:
    shape = f"(batch, {pooled.width})"
    click.echo(f"Wrote {pooled.path} with the output `{pooled.output}`, float32 {shape}.")
    if pooled.is_reranker:
        click.echo(
            'They are those of "no" and "yes": the score is the softmax, of "yes".'
            if pooled.width > 1
            else "There is one for each pair: its sigmoid is the score."
        )
        original, values = "the whole head", "logits"
    else:
        click.echo("Not normalized: the gateway cuts to `dimensions`, then normalizes.")
        click.echo(
            "Its fingerprint differs from the unpooled file's, so tables that were filled "
            "through that one refuse it. `model repository`, `triton` and `up` pool on the "
            "way and keep the fingerprint."
        )
        original, values = "pooling outside of the graph", "vectors"
    if pooled.not_compared:
        click.echo(f"Not compared with {original}: {pooled.not_compared}")
    else:
        click.echo(f"On a few texts, its {values} are those of {original}.")
    if pooled.external_files:
        click.echo(f"{pooled.external_files} file(s) of weights are next to it.")


@model.command()
@click.argument("repo", metavar="REPO")
@click.option("--revision", help="Branch, tag or commit; default: the newest.")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to fill; default: the name of the repository.",
)
@click.option("--variant", metavar="NAME", help="fp16, int8, q4 …: one model_NAME.onnx of many.")
@click.option("--include", metavar="GLOB", multiple=True, help="Fetch other files too.")
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

    Only the files needed for serving are fetched: the graph as model.onnx, its weights, the
    tokenizer and the configuration. Checksums are compared and written to qwen3-triton.json. Run
    again, the command checks the folder, and fetches what is missing or was interrupted.

    \b
    Known exports:
      zhiqing/Qwen3-Embedding-0.6B-ONNX          float16
      zhiqing/Qwen3-Embedding-4B-ONNX            float16, 8 GB
      onnx-community/Qwen3-Embedding-0.6B-ONNX   --variant fp16, int8, q4 …
      onnx-community/Qwen3-Embedding-4B-ONNX     float32, 16 GB; -8B-ONNX 30 GB
      Qdrant/Qwen3-Embedding-0.6B-onnx           float32, 2.4 GB
      onnx-community/Qwen3-Reranker-0.6B-ONNX    reranker, --variant q4

    \b
    Examples:
      qwen3-triton model pull zhiqing/Qwen3-Embedding-0.6B-ONNX
      qwen3-triton model pull onnx-community/Qwen3-Embedding-0.6B-ONNX --variant fp16 --to ./qwen3
      qwen3-triton serve --model-dir ./qwen3
    """
    from ..model.pulling import PullRequest, default_folder, pull_model
    from ..model.reranker import is_reranker_name

    wanted = PullRequest(repo, folder or default_folder(repo, variant), revision, variant, include)
    with tool_errors():
        manifest = pull_model(wanted, endpoint=endpoint, report=report_progress)
    if as_json:
        print_json({"folder": str(wanted.folder)} | asdict(manifest))
        return
    total = sum(file.size_bytes for file in manifest.files) / 1e6
    click.echo(
        f"{wanted.folder} contains {repo} at {manifest.revision[:12]}: {len(manifest.files)} "
        f"files, {total:,.1f} MB, checksums verified."
    )
    if is_reranker_name(repo):
        click.echo(f"Serve it: RERANK_MODEL_DIR={wanted.folder} qwen3-triton serve")
    else:
        click.echo(f"Serve it: qwen3-triton serve --model-dir {wanted.folder}")


def _report_size(model_path: Path, activity: str) -> None:
    size = model_path.stat().st_size
    if size > LARGE_FILE_BYTES:
        report_progress(f"{activity} {model_path}, {size / 1e9:.1f} GB with its weights.")
