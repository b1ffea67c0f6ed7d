"""Fill a table of ParadeDB with texts and their vectors, and search it by words and by meaning.

The SQL is in `paradedb.sql`. Run it twice: the second run embeds nothing. Where pg_search is not
installed the table is filled all the same, and the search fails. `docs/paradedb.md` says more.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import psycopg

from qwen3_triton_client import EmbeddingClient

EXAMPLES = Path(__file__).parent
DOCUMENTS = EXAMPLES / "demo" / "documents.jsonl"
QUESTION = "How do flying mammals find their prey in total darkness?"
UPSERT = """
INSERT INTO passages (source, subject, title, content, digest, embedding)
VALUES (%(id)s, %(subject)s, %(title)s, %(text)s, %(digest)s, %(vector)s)
ON CONFLICT (source) DO UPDATE SET (subject, title, content, digest, embedding)
    = (EXCLUDED.subject, EXCLUDED.title, EXCLUDED.content, EXCLUDED.digest, EXCLUDED.embedding)
"""


def statements() -> dict[str, list[bytes]]:
    """Read `paradedb.sql`: the statements of each section, with psql's variables as parameters."""
    text = (EXAMPLES / "paradedb.sql").read_text(encoding="utf-8")
    found = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    return {
        name: [
            re.sub(r":'(\w+)'", r"%(\1)s", statement).encode()
            for statement in re.sub(r"--.*", "", section).split(";")
            if statement.strip()
        ]
        for name, section in zip(found[::2], found[1::2], strict=True)
    }


def load(connection: psycopg.Connection, client: EmbeddingClient, path: Path) -> int:
    """Bring the table up to date with the file; return how many texts were embedded."""
    entries: list[dict[str, Any]] = list(map(json.loads, path.read_text("utf-8").splitlines()))
    space = client.fingerprint()
    for entry in entries:
        # Another model has another fingerprint, so that its first run embeds everything anew.
        entry["digest"] = hashlib.sha256(f"{space}\n{entry['text']}".encode()).hexdigest()
    known = dict(connection.execute("SELECT source, digest FROM passages").fetchall())
    changed = [entry for entry in entries if known.get(entry["id"]) != entry["digest"]]
    for index, vector in client.iter_embed(entry["text"] for entry in changed):
        changed[index]["vector"] = str(vector.tolist())
    connection.cursor().executemany(UPSERT, changed)
    sources = [entry["id"] for entry in entries]
    connection.execute("DELETE FROM passages WHERE source <> ALL(%s)", (sources,))
    return len(changed)


def create_index(connection: psycopg.Connection, sql: dict[str, list[bytes]]) -> str:
    """Create ParadeDB's index as this version of pg_search wants it; return what was done."""
    row = connection.execute(
        "SELECT extversion FROM pg_extension WHERE extname = 'pg_search'"
    ).fetchone()
    if row is None:
        return "none, pg_search is not installed in this database"
    if connection.execute("SELECT to_regclass('passages_search')").fetchone() != (None,):
        return "there already"
    version = tuple(int(part) for part in str(row[0]).split(".")[:2])
    name = max(n for n in sql if n.startswith("index_from_") and _version_in(n) <= version)
    connection.execute(sql[name][0])
    return name


def _version_in(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.removeprefix("index_from_").split("_"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="JSON lines to index")
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args()
    sql = statements()
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection, EmbeddingClient() as client:
        for statement in sql["table"]:
            connection.execute(statement)
        print(f"Texts embedded: {load(connection, client, options.documents)}")
        connection.execute(sql["hnsw"][0])
        print(f"Index of ParadeDB: {create_index(connection, sql)}")
        connection.commit()
        vector = str(client.embed_query(options.question))
        set_width, query = sql["hybrid"]
        connection.execute(set_width)
        try:
            hits = connection.execute(query, {"question": options.question, "vector": vector})
        except psycopg.errors.UndefinedFunction as error:
            print(f"The search needs pg_search: {error.diag.message_primary}", file=sys.stderr)
            return 1
        for source, title, score in hits:
            print(f"Hit: {source}, {title}, {score}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
