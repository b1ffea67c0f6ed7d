"""Verify a served model: does it answer correctly, and with correct vectors?

To add a check, write a function in one of the modules `*_checks` and list it in the `CHECKS` at the
end of that module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from ..errors import HttpError, InvalidAnswerError, UnreachableError
from ..findings import Finding, has_errors
from ..model.pairs import GraphScorer
from . import golden_checks, loss, rerank_checks, rerank_loss, text_checks, vector_checks
from .cards import Card, choose_card
from .probe import Check, GatewayClient, Probe, ServedModel, failed
from .rerank_probe import RerankClient, RerankProbe

NO_CARD = "none"

# The order matters to readers: what goes wrong first explains what follows.
CHECKS: dict[str, Check] = {
    **vector_checks.CHECKS,
    **text_checks.CHECKS,
    **golden_checks.CHECKS,
}
RERANK_CHECKS = rerank_checks.CHECKS
# A few requests of a few texts, which find the most common mistakes.
QUICK_CHECKS = ("norm", "batch invariance", "instruction")
QUICK_RERANK_CHECKS = ("score range", "batch invariance", "order")
_STATUSES = {"ok": "pass", "error": "fail", "skipped": "skipped"}


AnyProbe = TypeVar("AnyProbe", Probe, RerankProbe)


@dataclass(frozen=True, slots=True)
class WantedAnswer:
    """What a server should answer with, for the finding if it does not."""

    expected: str
    remedy: str


VECTORS = WantedAnswer(
    "a vector for each text", "Answer with `embeddings`, a row of numbers for each text."
)
SCORES = WantedAnswer(
    "a score for each document",
    "Answer `POST /v1/rerank` with `results`, an `index` and a `relevance_score` for each.",
)


@dataclass(frozen=True, slots=True)
class Verification:
    """A server, the card that its vectors were compared with, and a finding per check."""

    target: str
    served: ServedModel
    card: Card | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed, and not all were skipped."""
        return not has_errors(self.findings) and any(f.severity == "ok" for f in self.findings)

    def document(self) -> dict[str, Any]:
        """Return the verification as plain data for `--json`."""
        return {
            "target": self.target,
            "served": asdict(self.served),
            "card": self.card.name if self.card else None,
            "ok": self.ok,
            "checks": [
                {
                    "name": finding.name,
                    "status": _STATUSES[finding.severity],
                    "measured": finding.message,
                    "allowed": finding.expected,
                    "cause": finding.cause,
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
        }


def verify(
    client: GatewayClient,
    *,
    reference: GatewayClient | None = None,
    card_name: str | None = None,
    target: str = "",
    checks: Collection[str] = CHECKS.keys(),
    on_finding: Callable[[Finding], object] = str,
) -> Verification:
    """Run checks against a server.

    Args:
        client: The server.
        reference: A server of the same model in float32, for the check `loss`.
        card_name: The card to compare with; by default chosen by the model's name and size.
        target: How the server is called in the report; by default its URL.
        checks: The names of the checks to run.
        on_finding: Called after each check.

    Raises:
        HttpError: The server cannot be reached, rejects the key, or is not ready.
    """
    served = client.describe()
    card = (
        None
        if card_name == NO_CARD
        else choose_card(card_name, served.model_id, served.hidden_size)
    )
    probe = Probe(client, served, card, reference)
    findings: list[Finding] = []
    chosen = {name: check for name, check in CHECKS.items() if name in checks}
    for name, check in (chosen | (loss.CHECKS if reference else {})).items():
        findings.append(replace(_run(check, probe, VECTORS), name=name))
        on_finding(findings[-1])
    return Verification(target or client.url, served, card, tuple(findings))


def verify_reranker(
    client: GatewayClient,
    *,
    graph: GraphScorer | None = None,
    is_reference: bool = False,
    has_card: bool = True,
    target: str = "",
    checks: Collection[str] = RERANK_CHECKS.keys(),
    on_finding: Callable[[Finding], object] = str,
) -> Verification:
    """Run the checks of rerankers against a server.

    Args:
        client: The server.
        graph: The same model in this process, to compare scores with.
        is_reference: Whether that is more than the server's own file, for the check `loss`.
        has_card: Whether the model should know the examples of Qwen3-Reranker's card.
        target: How the server is called in the report; by default its URL.
        checks: The names of the checks to run.
        on_finding: Called after each check.

    Raises:
        HttpError: The server cannot be reached, rejects the key, or is not ready.
    """
    served = client.describe_reranker()
    probe = RerankProbe(RerankClient(client), graph, served.max_length, has_card)
    findings: list[Finding] = []
    chosen = {name: check for name, check in RERANK_CHECKS.items() if name in checks}
    for name, check in (chosen | (rerank_loss.CHECKS if is_reference else {})).items():
        findings.append(replace(_run(check, probe, SCORES), name=name))
        on_finding(findings[-1])
    return Verification(target or client.url, served, None, tuple(findings))


def _run(check: Callable[[AnyProbe], Finding], probe: AnyProbe, answer: WantedAnswer) -> Finding:
    try:
        return check(probe)
    except UnreachableError:
        raise
    except InvalidAnswerError as error:
        return failed(
            str(error),
            answer.expected,
            cause="Texts are dropped, or the answer is that of another interface.",
            remedy=answer.remedy,
        )
    except HttpError as error:
        return failed(
            str(error),
            "an answer",
            cause="The server rejects a valid request.",
            remedy="See the server's log.",
        )
