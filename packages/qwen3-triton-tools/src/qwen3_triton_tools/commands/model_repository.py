"""`qwen3-triton model repository`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from qwen3_triton_gateway.settings import WantedPrecision

from . import (
    is_terminal,
    json_option,
    pool_option,
    pooling_option,
    print_json,
    rerank_option,
    tool_errors,
)

if TYPE_CHECKING:
    from ..model.inspection import Inspection
    from ..model.triton_repository import WrittenRepository

GPUS = ("3090", "a10", "l4", "a100", "h100", "cpu")
SIZES = ("0.6b", "4b", "8b")
PATH = click.Path(path_type=Path)


@click.command()
@click.argument("path", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="The model repository to write into.")
@click.option("--model-name", required=True, help="The model's name in Triton.")
@click.option("--gpu", type=click.Choice(GPUS), help="The GPU that it will run on, or cpu.")
@click.option(
    "--cpu", is_flag=True, help="Instead: for Triton's OpenVINO backend, on a CPU like this one."
)
@click.option(
    "--precision",
    type=click.Choice(get_args(WantedPrecision)),
    help="What --cpu computes in; auto, the default, is bfloat16 where this processor has it.",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Threads of --cpu; 0 is one per core."
)
@click.option(
    "--gpu-memory-gib",
    type=click.FloatRange(min=1),
    help="The GPU's memory, if it differs; a100 is the one with 40.",
)
@click.option("--model-size", type=click.Choice(SIZES), help="Only needed without a config.json.")
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    default=1024,
    show_default=True,
    help="Tokens of the longest text, as in EMBED_MAX_LENGTH or RERANK_MAX_LENGTH.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Copies of the model on the GPU; with --cpu, batches at the same time.",
)
@click.option(
    "--triton-version", default="26.07", show_default=True, help="Release of Triton's image."
)
@click.option("--copy/--link", "copy", default=None, help="Default: hard link, else copy.")
@click.option("--tokenizer-dir", type=PATH, help="Default: NAME-tokenizer next to the repository.")
@click.option("--no-digest", is_flag=True, help="Do not read the weights.")
@click.option(
    "--queue-policy",
    is_flag=True,
    help="Priorities and limits in Triton too; see the comment in the file.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "python"]),
    default="onnxruntime",
    show_default=True,
    help="`python` is for the local Triton, `qwen3-triton triton`.",
)
@click.option("--force", is_flag=True, help="Replace the model's folder.")
@pooling_option
@pool_option
@rerank_option
@json_option
def repository(
    path: Path,
    *,
    out: Path,
    gpu: str | None,
    cpu: bool,
    precision: WantedPrecision | None,
    copy: bool | None,
    no_digest: bool,
    backend: Literal["onnxruntime", "python"],
    as_json: bool,
    **flags: Any,
) -> None:
    """Write a Triton model repository: configuration, weights, warm-up, and the tokenizer.

    PATH is an ONNX file or a folder with one. Names, types and sizes come from the file, the batch
    limit and the memory limit from the GPU and the model. Each setting in config.pbtxt is written
    with its reason. Weights are hard-linked, or copied to another disk, never symlinked. The
    tokenizer's folder is next to the repository. Exports that return hidden states are pooled on
    the way: vectors and fingerprint stay the same. A reranker's vocabulary head keeps the rows of
    "no" and "yes" only: the scores stay the same.

    \b
    Examples:
      qwen3-triton model repository ./qwen3-embedding-4b -o ./model_repository \\
          --model-name qwen3_embed_4b_onnx --gpu 3090
      qwen3-triton model repository ./model_fp16.onnx -o ./model_repository \\
          --model-name qwen3_embed --gpu a100 --gpu-memory-gib 80 --instances 2
      qwen3-triton model repository ./qwen3-embedding-0.6b -o ./model_repository \\
          --model-name qwen3_embed --cpu
      qwen3-triton model repository ./qwen3-embedding-0.6b -o ./local \\
          --model-name qwen3_embed --gpu cpu --backend python
    """
    from ..model.files import find_model
    from ..model.triton_repository import RepositoryOptions, write_triton_repository

    flags |= _check_machine(gpu, backend, precision, cpu=cpu)
    with tool_errors():
        model_path = find_model(path)
        if backend == "python":
            _write_local(model_path, out, flags, as_json=as_json)
            return
        transfer = "auto" if copy is None else "copy" if copy else "link"
        options = RepositoryOptions(transfer=transfer, with_digest=not no_digest, **flags)
        with _progress(model_path, shown=not no_digest) as on_bytes:
            written = write_triton_repository(model_path, out, options, on_bytes)
    _report(written, out, flags["model_name"], has_digest=not no_digest, as_json=as_json)


def _check_machine(
    gpu: str | None, backend: str, precision: WantedPrecision | None, *, cpu: bool
) -> dict[str, Any]:
    """Check the options for a machine, and return what the repository's options make of them."""
    if cpu and (gpu or backend == "python"):
        raise click.UsageError("--cpu is for Triton's OpenVINO backend: omit --gpu and --backend.")
    if not cpu and precision:
        raise click.UsageError("Only OpenVINO has a choice of --precision: pass --cpu.")
    if not cpu and not gpu:
        raise click.UsageError("Missing option '--gpu' or '--cpu'.")
    if backend == "python" and gpu != "cpu":
        raise click.UsageError("The local Triton runs on the CPU: pass `--gpu cpu`.")
    if cpu:
        return {"gpu": "cpu", "openvino": precision or "auto"}
    return {"gpu": gpu}


@contextmanager
def _progress(model_path: Path, *, shown: bool) -> Generator[Callable[[int], object] | None]:
    """Show how much of the weights has been digested, on a terminal only."""
    if not shown or not is_terminal():
        yield None
        return
    from qwen3_triton_gateway.fingerprint import weight_files

    total = sum(file.stat().st_size for file in weight_files(model_path))
    with click.progressbar(length=total, label="Digesting weights", file=sys.stderr) as bar:
        yield bar.update


def _write_local(model_path: Path, out: Path, flags: dict[str, Any], *, as_json: bool) -> None:
    """Write for the local Triton, which reads the ONNX file in place."""
    from qwen3_triton_gateway.backends.base import CANARY_PARAMETER
    from qwen3_triton_gateway.fingerprint import weights_digest

    from ..errors import ModelError
    from ..local_triton import MODEL_NAME, write_repository
    from ..model.gpu_plan import MAX_CPU_ROWS
    from ..model.inspection import check_servable, inspect_model
    from ..model.probing import canary_of, with_probe

    if not MODEL_NAME.fullmatch(flags["model_name"]):
        msg = "`--model-name` must consist of ASCII letters, digits, `_`, `-` and `.`, not "
        raise ModelError(f"{msg}{flags['model_name']!r}.")
    target = out / flags["model_name"]
    if target.exists() and not flags["force"]:
        raise ModelError(f"{target} already exists. Pass `--force` to replace it.")
    inspection = inspect_model(model_path, rerank=flags["rerank"])
    inspection = with_probe(inspection, flags["pooling"])
    check_servable(inspection)
    pooled, output, not_pooled = _pool_local(inspection, target, flags)
    parameters: dict[str, str] = {}
    canary_problem = ""
    try:
        parameters[CANARY_PARAMETER] = canary_of(inspection, pooled, max_length=flags["max_length"])
    except ModelError as error:
        canary_problem = str(error)
    folder = write_repository(
        pooled,
        out,
        digest=None if pooled == model_path else weights_digest(model_path),
        model_name=flags["model_name"],
        parameters=parameters,
        max_batch_size=MAX_CPU_ROWS,
        instance_count=flags["instances"],
        pooled_output=output,
    )
    if as_json:
        document = {"folder": str(folder), "model": str(pooled), "backend": "python"}
        problems = {"canary_problem": canary_problem or None, "not_pooled": not_pooled or None}
        print_json(document | problems)
        return
    click.echo(f"Wrote {folder}, which reads {pooled} in place.")
    _report_pooling(not_pooled, reranks=inspection.reranker is not None)
    _report_canary(canary_problem)
    click.echo("To run it:")
    repository = shlex.quote(str(out))
    click.echo(f"  qwen3-triton triton --model-repository {repository} --model-name {folder.name}")


def _pool_local(
    inspection: Inspection, target: Path, flags: dict[str, Any]
) -> tuple[Path, str | None, str]:
    """Return the file to serve, its output that Triton pools, and why the export is not pooled."""
    from ..model.pool import pool_for_local_triton
    from ..model.pooling_plan import output_to_pool

    output, not_pooled = output_to_pool(inspection, flags["pooling"], wanted=flags["pool"])
    if inspection.reranker is None or not_pooled:
        return inspection.path, output, not_pooled
    # Next to the repository: inside, Triton would take it for a model.
    folder = target.absolute().parent.parent / f"{target.name}-pooled"
    path, not_pooled = pool_for_local_triton(inspection, folder, probe=True)
    return path, None, not_pooled


def _report_pooling(not_pooled: str, not_compared: str = "", *, reranks: bool) -> None:
    if not_pooled:
        click.echo(f"  The export is served as it is: {not_pooled}")
        return
    if reranks:
        click.echo("  Triton returns the logits of the answer at the last token, and no others.")
    else:
        click.echo("  Triton returns vectors, pooled from the export's hidden states.")
    if not_compared:
        click.echo(f"  Not compared with pooling outside of the graph: {not_compared}")


def _report_canary(problem: str) -> None:
    if problem:
        click.echo(f"  config.pbtxt does not state the canary's answer: {problem}")


def _report(
    written: WrittenRepository, out: Path, name: str, *, has_digest: bool, as_json: bool
) -> None:
    plan, spec = written.plan, written.inspection.spec
    rows = 1 if spec and spec.max_batch_size == 1 else plan.max_batch_size
    if as_json:
        print_json(
            {
                "folder": str(written.folder),
                "tokenizer": str(written.tokenizer) if written.tokenizer else None,
                "max_batch_size": rows,
                "gpu_mem_limit_bytes": plan.arena_bytes or None,
                "max_batch_tokens": plan.batch_tokens,
                "reason": plan.reason,
                "hidden_size": written.inspection.hidden_size,
                "pooled": written.inspection.is_pooled,
                "not_pooled": written.not_pooled or None,
                "not_compared": written.not_compared or None,
                "reranks": written.inspection.reranker is not None,
                "closed_to_triton": written.unreadable,
                "canary_problem": written.canary_problem or None,
            }
        )
        return
    click.echo(f"Wrote {written.folder}: batches of up to {rows} row{'s' * (rows > 1)}.")
    click.echo(f"  {plan.reason}")
    for finding in written.inspection.findings:
        if finding.severity == "warning":
            click.echo(f"  {finding.message} {finding.remedy}")
    reranks = written.inspection.reranker is not None
    _report_pooling(written.not_pooled, written.not_compared, reranks=reranks)
    if not (has_digest or written.not_pooled or reranks):
        click.echo(
            "  Without a digest, the fingerprint is that of the interface, which pooling changes: "
            "tables that were filled through the unpooled export need `--no-pool`."
        )
    _report_canary(written.canary_problem)
    if written.unreadable:
        click.echo(
            f"  Triton's image runs as uid 1000 and cannot read {', '.join(written.unreadable)}: "
            f"chmod -R a+rX {shlex.quote(str(out))}"
        )
    _report_commands(written, out, name)


def _report_commands(written: WrittenRepository, out: Path, name: str) -> None:
    tokenizer = shlex.quote(str(written.tokenizer or "FOLDER_OF_TOKENIZER_JSON"))
    click.echo("To run Triton with it, and the gateway in front of Triton:")
    repository = shlex.quote(str(out))
    click.echo(f"  tritonserver --model-repository {repository} --disable-auto-complete-config")
    if written.inspection.reranker is not None:
        click.echo(f"  RERANK_TRITON_MODEL={name} RERANK_TOKENIZER_PATH={tokenizer} \\")
        click.echo("      qwen3-triton serve --triton-url http://localhost:8000")
        return
    click.echo(f"  qwen3-triton serve --triton-url http://localhost:8000 --triton-model {name} \\")
    click.echo(f"      --tokenizer-path {tokenizer} --max-batch-tokens {written.plan.batch_tokens}")
