"""What Schemathesis must not send, since the OpenAPI document cannot say that it is invalid."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leave out what one field says about another.

    Whether a limit of tokens with the demand to refuse longer texts is valid depends on the tokens
    of its texts, and whether a limit for pairs is on those of the prompt; two lists of texts to
    score must be of one length; and documents must have one of the fields in `rank_fields`.
    """
    del context
    body: Any = case.body
    if not isinstance(body, dict):
        return True
    is_strict = body.get("truncate") is False or body.get("truncation") is False
    has_pairs = bool(body.keys() & {"documents", "text_1", "text_2"})
    sides = [body.get(name) for name in ("text_1", "text_2")]
    left, right = (len(side) if isinstance(side, list) else 1 for side in sides)
    return not (
        ("truncate_prompt_tokens" in body and (has_pairs or body.get("truncation") is False))
        or ("max_tokens" in body and body.get("truncate") == "NONE")
        or ("max_tokens_per_doc" in body and is_strict)
        or body.get("rank_fields")
        or left not in (1, right)
    )
