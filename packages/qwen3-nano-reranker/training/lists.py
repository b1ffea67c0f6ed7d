"""Derive queries from the articles, and find what the embedder would retrieve for each.

    python lists.py WORK

Reads WORK/train.jsonl of the embedder's `collect.py` and the tokenizer; writes WORK/lists.npz,
WORK/texts.json and WORK/token-ids.npz. The held-out articles are in another file, so nothing of
them can get in here.

As in the evaluation, the documents of a source are divided into pools of about a thousand, and a
query is asked of the pool that has its article. A list is the query, its article, and the others
of the embedder's first 50. The last pool of each source is for validation.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from articles import Article, read_articles
from chat_tokenizer import prompt_ids
from numpy.typing import NDArray
from student import END, Student, StudentConfig
from texts import _WHAT_IS, _WHICH, _WHY, _ask_about, _keywords, _sentences
from tokenizers import Tokenizer
from train_tokenizer import PREFIX

import qwen3_nano
from qwen3_nano.weights import load_weights

POOL = 1000
FIRST = 50
DIMENSIONS = 1024
MAX_TOKENS = 320
MAX_CHARACTERS, MAX_SAVED_TOKENS = 4000, 400
SEED = 5
SYNONYM_SHARE = 0.35
TITLE_QUESTIONS = (*_WHAT_IS, "How do I {}?", "how to {}", "{}?", "What are the rules for {}?")
# Articles of each group that are used at most.
GROUPS = {
    "wordnet": (("dict-wn",), 36_000),
    "gcide": (("dict-gcide",), 10_000),
    "computing": (("dict-foldoc", "dict-jargon", "dict-vera"), 18_000),
    "manuals": (
        (
            "python3.11-doc", "perl-doc", "postgresql-doc-15", "sqlite3-doc", "debian-handbook",
            "libreoffice-help-en-us", "gimp-help-en", "gnome-user-docs", "developers-reference",
            "debian-reference-en", "kstars-data", "debian-faq", "maxima-doc", "lilypond-doc-html",
        ),
        24_000,
    ),
    "general": (("enwiki-sample", "factbook", "cookbook", "red-trivia", "fortunes"), 22_000),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pool:
    """Documents of one source, and queries with the index of the document that answers each."""

    name: str
    documents: list[str]
    queries: list[tuple[str, int]]
    validation: bool


class Writer:
    """Derives queries, some of which share few words with their article."""

    def __init__(self, articles: list[Article], rng: random.Random) -> None:
        self._rng = rng
        self._synonyms: dict[str, list[str]] = defaultdict(list)
        for article in articles:
            if article.source == "dict-wn" and article.title.isalpha():
                self._synonyms[article.title.lower()] += article.aliases

    def of_word(self, article: Article) -> tuple[str, str]:
        """Return a query for a dictionary's entry, and the document."""
        rng = self._rng
        name = rng.choice((article.title, article.title, *article.aliases))
        chance = rng.random()
        if chance < 0.7:
            return name, article.text
        if chance < 0.85:
            return _ask_about(rng, name, _WHAT_IS), article.text
        gloss = self._paraphrase(article.text.partition('; "')[0])
        if chance < 0.9:
            return _ask_about(rng, gloss, _WHICH), article.text
        return _keywords(rng, gloss), article.text

    def of_computing(self, article: Article) -> tuple[str, str]:
        return (self.of_word if self._rng.random() < 0.6 else self.of_paragraph)(article)

    def of_paragraph(self, article: Article) -> tuple[str, str]:
        """Return a query for a paragraph, and the document.

        Half of the queries from a sentence are about a sentence that the document then lacks, so
        that what it means must be compared and not only its words.
        """
        rng = self._rng
        chance = rng.random()
        sentences = _sentences(article.text)
        if article.source == "fortunes":
            chance = 0.5 + 0.5 * chance  # its titles are file names
        if chance < 0.3 or not sentences:
            return article.title, article.text
        if chance < 0.5:
            return _ask_about(rng, article.title, TITLE_QUESTIONS), article.text
        sentence = rng.choice(sentences)
        text = article.text
        if len(sentences) > 2 and rng.random() < 0.5:
            text = text.replace(sentence, "", 1).strip()
        sentence = self._paraphrase(sentence)
        if chance < 0.85:
            return _ask_about(rng, sentence, _WHY), text
        return _keywords(rng, sentence), text

    def _paraphrase(self, text: str) -> str:
        """Replace some words with synonyms of WordNet."""
        words = [
            self._rng.choice(self._synonyms[word.lower()])
            if self._synonyms.get(word.lower()) and self._rng.random() < SYNONYM_SHARE
            else word
            for word in text.split()
        ]
        return " ".join(words)


def pools(articles: list[Article], rng: random.Random) -> Iterator[Pool]:
    """Yield the pools of every group of sources."""
    by_source: dict[str, list[Article]] = defaultdict(list)
    for article in articles:
        if len(article.title) > 1:
            by_source[article.source].append(article)
    writer = Writer(articles, rng)
    for name, (sources, limit) in GROUPS.items():
        chosen = [article for source in sources for article in by_source[source]]
        rng.shuffle(chosen)
        chosen = chosen[:limit]
        write = writer.of_word if name in {"wordnet", "gcide"} else writer.of_paragraph
        if name == "computing":
            write = writer.of_computing
        for start in range(0, len(chosen), POOL):
            pairs = [write(article) for article in chosen[start : start + POOL]]
            queries = [(query, i) for i, (query, _) in enumerate(pairs) if 1 < len(query) < 200]
            documents = [text for _, text in pairs]
            yield Pool(name, documents, queries, start + POOL >= len(chosen))


class Embedder:
    """The shipped nano embedder, computed as a bag of tokens, which is quick."""

    def __init__(self) -> None:
        folder = qwen3_nano.model_dir()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        weights = load_weights(folder / "model.onnx")
        self.student = Student(StudentConfig(num_hidden_layers=1)).eval()
        (layer,) = weights.layers
        state = {
            "embedding.weight": weights.embedding.dequantize(),
            "projection.weight": weights.projection.dequantize(),
            "norm": weights.norm,
        }
        for name in ("input_norm", "post_norm", "q_norm", "k_norm"):
            state[f"layers.0.{name}"] = getattr(layer, name)
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            state[f"layers.0.{name}.weight"] = getattr(layer, name).dequantize()
        arrays = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
        self.student.load_state_dict(arrays)

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> torch.Tensor:
        """Return float32 (n, DIMENSIONS), unit length."""
        rows = [[*e.ids[:-1][:MAX_TOKENS], END] for e in self.tokenizer.encode_batch(texts)]
        vectors = []
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            flat = torch.tensor([token for row in part for token in row])
            offsets = torch.tensor(np.cumsum([0, *map(len, part[:-1])]))
            vectors.append(self.student.bags(flat, offsets)[:, :DIMENSIONS])
        return torch.nn.functional.normalize(torch.cat(vectors), dim=-1)


def first_ranks(embedder: Embedder, pool: Pool) -> NDArray[np.int32]:
    """Return the embedder's first 50 documents for each query, (queries, 50)."""
    queries = embedder.embed([PREFIX + query for query, _ in pool.queries])
    documents = embedder.embed(pool.documents)
    return (queries @ documents.T).topk(FIRST, dim=1).indices.numpy().astype(np.int32)


def write_tokens(work: Path, texts: list[str]) -> None:
    """Tokenize all texts with the reranker's tokenizer, as they follow a word."""
    tokenizer = Tokenizer.from_file(str(work / "model/tokenizer.json"))
    encoded = tokenizer.encode_batch([f" {text}"[:MAX_CHARACTERS] for text in texts])
    rows = [np.array(e.ids[:MAX_SAVED_TOKENS], dtype=np.int32) for e in encoded]
    ends = np.cumsum([len(row) for row in rows])
    np.savez(work / "token-ids.npz", flat=np.concatenate(rows), ends=ends)


class Texts:
    """What this module wrote: texts, their tokens, and the lists, as indices into both."""

    def __init__(self, work: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(work / "model/tokenizer.json"))
        self.prefix, self.suffix = prompt_ids(self.tokenizer)
        self.texts: list[str] = json.loads((work / "texts.json").read_text(encoding="utf-8"))
        saved = np.load(work / "token-ids.npz")
        self.rows: list[NDArray[np.int32]] = np.split(saved["flat"], saved["ends"][:-1])
        arrays = np.load(work / "lists.npz")
        self.candidates, self.answers = arrays["candidates"], arrays["answers"]
        self.queries, self.groups = arrays["queries"], arrays["groups"]
        self.validation = arrays["validation"].astype(bool)

    def some_queries(self, count: int) -> NDArray[np.int32]:
        """Draw queries of training lists."""
        return np.random.default_rng(1).choice(self.queries[~self.validation], count, replace=False)

    def some_documents(self, count: int) -> NDArray[np.int32]:
        """Draw documents of training lists."""
        documents = np.unique(self.candidates[~self.validation])
        return np.random.default_rng(2).choice(documents, count, replace=False)

    def rarity(self, count: int) -> torch.Tensor:
        """Return the logarithm of a token's inverse document frequency in so many documents."""
        found = np.ones(self.tokenizer.get_vocab_size())
        for row in self.some_documents(count):
            found[np.unique(self.rows[row])] += 1
        return torch.tensor(np.log(count / found), dtype=torch.float32)


def main() -> None:
    work = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    embedder = Embedder()
    articles = list(read_articles(work / "train.jsonl"))
    texts: list[str] = []
    rows: dict[str, list[NDArray[np.int32]]] = defaultdict(list)
    recall: dict[str, list[float]] = defaultdict(list)
    for pool in pools(articles, random.Random(SEED)):
        if len(pool.documents) < 4 * FIRST:
            continue
        first = first_ranks(embedder, pool)
        answers = np.array([answer for _, answer in pool.queries], dtype=np.int32)
        recall[pool.name].append(float((first == answers[:, None]).any(axis=1).mean()))
        start = len(texts)
        texts += [*pool.documents, *(query for query, _ in pool.queries)]
        rows["candidates"].append(first + start)
        rows["answers"].append(answers + start)
        rows["queries"].append(
            np.arange(len(answers), dtype=np.int32) + start + len(pool.documents)
        )
        group = list(GROUPS).index(pool.name)
        rows["groups"].append(np.full(len(answers), group, dtype=np.int32))
        rows["validation"].append(np.full(len(answers), pool.validation, dtype=np.int32))
        print(pool.name, len(answers), f"{recall[pool.name][-1]:.3f}", flush=True)
    np.savez(work / "lists.npz", **{name: np.concatenate(parts) for name, parts in rows.items()})
    (work / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    write_tokens(work, texts)
    print({name: round(float(np.mean(values)), 3) for name, values in recall.items()})


if __name__ == "__main__":
    main()
