"""From queries and documents to the tokens of the reranker's prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from .errors import InvalidRequestError
from .rerank_prompt import PREFIX, SUFFIX, render_pair
from .tensors import Int64Vector, TokenCount, TokenizedText
from .tokenization import TextTokenizer, Tokenization

# What precedes a document in its pair. Qwen3's tokenizer begins a word with it whatever follows, so
# the tokens before it are the same for every document.
SEPARATOR = " "


class PairTokenization:
    """The pairs of one call on their way to tokens, a step at a time; see `Tokenization`.

    As on the model card, prefix, pair and suffix are tokenized on their own. All of a pair that
    precedes its document is tokenized once for each query. Only a document is truncated: the prompt
    and the query stay whole.

    Attributes:
        is_done: Whether every pair is tokenized.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        queries: Sequence[str],
        documents: Sequence[str],
        *,
        instruction: str,
        limit: int,
        limit_name: str = "RERANK_MAX_LENGTH",
        queries_field: str = "query",
        max_document_tokens: int | None = None,
        text_tokenizer: TextTokenizer | None = None,
    ) -> None:
        """Prepare the pairs; `step` does the work.

        Args:
            tokenizer: The tokenizer.
            queries: The query of each document.
            documents: The documents.
            instruction: What makes a document relevant.
            limit: Maximum tokens of a pair, prompt included.
            limit_name: What sets it, for errors.
            queries_field: What the caller calls the query or queries, for errors.
            max_document_tokens: Maximum tokens of a document, if there is room for more.
            text_tokenizer: For what is within the prompt, if not the same.
        """
        self._tokenizer = text_tokenizer or tokenizer
        self._queries = queries
        self._documents = documents
        self._instruction = instruction
        self._limit = limit
        self._limit_name = limit_name
        self._queries_field = queries_field
        self._max_document_tokens = max_document_tokens
        self._prefix, self._suffix = prompt_tokens(tokenizer)
        self._room = limit - len(self._prefix) - len(self._suffix)
        self._distinct = list(dict.fromkeys(queries))
        heads = [self._head_of(query) for query in self._distinct]
        self._heads = Tokenization(self._tokenizer, heads, after=(), limit=max(1, self._room))
        self._head_tokens: dict[str, TokenizedText] = {}
        self._rest: Tokenization | None = None

    @property
    def is_done(self) -> bool:
        return self._rest is not None and self._rest.is_done

    def step(self) -> None:
        """Tokenize the next queries or documents.

        Raises:
            InvalidRequestError: A query leaves no room for a document, or a document cannot be
                truncated at a cut; `index` names the document.
        """
        if self._rest is not None:
            try:
                self._rest.step()
            except InvalidRequestError as error:
                subject = f"Text {error.index}"
                msg = error.message.replace(subject, f"Document {error.index}", 1)
                raise InvalidRequestError(msg, index=error.index, code=error.code) from None
            return
        try:
            self._heads.step()
        except InvalidRequestError as error:
            subject, param = self._name(self._distinct[error.index or 0])
            msg = error.message.replace(f"Text {error.index}", subject, 1)
            raise InvalidRequestError(msg, param=param, code=error.code) from None
        if self._heads.is_done:
            self._head_tokens = dict(zip(self._distinct, self._heads.tokenized(), strict=True))
            self._check_heads()
            self._rest = self._begin_documents()

    @property
    def tokens(self) -> int:
        """The tokens of all pairs: each has the query's, so there may be far more than were sent.

        At most, if pairs are truncated.
        """
        fixed = len(self._prefix) + len(self._suffix)
        return sum(
            min(self._limit, fixed + text.length + (head.length if self._shares_heads else 0))
            for head, text in self._parts()
        )

    def tokenized(self) -> list[TokenizedText]:
        """Return the tokens of every pair, in the order of the documents."""
        return [self._join(head, text) for head, text in self._parts()]

    def _parts(self) -> Iterator[tuple[TokenizedText, TokenizedText]]:
        """Yield the tokens of each query with those of its document."""
        assert self._rest is not None, "is_done comes first"
        pairs = zip(self._queries, self._rest.tokenized(), strict=True)
        return ((self._head_tokens[query], text) for query, text in pairs)

    def _head_of(self, query: str) -> str:
        return render_pair(query, "", self._instruction).removesuffix(SEPARATOR)

    def _check_heads(self) -> None:
        for query, head in self._head_tokens.items():
            if head.count.total < self._room:
                continue
            total = head.count.total + self._limit - self._room
            subject, param = self._name(query)
            msg = (
                f"{subject} has {'' if head.count.exact else 'more than '}{total} tokens with its "
                f"instruction and the prompt; the limit of a pair is {self._limit} "
                f"({self._limit_name}), and queries are never cut. Shorten it."
            )
            raise InvalidRequestError(msg, param=param, code="query_too_long")

    def _name(self, query: str) -> tuple[str, str]:
        return name_query(self._queries, query, self._queries_field)

    def _begin_documents(self) -> Tokenization:
        if self._shares_heads:
            texts, prefix = self._documents, SEPARATOR
            limit = self._room - min(head.length for head in self._head_tokens.values())
        else:
            pairs = zip(self._queries, self._documents, strict=True)
            texts = [render_pair(query, text, self._instruction) for query, text in pairs]
            prefix, limit = "", self._room
        return Tokenization(self._tokenizer, texts, prefix=prefix, after=(), limit=limit)

    @property
    def _shares_heads(self) -> bool:
        # Where words begin is known for this family's tokenizer only.
        return self._tokenizer.segmenter.knows_words

    def _join(self, head: TokenizedText, text: TokenizedText) -> TokenizedText:
        allowed = self._room - head.length
        if self._max_document_tokens is not None:
            allowed = min(allowed, self._max_document_tokens)
        fixed = len(self._prefix) + len(self._suffix)
        if self._shares_heads:
            middle, fixed = [head.input_ids, text.input_ids[:allowed]], fixed + head.length
        else:
            middle = [text.input_ids[: head.length + allowed]]
        input_ids = np.concatenate([self._prefix, *middle, self._suffix])
        count = TokenCount(len(input_ids), fixed + text.count.total, exact=text.count.exact)
        return TokenizedText(input_ids, count)


def name_query(queries: Sequence[str], query: str, field: str) -> tuple[str, str]:
    """Return what an error calls a query, and its field: by its index, unless all are the same."""
    index = queries.index(query)
    if queries.count(query) == len(queries):
        return "The query", field
    return f"Query {index}", f"{field}[{index}]"


@lru_cache(maxsize=1)  # the library takes as long for them as for a request's own texts
def prompt_tokens(tokenizer: TextTokenizer) -> tuple[Int64Vector, Int64Vector]:
    """Return the tokens of the prompt's prefix and suffix."""
    prefix, suffix = tokenizer.token_ids([PREFIX, SUFFIX])
    return prefix, suffix
