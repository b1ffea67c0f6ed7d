"""Checks of a reranker's scores: the card's examples, batches, and the prompt around a pair."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from qwen3_triton_gateway.container import memory_bytes
from qwen3_triton_gateway.rerank_prompt import PREFIX, SUFFIX, render_pair

from ..errors import RefusedError
from ..findings import Finding
from ..model.pairs import GraphScorer, Tokens
from .cards import DOCUMENTS, QUERIES
from .probe import failed, passed, skipped
from .rerank_loss import MAX_DIFFERENCE
from .rerank_probe import (
    MAX_SAME_DIFFERENCE,
    SAME,
    RerankCheck,
    RerankProbe,
    Variant,
    compare_scores,
    largest_difference,
)

# A pair of this many tokens runs on any machine. A longer one runs if, by the time of a short one,
# it takes no longer than this, and if plain attention fits into half of the memory: it keeps scores
# of length by length, here of 16 heads in float32, in the three copies that a softmax takes.
MIN_RUN_TOKENS = 2048
MAX_RUN_SECONDS = 20.0
TIMED_TOKENS = 512
ATTENTION_BYTES = 16 * 4 * 3
NO_GRAPH = "needs the model too: pass --reference PATH"
QUERY = QUERIES[0]
# From few tokens to many, so that all but the longest are padded in a batch.
MIXED_LENGTHS = (
    "Beijing.",
    DOCUMENTS[1],
    "It rained all day.",
    "北京是中华人民共和国的首都。",
    DOCUMENTS[0],
    "Capitals are seats of government. " * 12,
)
OTHER_INSTRUCTION = "Given a question about the weather, retrieve forecasts for the same day"
USER_TURN = "<|im_start|>user\n"
TEMPLATE_REMEDY = (
    "Write the prompt of the card of Qwen3-Reranker, around every pair, to the letter: "
    "https://huggingface.co/Qwen/Qwen3-Reranker-0.6B."
)


def check_range(probe: RerankProbe) -> Finding:
    """Check that scores are probabilities."""
    scores = probe.examples()
    allowed = "finite, from 0 to 1"
    wrong = [score for score in scores if not (math.isfinite(score) and 0 <= score <= 1)]
    if not wrong:
        return passed(f"{len(scores)} of {len(scores)} scores", allowed)
    return failed(
        f"a score of {wrong[0]:.4g}",
        allowed,
        cause="Scores are logits, or the model overflows its float type.",
        remedy='Return the share of "yes" in the softmax of "no" and "yes", from a float32 model.',
    )


def check_card(probe: RerankProbe) -> Finding:
    """Check that each query of the model card prefers its own document."""
    if not probe.has_card:
        return skipped("no card")
    first, other, another, second = probe.examples()
    measured = f"{first:.4f} > {other:.4f}, {second:.4f} > {another:.4f}"
    allowed = "a query's own document before the other one's"
    if first > other and second > another:
        return passed(measured, allowed)
    if first < other and second < another:
        cause = 'The scores are those of "no": the two logits are swapped.'
        remedy = 'Take the share of the second of the two logits; the order is "no", "yes".'
        return failed(measured, allowed, cause=cause, remedy=remedy)
    return failed(
        measured,
        allowed,
        cause="Not a reranker, or its prompt is incomplete.",
        remedy="See the check `prompt`; pass --card none for a model that is not meant to know.",
    )


def check_order(probe: RerankProbe) -> Finding:
    """Check that the i-th score belongs to the i-th document, whatever their order."""
    alone = probe.alone(QUERY, MIXED_LENGTHS)
    rotated = [*range(2, len(MIXED_LENGTHS)), *range(2)]
    together = probe.server.score(QUERY, [MIXED_LENGTHS[index] for index in rotated])
    own = [alone[index] for index in rotated]
    if largest_difference(together, own) <= MAX_SAME_DIFFERENCE:
        return passed(f"{len(own)} of {len(own)} scores in place", "an index for each score")
    if largest_difference(sorted(together), sorted(own)) > MAX_SAME_DIFFERENCE:
        return skipped("scores change in a batch, see `batch invariance`")
    return failed(
        "scores in another document's place",
        "an index for each score",
        cause="`index` counts what comes back, sorted or batched, and not the request's documents.",
        remedy="Restore the order of the documents after batching and sorting.",
    )


def check_batch(probe: RerankProbe) -> Finding:
    """Check that a document has the same score alone and among longer ones."""
    alone = probe.alone(QUERY, MIXED_LENGTHS)
    together = probe.server.score(QUERY, MIXED_LENGTHS)
    # Sorted: a wrong order is for another check to find.
    return compare_scores(
        sorted(together),
        sorted(alone),
        cause=(
            "Padding changes the score: the logits are those of the last position, which is a pad "
            "in a batch padded right, or positions do not follow the mask. (Dynamically quantized "
            "int8 models always depend on their batch.)"
        ),
        remedy="Pad right and read the last position whose attention_mask is 1, or pad left.",
    )


def check_padding(probe: RerankProbe) -> Finding:
    """Check that the graph gives a pair the same score with padding on either side."""
    graph = probe.graph
    if graph is None:
        return skipped(NO_GRAPH)
    rows = [graph.pairs.encode(QUERY, document) for document in MIXED_LENGTHS]
    if graph.is_single:
        return skipped("the graph takes one pair at a time")
    alone = [score for row in rows for score in graph.score([row])]
    right, left = (graph.score(rows, side=side) for side in ("right", "left"))
    if largest_difference(right, alone) > MAX_SAME_DIFFERENCE:
        return compare_scores(
            right,
            alone,
            cause="Padding on the right changes the graph's scores.",
            remedy="Export it again, or pool it with `qwen3-triton model pool`.",
        )
    if graph.pads_right_only:
        return passed("equal for padding on the right, the only side this graph takes", SAME)
    return compare_scores(
        left,
        alone,
        cause="Padding on the left changes the graph's scores: its positions count the pads.",
        remedy="The gateway pads right, so nothing is wrong there; other servers may pad left.",
    )


def check_parts(probe: RerankProbe) -> Finding:
    """Check that the score depends on query, document and instruction."""
    base = probe.alone(QUERY, DOCUMENTS[:1])
    changed = {
        "the query": probe.alone(QUERIES[1], DOCUMENTS[:1]),
        "the document": probe.alone(QUERY, DOCUMENTS[1:]),
        "the instruction": probe.server.score(QUERY, DOCUMENTS[:1], OTHER_INSTRUCTION),
    }
    ignored = [name for name, scores in changed.items() if scores == base]
    moves = [f"{name} {abs(scores[0] - base[0]):.1e}" for name, scores in changed.items()]
    allowed = "another score for another query, document or instruction"
    if not ignored:
        return passed(f"moved by {', '.join(moves)}", allowed)
    return failed(
        f"the same score for another value of {' and '.join(ignored)}",
        allowed,
        cause=f"The prompt lacks {' and '.join(ignored)}.",
        remedy=TEMPLATE_REMEDY,
    )


def check_prompt(probe: RerankProbe) -> Finding:
    """Check that the server's scores are those of the card's prompt, token by token."""
    graph = probe.graph
    if graph is None:
        return skipped(NO_GRAPH)
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    scores = probe.examples()
    expected = [s for pair in pairs for s in graph.score([graph.pairs.encode(*pair)])]
    difference = largest_difference(scores, expected)
    measured = f"off by {difference:.4f} at most"
    allowed = f"the graph's own scores of the card's prompt, within {MAX_SAME_DIFFERENCE}"
    if difference <= MAX_SAME_DIFFERENCE:
        return passed(measured, allowed)
    variants = {
        name: largest_difference(scores, variant)
        for name, variant in _variants(graph, pairs, expected).items()
    }
    nearest = min(variants, key=variants.__getitem__)
    if variants[nearest] <= MAX_SAME_DIFFERENCE:
        return failed(measured, allowed, cause=f"{nearest}.", remedy=TEMPLATE_REMEDY)
    if difference <= min(MAX_DIFFERENCE, variants[nearest]):
        return passed(f"{measured}, as lower precision may be", allowed)
    return failed(
        measured,
        allowed,
        cause="Another model, other weights, another tokenizer, or another prompt.",
        remedy=TEMPLATE_REMEDY,
    )


def check_long_document(probe: RerankProbe) -> Finding:
    """Check that of a pair that is too long only the document is cut, never the prompt's end."""
    graph, limit = probe.graph, probe.max_length
    if graph is None or limit is None:
        return skipped(NO_GRAPH if graph is None else "the server does not report its limit")
    document = "Beijing is the capital, and so it has been for long. " * (limit // 6)
    pairs = graph.pairs
    whole = pairs.join(PREFIX, render_pair(QUERY, document), SUFFIX)
    if len(whole) <= limit:
        return skipped(f"no text is longer than {limit} tokens")
    length = min(limit, _runnable_tokens(graph, whole))
    if length < limit:
        try:
            score = probe.server.score_cut(QUERY, document, length)
        except RefusedError as error:
            msg = f"here only up to {length:,} tokens are run, and the server cuts at {limit:,}"
            return skipped(f"{msg}: {error}")
    else:
        [score] = probe.server.score(QUERY, [document])
    [expected] = graph.score([pairs.cut(whole, length)])
    difference = abs(score - expected)
    measured = f"{len(whole):,} tokens, cut to {length:,}, off by {difference:.4f}"
    if length < limit:
        measured += f" (the server's {limit:,} take too long here)"
    allowed = f"the score of what is left with the prompt's end, within {MAX_SAME_DIFFERENCE}"
    if difference <= MAX_SAME_DIFFERENCE:
        return passed(measured, allowed)
    [without_end] = graph.score([whole[:length]])
    if difference <= min(MAX_DIFFERENCE, abs(score - without_end)):
        return passed(f"{measured}, as lower precision may be", allowed)
    lost = abs(score - without_end) <= MAX_SAME_DIFFERENCE
    return failed(
        measured,
        allowed,
        cause="The prompt's end is cut off with the document." if lost else "It is cut elsewhere.",
        remedy="Cut the document to what prefix, query and suffix leave, then append the suffix.",
    )


def _runnable_tokens(graph: GraphScorer, tokens: Tokens) -> int:
    """Return how long a pair the graph can run on this machine."""
    if not graph.selects_answers:
        return MIN_RUN_TOKENS  # of a longer one, the whole vocabulary's logits are gigabytes
    began = time.perf_counter()
    graph.score([tokens[:TIMED_TOKENS]])
    seconds = time.perf_counter() - began
    # Time grows with the square of the length at most.
    by_time = TIMED_TOKENS * math.sqrt(MAX_RUN_SECONDS / seconds)
    by_memory = math.sqrt(memory_bytes() / 2 / ATTENTION_BYTES)
    return max(MIN_RUN_TOKENS, int(min(by_time, by_memory)))


def _variants(
    graph: GraphScorer, pairs: Sequence[tuple[str, str]], right: Sequence[float]
) -> dict[str, list[float]]:
    """Score pairs as servers do that get something wrong, by what is wrong.

    Args:
        graph: The model.
        pairs: Queries with their documents.
        right: The scores of the card's prompt.
    """
    join = graph.pairs.join

    def spaced(query: str, document: str) -> Tokens:
        # As a card of an ONNX export has it.
        return join(PREFIX, render_pair(query, document).replace("\n<", "\n\n<"), SUFFIX)

    def bare(query: str, document: str) -> Tokens:
        return join(f"<Query>: {query}\n<Document>: {document}")

    variants: dict[str, Variant] = {
        "The prompt's end (`<|im_end|>` … `</think>`) is missing": lambda q, d: join(
            PREFIX, render_pair(q, d)
        ),
        "The empty think block at the prompt's end is missing": lambda q, d: join(
            PREFIX, render_pair(q, d), SUFFIX[: SUFFIX.index("<think>")]
        ),
        "The system message is missing": lambda q, d: join(USER_TURN, render_pair(q, d), SUFFIX),
        "The instruction is missing": lambda q, d: join(
            PREFIX, render_pair(q, d).partition("\n")[2], SUFFIX
        ),
        "The whole prompt around the pair is missing": lambda q, d: join(render_pair(q, d)),
        "The whole prompt is missing": bare,
        "Query and document are swapped": lambda q, d: join(PREFIX, render_pair(d, q), SUFFIX),
        "There are empty lines between instruction, query and document": spaced,
    }
    scores = {
        name: [s for pair in pairs for s in graph.score([variant(*pair)])]
        for name, variant in variants.items()
    }
    scores['The scores are those of "no": the two logits are swapped'] = [1 - s for s in right]
    return scores


# The order matters to readers: what goes wrong first explains what follows.
CHECKS: dict[str, RerankCheck] = {
    "score range": check_range,
    "card examples": check_card,
    "batch invariance": check_batch,
    "order": check_order,
    "padding": check_padding,
    "prompt parts": check_parts,
    "prompt": check_prompt,
    "long document": check_long_document,
}
