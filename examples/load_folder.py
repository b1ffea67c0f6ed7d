"""Load a folder of documents into PostgreSQL, and search it.

Run it again after changing some of them: only the changes are embedded. `qwen3-triton-ingest load`
does the same without Python; see `docs/ingest.md`.
"""

import argparse
import os
import sys
from pathlib import Path

from qwen3_triton_ingest import IngestError, LoadOptions, LoadProgress, load, search, status

DOCS = Path(__file__).parent.parent / "docs"
TABLE = "manuals"
QUESTION = "Which index serves a search by cosine distance?"


def show(progress: LoadProgress) -> None:
    counts = progress.counts
    done = f"{counts.documents} documents, {counts.chunks_written} chunks"
    print(f"\r{progress.phase}: {done}, {progress.seconds:.0f} s", end="", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=DOCS)
    parser.add_argument("--table", default=TABLE)
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args()

    database = os.environ["DATABASE_URL"]
    try:
        report = load(
            [options.folder],
            dsn=database,
            table=options.table,
            options=LoadOptions(labels={"folder": options.folder.name}),
            on_progress=show if sys.stderr.isatty() else None,
        )
    except IngestError as error:  # the message says what to do
        print(f"Error: {error}", file=sys.stderr)
        return 1
    counts = report.counts
    print(f"Documents: {counts.documents} written, {counts.unchanged} unchanged")
    print(f"Removed: {report.removed}, skipped: {counts.failed}")
    print(f"Chunks written: {counts.chunks_written}")
    for letter in status(database, options.table).latest_dead_letters:
        print(f"Skipped: {letter.origin}: {letter.reason}")
    for hit in search(database, options.table, options.question, k=3):
        print(f"Hit: {hit.doc_id}, chunk {hit.seq}: {' '.join(hit.text.split())[:80]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
