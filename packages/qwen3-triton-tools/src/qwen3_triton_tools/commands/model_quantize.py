"""`qwen3-triton model quantize`: weights in int8, and what that loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from . import json_option, print_json, report_progress, rerank_option, tool_errors

if TYPE_CHECKING:
    from qwen3_triton_gateway.settings import Settings, Task

    from ..verify.cards import Float64Matrix
    from ..verify.loss import Loss
    from ..verify.rerank_loss import RerankLoss


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write; default: NAME-int8 next to the model's.",
)
@click.option(
    "--texts",
    "text_count",
    type=click.IntRange(min=20),
    default=312,
    show_default=True,
    help="Number of texts to measure with; a large model takes minutes for all.",
)
@click.option("--force", is_flag=True, help="Replace an existing folder.")
@rerank_option
@json_option
def quantize(
    path: Path, *, out: Path | None, text_count: int, force: bool, rerank: bool, as_json: bool
) -> None:
    """Store the weights of an ONNX export as int8, and measure what that loses.

    PATH is an ONNX file or a folder with one, in float32 or float16. The result is a model folder
    of a quarter of the size, for every command and for the gateway. ONNX Runtime computes with it
    in float32 as before; OpenVINO multiplies in int8 with EMBED_PRECISION=int8.

    Then some hundred texts are embedded with both models, in each engine and precision of this
    machine. The loss depends on the model: decide by it, or check your own texts with `model
    verify --reference`. A reranker scores some hundred pairs in their place; pool it first.

    \b
    Examples:
      qwen3-triton model quantize ./qwen3-embedding-0.6b
      qwen3-triton model quantize ./qwen3-embedding-0.6b -o ./int8 --json
      EMBED_PRECISION=int8 qwen3-triton serve --model-dir ./qwen3-embedding-0.6b-int8
    """
    from ..model.files import find_model
    from ..model.inspection import inspect_model
    from ..model.quantize import default_folder, quantize_model
    from ..verify.local_gateway import find_tokenizer

    losses: Mapping[str, Loss | RerankLoss]
    with tool_errors():
        model_path = find_model(path)
        folder = out or default_folder(model_path)
        find_tokenizer(model_path)  # without it, nothing could be measured
        report_progress(f"Quantizing {model_path}.")
        quantized = quantize_model(model_path, folder, force=force, rerank=rerank)
        if inspect_model(model_path, rerank=rerank).reranker:
            losses = _measure_pairs(model_path, folder, text_count)
        else:
            losses = _measure(model_path, folder, text_count)
    if as_json:
        rows = {name: asdict(loss) | {"safe": loss.is_safe} for name, loss in losses.items()}
        print_json(asdict(quantized) | {"path": str(quantized.path), "losses": rows})
        return
    before, after = quantized.bytes_before / 1e6, quantized.bytes_after / 1e6
    click.echo(
        f"Wrote {quantized.path}: {quantized.matrices} "
        f"{'matrix' if quantized.matrices == 1 else 'matrices'}, {before:,.1f} MB as int8 in "
        f"{after:,.1f} MB."
    )
    for name, loss in losses.items():
        verdict = "safe" if loss.is_safe else "NOT SAFE: searches would have other results"
        click.echo(f"  {name:<24} {loss}. {verdict}.")


def _measure(model_path: Path, folder: Path, text_count: int) -> dict[str, Loss]:
    """Compare the two models in each engine and precision that this machine has."""
    from ..verify.local_gateway import folder_settings, local_gateway
    from ..verify.loss import compare, corpus, embed_corpus
    from ..verify.probe import GatewayClient

    texts = corpus()[:text_count]

    def embed(settings: Settings) -> Float64Matrix:
        with local_gateway(settings) as url:
            return embed_corpus(GatewayClient(url, timeout_seconds=600.0), texts)

    report_progress(f"Embedding {len(texts)} texts with the original, in float32.")
    reference = embed(folder_settings(model_path))
    losses: dict[str, Loss] = {}
    for name, settings in _variants(folder):
        report_progress(f"Embedding them with the quantized model: {name}.")
        losses[name] = compare(reference, embed(settings))
    return losses


def _measure_pairs(model_path: Path, folder: Path, count: int) -> dict[str, RerankLoss]:
    """Compare two rerankers in each engine and precision that this machine has."""
    from qwen3_triton_gateway.backends import choose_backend

    from ..model.files import find_model
    from ..model.inspection import inspect_model
    from ..model.pairs import GraphScorer
    from ..verify.local_gateway import PAIR_TOKENS, folder_settings
    from ..verify.rerank_loss import compare_scores, pairs_of, score_pairs

    pairs = pairs_of(count)

    def score(path: Path, settings: Settings) -> list[float]:
        inspection = inspect_model(find_model(path), rerank=True)
        backend = choose_backend(settings, "rerank")
        with GraphScorer(inspection, backend, max_length=PAIR_TOKENS) as scorer:
            return score_pairs(scorer, pairs)

    report_progress(f"Scoring {len(pairs)} pairs with the original, in float32.")
    reference = score(model_path, folder_settings(model_path, task="rerank"))
    losses: dict[str, RerankLoss] = {}
    for name, settings in _variants(folder, "rerank"):
        report_progress(f"Scoring them with the quantized model: {name}.")
        losses[name] = compare_scores(reference, score(folder, settings))
    return losses


def _variants(folder: Path, task: Task = "embed") -> list[tuple[str, Settings]]:
    from qwen3_triton_gateway.backends.engines import Machine

    from ..verify.local_gateway import folder_settings

    variants = [("ONNX Runtime, float32", folder_settings(folder, task=task))]
    machine = Machine.this()
    precisions: tuple[Literal["bfloat16", "int8"], ...] = ("bfloat16", "int8")
    for precision in precisions:
        obstacle = machine.why_not(precision) if machine.has_openvino else "it is not installed"
        if obstacle:
            report_progress(f"OpenVINO in {precision} is not measured: {obstacle}.")
            continue
        settings = folder_settings(folder, engine="openvino", precision=precision, task=task)
        variants.append((f"OpenVINO, {precision}", settings))
    return variants
