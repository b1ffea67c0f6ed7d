"""What Schemathesis must not send, since the OpenAPI document cannot say that it is invalid."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leave out a limit of tokens with the demand to refuse longer texts.

    Whether such a request is valid depends on the tokens of its texts.
    """
    del context
    body: Any = case.body
    if not isinstance(body, dict):
        return True
    return not (
        ("truncate_prompt_tokens" in body and body.get("truncation") is False)
        or ("max_tokens" in body and body.get("truncate") == "NONE")
    )
