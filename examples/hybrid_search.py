"""Search the same passages by meaning, by words and by both, and see what each mode misses.

Loads the documents first; a second run embeds nothing. With `--rerank` the gateway's reranker
orders what both found together. See `docs/hybrid-search.md` and `docs/rerank.md`.
"""

import argparse
import json
import os
from pathlib import Path

from qwen3_triton_ingest import Searcher, load

DOCUMENTS = Path(__file__).parent / "demo" / "documents.jsonl"
TABLE = "hybrid_passages"
QUESTIONS = ("How do flying mammals find their prey in total darkness?", "moth echoes")
EXAMPLES = """examples:
  python examples/hybrid_search.py
  python examples/hybrid_search.py --question "What prevents the Earth from falling into the Sun?"
  python examples/hybrid_search.py --rerank
  python examples/hybrid_search.py --question "light" --filter '{"subject": "painting"}'
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="JSON lines to load")
    parser.add_argument(
        "--question", action="append", help="repeat for several; default: two of ours"
    )
    parser.add_argument("--filter", type=json.loads, help="metadata filter as JSON")
    parser.add_argument("--rerank", action="store_true", help="rerank the best 50 of both ways")
    options = parser.parse_args()

    database = os.environ["DATABASE_URL"]
    report = load([options.documents], dsn=database, table=TABLE)
    print(f"Chunks written: {report.counts.chunks_written}, index: {report.index}")

    with Searcher(database, TABLE) as searcher:
        for question in options.question or QUESTIONS:
            print(f"Question: {question}")
            for mode in ("vector", "text", "hybrid"):
                hits = searcher.search(question, mode=mode, k=3, filter=options.filter)
                names = [f"{hit.doc_id} ({hit.metadata['title']})" for hit in hits]
                print(f"  {mode}: {'; '.join(names) or 'nothing'}")
            if options.rerank:
                hits = searcher.search(question, k=3, filter=options.filter, rerank=True)
                names = [f"{hit.doc_id} (rank {hit.search_rank} before)" for hit in hits]
                print(f"  reranked: {'; '.join(names) or 'nothing'}")


if __name__ == "__main__":
    main()
