"""Checks of what happens to a text before the model: instruction, tokens, end token, truncation.

Truncation makes the end token visible from outside. For a text of `max_length - 1` tokens, a
correct server pools the end token behind them. If the text itself contains the end token there, and
more after it, a correct server cuts that off and returns the same vector. One that appends no end
token pools the last word in the first case and the end token in the second.
"""

from __future__ import annotations

from qwen3_triton_gateway.tokenization import DEFAULT_INSTRUCTION, END_TOKEN, format_inputs

from ..errors import RefusedError
from ..findings import Finding
from .cards import QUERIES, TOKEN_PROBE, Float64Matrix
from .probe import MIN_SAME_COSINE, SAME, Answer, Check, Probe, cosine, failed, passed, skipped

OTHER_INSTRUCTION = "Given a question about cooking, find the recipe that answers it best"
FEW_WORDS = 10
# Beyond this, texts that fill a model's length take minutes on a CPU.
MAX_FILLED_LENGTH = 4096
BAD_REQUEST_STATUSES = (400, 413, 422)


def check_instruction(probe: Probe) -> Finding:
    """Check that a query is embedded as `Instruct: {instruction}\\nQuery:{text}`."""
    return _check_prompt(probe, None)


def check_other_instruction(probe: Probe) -> Finding:
    """Check that the caller's instruction replaces the default one."""
    return _check_prompt(probe, OTHER_INSTRUCTION)


def _check_prompt(probe: Probe, instruction: str | None) -> Finding:
    text = QUERIES[0]
    (prompt,) = format_inputs([text], input_type="query", instruction=instruction)
    query = probe.client.embed([text], input_type="query", instruction=instruction).vectors
    by_hand = cosine(query, probe.embed_alone([prompt]))
    plain = cosine(query, probe.embed_alone([text]))
    measured = f"cosine {by_hand:.6f} with the prompt written out, {plain:.6f} with the bare text"
    allowed = f">= {MIN_SAME_COSINE}, and closer than the bare text"
    # Some models hardly react to the instruction, so the two are compared with each other.
    if by_hand >= MIN_SAME_COSINE and by_hand > plain:
        return passed(measured, allowed)
    return failed(
        measured,
        allowed,
        cause=_prompt_cause(probe, query, instruction),
        remedy="Embed queries as `Instruct: {instruction}\\nQuery:{text}`, with no other space.",
    )


def _prompt_cause(probe: Probe, query: Float64Matrix, instruction: str | None) -> str:
    """Find out which other prompt the server uses."""
    text = QUERIES[0]
    used = instruction or DEFAULT_INSTRUCTION
    candidates = {
        "Queries are embedded without their instruction.": text,
        "There is a space after `Query:`.": f"Instruct: {used}\nQuery: {text}",
        "The instruction and the query are on one line.": f"Instruct: {used} Query:{text}",
        "The caller's `instruction` is ignored.": f"Instruct: {DEFAULT_INSTRUCTION}\nQuery:{text}",
    }
    similarity = {
        cause: cosine(query, probe.embed_alone([prompt])) for cause, prompt in candidates.items()
    }
    cause = max(similarity, key=lambda cause: similarity[cause])
    return cause if similarity[cause] >= MIN_SAME_COSINE else "Queries carry another prompt."


def check_end_token(probe: Probe) -> Finding:
    """Check that `<|endoftext|>` follows every text, and that its state is the vector."""
    count = probe.embed_together([_words(FEW_WORDS)]).prompt_tokens
    allowed = f"the last token is {END_TOKEN}"
    wrong = {
        "expected": allowed,
        "cause": f"The last token of the text itself is pooled: nothing appends {END_TOKEN}.",
        "remedy": (
            f"Append {END_TOKEN} (151643; not <|im_end|>) after tokenizing and truncating, or use "
            "a tokenizer.json from after June 2025."
        ),
    }
    if count == FEW_WORDS:
        return failed(f"{FEW_WORDS} one-token words count as {count} tokens", **wrong)
    length, reason = _length_to_fill(probe)
    if length is None:
        return skipped(reason)
    full = _words(length - 1)
    value = cosine(probe.embed_alone([full]), probe.embed_alone([f"{full}{END_TOKEN} a"]))
    measured = f"cosine {value:.6f} if {END_TOKEN} is cut off"
    if value < MIN_SAME_COSINE:
        return failed(measured, **wrong)
    return passed(f"{measured}; {count or 'no'} tokens counted for {FEW_WORDS} words", allowed)


def check_long_text(probe: Probe) -> Finding:
    """Check that a text that is too long is truncated before the end token, and reported."""
    length, reason = _length_to_fill(probe)
    if length is None:
        return skipped(reason)
    full, longer = _words(length - 1), _words(length + FEW_WORDS)
    answer = probe.embed_together([full, longer])
    allowed = f"only the text above {length} tokens reported; {SAME} with its beginning"
    value = cosine(answer.vectors, answer.vectors[1:])
    measured = f"truncated {_reported(answer)}; cosine {value:.6f} with the beginning"
    if answer.truncated != (1,):
        return failed(
            measured,
            allowed,
            cause="Texts are truncated silently, or reported as truncated when they are not.",
            remedy="List the indices of truncated texts in `truncated`.",
        )
    if value < MIN_SAME_COSINE:
        return failed(
            measured,
            allowed,
            cause=f"Truncation removes the end token, or keeps more than {length} tokens.",
            remedy=f"Truncate to {length - 1} tokens first, then append {END_TOKEN}.",
        )
    try:
        probe.client.embed([longer], truncate=False)
    except RefusedError as error:
        if error.status in BAD_REQUEST_STATUSES:
            return passed(f"{measured}; rejected with `truncate: false`", allowed)
        raise
    return failed(
        "a text that is too long is embedded despite `truncate: false`",
        allowed,
        cause="The server ignores `truncate: false`.",
        remedy="Answer 400 with the index of the text, its length and the limit.",
    )


def check_tokenizer(probe: Probe) -> Finding:
    """Check that a sentence has the token ids of the model's vocabulary."""
    if probe.card is None or probe.card.probe_ids is None:
        return skipped(probe.no_card_reason)
    expected = probe.card.probe_ids
    ids = probe.client.tokenize(TOKEN_PROBE)
    cause = "The tokenizer belongs to another model."
    remedy = "Point TOKENIZER_PATH to the tokenizer.json of the served model."
    if ids is None:
        count = probe.embed_together([TOKEN_PROBE]).prompt_tokens
        if count is None:
            return skipped("the server neither lists tokens (POST /tokenize) nor counts them")
        measured, allowed = f"{count} tokens", f"{len(expected)} tokens"
        if count == len(expected):
            return passed(measured, allowed)
        return failed(measured, allowed, cause=cause, remedy=remedy)
    allowed = f"{len(expected)} ids ending with {expected[-1]}, by card {probe.card.name}"
    if tuple(ids) == expected:
        return passed(f"the {len(ids)} expected ids", allowed)
    if tuple(ids) == expected[:-1]:
        cause, remedy = f"{END_TOKEN} is not appended.", f"Append {expected[-1]}."
    return failed(f"ids {_listed(ids)}", allowed, cause=cause, remedy=remedy)


def _length_to_fill(probe: Probe) -> tuple[int | None, str]:
    """Return the length to which texts are truncated, or why that cannot be tested."""
    length = probe.served.max_length
    if length is None:
        return None, "the server does not report its max_length (GET /info)"
    if not FEW_WORDS < length <= MAX_FILLED_LENGTH:
        return None, f"max_length {length} is not from {FEW_WORDS + 1} to {MAX_FILLED_LENGTH}"
    count = probe.embed_together([_words(FEW_WORDS)]).prompt_tokens
    if count not in (None, FEW_WORDS, FEW_WORDS + 1):
        return None, f"{FEW_WORDS} letters count as {count} tokens: not a tokenizer of the family"
    return length, ""


def _words(count: int) -> str:
    """Return a text of `count` tokens: `a` and ` a` are one each in any byte-level vocabulary."""
    return " ".join("a" * count)


def _reported(answer: Answer) -> str:
    return "not reported" if answer.truncated is None else str(list(answer.truncated))


def _listed(ids: list[int]) -> str:
    few = 6
    return ", ".join(map(str, ids[:few])) + (f", … ({len(ids)})" if len(ids) > few else "")


CHECKS: dict[str, Check] = {
    "tokenizer": check_tokenizer,
    "end token": check_end_token,
    "long text": check_long_text,
    "instruction": check_instruction,
    "own instruction": check_other_instruction,
}
