"""Checks of what happens to a text before the model: instruction, tokens, end token, cutting.

The end token is seen from outside by the cut. Of a text whose tokens fill `max_length` but one, a
right server pools the end token behind them; where the end token stands in the text itself, and
more after it, a right server cuts all that off and gives the same vector. One that appends no end
token pools the text's last word in the first case and the end token in the second.
"""

from __future__ import annotations

from qwen3_triton_gateway.tokenization import DEFAULT_INSTRUCTION, END_TOKEN, format_inputs

from .checks import MIN_SAME_COSINE, Outcome, Probe, failed, passed, skipped
from .gateway_client import Answer, Float64Matrix, RefusedError, cosine
from .golden import QUERIES, TOKEN_PROBE
from .vector_checks import SAME

OTHER_INSTRUCTION = "Given a question about cooking, find the recipe that answers it best"
FEW_WORDS = 10
# Beyond this the texts that fill a model's length take minutes on a CPU.
MAX_CUT_LENGTH = 4096
BAD_REQUEST_STATUSES = (400, 413, 422)


def check_instruction(probe: Probe) -> Outcome:
    """A query's vector is that of `Instruct: {instruction}\\nQuery:{text}` as a document."""
    return _check_prompt(probe, None)


def check_other_instruction(probe: Probe) -> Outcome:
    """An instruction of the caller's own takes the place of the default."""
    return _check_prompt(probe, OTHER_INSTRUCTION)


def _check_prompt(probe: Probe, instruction: str | None) -> Outcome:
    text = QUERIES[0]
    (prompt,) = format_inputs([text], input_type="query", instruction=instruction)
    query = probe.client.embed([text], input_type="query", instruction=instruction).vectors
    by_hand = cosine(query, probe.alone([prompt]))
    plain = cosine(query, probe.alone([text]))
    measured = f"cosine {by_hand:.6f} with the prompt by hand, {plain:.6f} with the bare text"
    allowed = f">= {MIN_SAME_COSINE}, and nearer than the bare text"
    # Some models heed the instruction little, so the two are compared with each other.
    if by_hand >= MIN_SAME_COSINE and by_hand > plain:
        return passed(measured, allowed)
    return failed(
        measured,
        allowed,
        cause=_prompt_cause(probe, query, instruction),
        remedy="queries are `Instruct: {instruction}\\nQuery:{text}`, no space after `Query:`",
    )


def _prompt_cause(probe: Probe, query: Float64Matrix, instruction: str | None) -> str:
    """Tell which other prompt a query carries."""
    text = QUERIES[0]
    used = instruction or DEFAULT_INSTRUCTION
    candidates = {
        "queries are embedded without their instruction": text,
        "there is a space after `Query:`": f"Instruct: {used}\nQuery: {text}",
        "the instruction and the query stand on one line": f"Instruct: {used} Query:{text}",
        "the caller's `instruction` is ignored": f"Instruct: {DEFAULT_INSTRUCTION}\nQuery:{text}",
    }
    near = {cause: cosine(query, probe.alone([prompt])) for cause, prompt in candidates.items()}
    cause = max(near, key=lambda cause: near[cause])
    return cause if near[cause] >= MIN_SAME_COSINE else "queries carry another prompt"


def check_end_token(probe: Probe) -> Outcome:
    """The model sees `<|endoftext|>` after a text, and its state there is the vector."""
    count = probe.together([_words(FEW_WORDS)]).prompt_tokens
    allowed = f"the last token is {END_TOKEN}"
    wrong = {
        "allowed": allowed,
        "cause": f"the text's own last token is pooled: nothing appends {END_TOKEN}",
        "remedy": (
            f"append {END_TOKEN} (151643; not <|im_end|>) after tokenizing and after cutting, "
            "or fetch a tokenizer.json from after June 2025"
        ),
    }
    if count == FEW_WORDS:
        return failed(f"{FEW_WORDS} one-token words count {count} tokens", **wrong)
    length, reason = _cut_length(probe)
    if length is None:
        return skipped(reason)
    full = _words(length - 1)
    value = cosine(probe.alone([full]), probe.alone([f"{full}{END_TOKEN} a"]))
    measured = f"cosine {value:.6f} where {END_TOKEN} is cut off"
    if value < MIN_SAME_COSINE:
        return failed(measured, **wrong)
    return passed(f"{measured}; {count or 'no'} tokens counted for {FEW_WORDS} words", allowed)


def check_long_text(probe: Probe) -> Outcome:
    """A text that is too long loses its end, keeps the end token, and the caller hears of it."""
    length, reason = _cut_length(probe)
    if length is None:
        return skipped(reason)
    full, longer = _words(length - 1), _words(length + FEW_WORDS)
    answer = probe.together([full, longer])
    allowed = f"only the text above {length} tokens reported; {SAME} with its beginning"
    value = cosine(answer.vectors, answer.vectors[1:])
    measured = f"truncated {_reported(answer)}; cosine {value:.6f} with the beginning"
    if answer.truncated != (1,):
        return failed(
            measured,
            allowed,
            cause="texts are cut silently, or are reported as cut where they are not",
            remedy="list the indices of cut texts in `truncated`",
        )
    if value < MIN_SAME_COSINE:
        return failed(
            measured,
            allowed,
            cause=f"cutting takes the end token away, or keeps more than {length} tokens",
            remedy=f"cut to {length - 1} tokens first, then append {END_TOKEN}",
        )
    try:
        probe.client.embed([longer], truncate=False)
    except RefusedError as error:
        if error.status in BAD_REQUEST_STATUSES:
            return passed(f"{measured}; refused with `truncate: false`", allowed)
        raise
    return failed(
        "a text that is too long is embedded in spite of `truncate: false`",
        allowed,
        cause="the server ignores `truncate: false`",
        remedy="answer 400 with the text's index, its length and the limit",
    )


def check_tokenizer(probe: Probe) -> Outcome:
    """A sentence has the token ids of the model's vocabulary."""
    if probe.card is None or probe.card.probe_ids is None:
        return skipped(no_card(probe))
    known = probe.card.probe_ids
    ids = probe.client.tokenize(TOKEN_PROBE)
    cause = "the tokenizer is another model's"
    remedy = "point TOKENIZER_PATH at the tokenizer.json of the served model"
    if ids is None:
        count = probe.together([TOKEN_PROBE]).prompt_tokens
        if count is None:
            return skipped("the server neither lists tokens (POST /tokenize) nor counts them")
        measured, allowed = f"{count} tokens", f"{len(known)} tokens"
        if count == len(known):
            return passed(measured, allowed)
        return failed(measured, allowed, cause=cause, remedy=remedy)
    allowed = f"{len(known)} ids ending with {known[-1]}, as of card {probe.card.name}"
    if tuple(ids) == known:
        return passed(f"the {len(ids)} known ids", allowed)
    if tuple(ids) == known[:-1]:
        cause, remedy = f"{END_TOKEN} is not appended", f"append {known[-1]}"
    return failed(f"ids {_listed(ids)}", allowed, cause=cause, remedy=remedy)


def _cut_length(probe: Probe) -> tuple[int | None, str]:
    """Give the length to which texts are cut, or why that cannot be tried."""
    length = probe.served.max_length
    if length is None:
        return None, "the server does not say its max_length (GET /info)"
    if not FEW_WORDS < length <= MAX_CUT_LENGTH:
        return None, f"max_length {length} is not from {FEW_WORDS + 1} to {MAX_CUT_LENGTH}"
    count = probe.together([_words(FEW_WORDS)]).prompt_tokens
    if count not in (None, FEW_WORDS, FEW_WORDS + 1):
        return None, f"{FEW_WORDS} letters count {count} tokens: no tokenizer of the family"
    return length, ""


def _words(count: int) -> str:
    """Make a text of so many tokens: `a` and ` a` are one each in any byte-level vocabulary."""
    return " ".join("a" * count)


def _reported(answer: Answer) -> str:
    return "not reported" if answer.truncated is None else str(list(answer.truncated))


def _listed(ids: list[int]) -> str:
    few = 6
    return ", ".join(map(str, ids[:few])) + (f", … ({len(ids)})" if len(ids) > few else "")


def no_card(probe: Probe) -> str:
    if probe.card is not None:
        return probe.card.missing
    return f"no card for {probe.served.model_id or 'a model without a name'}"
