"""Load texts and their vectors into ParadeDB, and search them by words and by meaning.

Run it twice: the second run embeds nothing. Without pg_search the table is filled anyway, and the
search fails. `paradedb.sql` has the SQL for your own tables; see `docs/paradedb.md`.
"""

import argparse
import os
import sys
from pathlib import Path

import psycopg

from qwen3_triton_ingest import IngestError, Searcher, load
from qwen3_triton_ingest.search import find_text_indexes

DOCUMENTS = Path(__file__).parent / "demo" / "documents.jsonl"
TABLE = "passages"
QUESTION = "How do flying mammals find their prey in total darkness?"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="JSON lines to load")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--show-sql", action="store_true", help="print the query first")
    options = parser.parse_args()

    database = os.environ["DATABASE_URL"]
    with (
        Searcher(database, TABLE, text_backend="paradedb") as searcher,
        psycopg.connect(database) as connection,
    ):
        try:
            # Creates the index of pg_search where it is installed, in the syntax of its release.
            report = load([options.documents], dsn=database, table=TABLE)
            print(f"Texts embedded: {report.counts.chunks_written}")
            for index in find_text_indexes(connection, searcher.table):
                print(f"Text index: {index.name} ({index.backend})")
            if options.show_sql:
                print(searcher.sql(k=5))
            hits = searcher.search(options.question, k=5)
        except IngestError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
        for hit in hits:
            print(f"Hit: {hit.doc_id}, {hit.metadata['title']}, {hit.score:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
