"""`qwen3-triton model verify`: checks of served vectors, or of a reranker's scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import is_terminal, json_option, print_json, print_lines, rerank_option, tool_errors

if TYPE_CHECKING:
    from ..model.inspection import Inspection
    from ..verify import Verification
    from ..verify.probe import GatewayClient

CARDS = ("0.6b", "4b", "8b", "nano", "none")
# For pairs that run in this process: longer ones show no more, and cost the square of their length.
PAIR_TOKENS = 2048


@click.command()
@click.argument("target", metavar="URL|PATH")
@click.option(
    "--card",
    type=click.Choice(CARDS, case_sensitive=False),
    help="Compare with the golden values of this model; default: by the model's name and size.",
)
@click.option(
    "--reference",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="The float32 export of the same model: check what precision and quantization lose.",
)
@click.option(
    "--api-key",
    envvar="QWEN3_TRITON_API_KEY",
    show_envvar=True,
    help="Key of a gateway that requires one.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=120.0,
    show_default=True,
    help="Timeout of each request.",
)
@rerank_option
@json_option
def verify(
    *,
    target: str,
    card: str | None,
    reference: Path | None,
    api_key: str | None,
    timeout_seconds: float,
    rerank: bool,
    as_json: bool,
) -> None:
    """Check that a gateway, or the model in a folder, returns correct vectors, or scores.

    URL is that of a running gateway. PATH is a folder with an ONNX file and its tokenizer.json,
    which is served in this process during the checks. Exits with 0 if no check fails, else with 1;
    each failure comes with its likely cause and a remedy.

    With --rerank, the scores that a gateway returns from `POST /v1/rerank` are checked; a gateway
    that serves only a reranker does not need the option. With the model itself (--reference), they
    are compared with the scores for the prompt on Qwen3-Reranker's card, and for prompts as they
    are often written wrongly. A folder with a reranker needs neither option.

    \b
    Examples:
      qwen3-triton model verify http://localhost:8101
      qwen3-triton model verify ./qwen3-embedding-0.6b
      qwen3-triton model verify https://embed.example.com --card 4b --json
      qwen3-triton model verify http://localhost:8101 --reference ./qwen3-embedding-0.6b
      qwen3-triton model verify http://localhost:8101 --rerank --reference ./qwen3-reranker-0.6b
    """
    from ..findings import render_findings, summarize
    from ..verify.probe import GatewayClient

    with tool_errors(), ExitStack() as servers:
        inspection = None if _is_url(target) else _inspect(target, rerank=rerank)
        url = servers.enter_context(_served(inspection)) if inspection else target
        client = GatewayClient(url, api_key=api_key, timeout_seconds=timeout_seconds)
        if inspection is None:
            reranks = rerank or client.only_reranks()
        else:
            reranks = inspection.reranker is not None
        if reranks:
            graph = _inspect(str(reference), rerank=True) if reference else inspection
            result = _verify_scores(
                client,
                graph,
                is_reference=reference is not None,
                target=target,
                has_card=card != "none",
            )
        else:
            original = None
            if reference is not None:
                reference_url = servers.enter_context(_served(_inspect(str(reference))))
                original = GatewayClient(reference_url, timeout_seconds=timeout_seconds)
            result = _verify_vectors(client, original, target=target, card_name=card)
    if as_json:
        print_json(result.document())
    else:
        name = f"card {result.card.name}" if result.card else "no card"
        name = "a reranker" if reranks else name
        model_id = result.served.model_id or "a model without a name"
        click.echo(f"{result.target}: {model_id}, {name}\n")
        print_lines(render_findings(result.findings))
        click.echo(f"\n{summarize(result.findings)}")
    sys.exit(0 if result.ok else 1)


def _verify_vectors(
    client: GatewayClient, original: GatewayClient | None, *, target: str, card_name: str | None
) -> Verification:
    from ..verify import CHECKS, verify

    with _progress_bar(len(CHECKS) + bool(original)) as advance:
        return verify(
            client, reference=original, card_name=card_name, target=target, on_finding=advance
        )


def _verify_scores(
    client: GatewayClient,
    inspection: Inspection | None,
    *,
    is_reference: bool,
    target: str,
    has_card: bool,
) -> Verification:
    """Check a server's scores, and compare them with those of a graph in this process."""
    from qwen3_triton_gateway.backends.onnx import OnnxBackend

    from ..model.pairs import GraphScorer
    from ..verify import RERANK_CHECKS, verify_reranker

    with ExitStack() as stack, _progress_bar(len(RERANK_CHECKS) + is_reference) as advance:
        graph = None
        if inspection is not None:
            backend = OnnxBackend(inspection.path, task="rerank")
            graph = stack.enter_context(GraphScorer(inspection, backend, max_length=PAIR_TOKENS))
        return verify_reranker(
            client,
            graph=graph,
            is_reference=is_reference,
            has_card=has_card,
            target=target,
            on_finding=advance,
        )


def _is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _inspect(target: str, *, rerank: bool = False) -> Inspection:
    """Inspect the model of a folder.

    Raises:
        ModelError: The folder has none, or the gateway could not serve it.
    """
    folder = Path(target)
    if not folder.exists():
        msg = f"{target!r} is neither a URL (http://…) nor an existing folder."
        raise click.BadParameter(msg, param_hint="URL|PATH")
    from ..model.files import find_model
    from ..model.inspection import check_servable, inspect_model

    inspection = inspect_model(find_model(folder), rerank=rerank)
    check_servable(inspection)
    return inspection


def _served(inspection: Inspection) -> AbstractContextManager[str]:
    """Return the URL of a gateway for a folder's model."""
    from ..model.pulling import model_name
    from ..verify.local_gateway import folder_settings, local_gateway

    model_id = model_name(inspection.path.parent)
    task = "rerank" if inspection.reranker else "embed"
    return local_gateway(folder_settings(inspection.path, model_id=model_id, task=task))


@contextmanager
def _progress_bar(count: int) -> Generator[Callable[[object], None]]:
    """Show the number of finished checks on a terminal: a large model takes minutes on a CPU."""
    if not is_terminal():
        yield lambda _: None
        return
    with click.progressbar(length=count, label="Checking", file=sys.stderr) as bar:
        yield lambda _: bar.update(1)
