"""Ask a server everything, and report: does it serve the model, and does it serve it right?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .cards import Card, choose_card
from .checks import Check, Outcome, Probe, Question, failed
from .gateway_client import (
    BrokenAnswerError,
    GatewayClient,
    GatewayError,
    ServedModel,
    UnreachableError,
)
from .golden_checks import (
    check_golden_vectors,
    check_hidden_size,
    check_scores,
    check_tei_vector,
)
from .text_checks import (
    check_end_token,
    check_instruction,
    check_long_text,
    check_other_instruction,
    check_tokenizer,
)
from .vector_checks import (
    check_batch_invariance,
    check_determinism,
    check_dimensions,
    check_duplicates,
    check_norm,
    check_order,
    check_overflow,
)

NO_CARD = "none"

# What goes wrong first explains what follows.
CHECKS: dict[str, Question] = {
    "hidden size": check_hidden_size,
    "norm": check_norm,
    "dimensions": check_dimensions,
    "order": check_order,
    "batch invariance": check_batch_invariance,
    "duplicates": check_duplicates,
    "determinism": check_determinism,
    "float16 overflow": check_overflow,
    "tokenizer": check_tokenizer,
    "end token": check_end_token,
    "long text": check_long_text,
    "instruction": check_instruction,
    "own instruction": check_other_instruction,
    "golden vectors": check_golden_vectors,
    "golden scores": check_scores,
    "TEI's vector": check_tei_vector,
}


@dataclass(frozen=True, slots=True)
class Report:
    """What was asked of whom, and what came out."""

    target: str
    served: ServedModel
    card: Card | None
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Say whether nothing failed; what could not be asked does not count."""
        return self.count("fail") == 0 and self.count("pass") > 0

    def count(self, status: str) -> int:
        return sum(check.outcome.status == status for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Give the report as JSON for scripts."""
        return {
            "target": self.target,
            "served": asdict(self.served),
            "card": self.card.name if self.card else None,
            "ok": self.ok,
            "checks": [{"name": check.name} | asdict(check.outcome) for check in self.checks],
        }


def verify(
    client: GatewayClient,
    *,
    card_name: str | None = None,
    target: str = "",
    on_check: Callable[[Check], object] = str,
) -> Report:
    """Put every check to a server; `card_name` takes the place of the card that its model has.

    `on_check` hears of each check when it is done.

    Raises:
        GatewayError: the server cannot be reached, refuses the key, or is not ready.
    """
    served = client.describe()
    card = None if card_name == NO_CARD else choose_card(card_name, served)
    probe = Probe(client, served, card)
    checks: list[Check] = []
    for name, question in CHECKS.items():
        checks.append(Check(name, _ask(question, probe)))
        on_check(checks[-1])
    return Report(target or client.url, served, card, tuple(checks))


def _ask(question: Question, probe: Probe) -> Outcome:
    try:
        return question(probe)
    except UnreachableError:
        raise
    except BrokenAnswerError as error:
        return failed(
            str(error),
            "a vector for each text",
            cause="texts are dropped, or the answer is another interface's",
            remedy="answer `embeddings` with a row of numbers for each text",
        )
    except GatewayError as error:
        return failed(
            str(error),
            "an answer",
            cause="the server refuses a request that it should answer, or answers it wrongly",
            remedy="see the server's log",
        )
