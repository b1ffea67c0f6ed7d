"""Judge the frameworks' answers and format them as a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from demo.documents import Question
from demo.search_index import Hit

HITS_PER_QUESTION = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits of one framework, or of the reranker, for one question, best first."""

    question: Question
    framework: str
    hits: tuple[Hit, ...]

    @property
    def rank(self) -> int | None:
        """Rank of the first expected document, from 1, or `None` if it is missing."""
        ranks = (
            number
            for number, hit in enumerate(self.hits, start=1)
            if hit.document_id in self.question.expected
        )
        return next(ranks, None)


def count_found(answers: Sequence[Answer], framework: str) -> int:
    """Count the questions for which `framework` found an expected document."""
    return sum(a.framework == framework and a.rank is not None for a in answers)


def answer_table(answers: Sequence[Answer]) -> Table:
    """Build a table with one row per answer, grouped by question."""
    order = {answer.question: number for number, answer in reversed(list(enumerate(answers)))}
    table = Table(title="Questions and top hits", title_justify="left")
    table.add_column("Question", ratio=1)
    table.add_column("Framework", no_wrap=True)
    table.add_column("Top hit")
    table.add_column("Score", justify="right", no_wrap=True)
    table.add_column("Expected", justify="right", no_wrap=True)
    previous: Question | None = None
    for answer in sorted(answers, key=lambda answer: order[answer.question]):
        first = answer.question != previous
        if first and previous is not None:
            table.add_section()
        previous = answer.question
        title, score = (answer.hits[0].title, answer.hits[0].score) if answer.hits else ("none", 0)
        table.add_row(
            Text(answer.question.text if first else ""),
            answer.framework,
            Text(title),
            f"{score:.3f}",
            _mark(answer.rank),
        )
    return table


def rerank_table(before: Sequence[Answer], after: Sequence[Answer]) -> Table:
    """Build a table of where each search's expected document was, and is after reranking."""
    table = Table(title="Searches by title, reranked", title_justify="left")
    table.add_column("Search", ratio=1)
    table.add_column("By embeddings", justify="right", no_wrap=True)
    table.add_column("Reranked", justify="right", no_wrap=True)
    for old, new in zip(before, after, strict=True):
        table.add_row(Text(new.question.text), _mark(old.rank), _mark(new.rank))
    return table


def _mark(rank: int | None) -> Text:
    if rank is None:
        return Text("missed", style="red")
    return Text(f"rank {rank}", style="green" if rank == 1 else "yellow")
