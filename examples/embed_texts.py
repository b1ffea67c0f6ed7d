"""Embed a file of any length, one text per line, into JSON lines with an id and a vector each.

INPUT is plain text, where the line number is the id, or JSON lines with `id` and `text`. Texts that
OUTPUT already contains are not embedded again, so an interrupted run resumes.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen3_triton_client import EmbeddingClient, EmbeddingError

EXAMPLES = """examples:
  python examples/embed_texts.py lines.txt vectors.jsonl
  python examples/embed_texts.py examples/demo/documents.jsonl vectors.jsonl --npy vectors.npy
  python examples/embed_texts.py questions.txt vectors.jsonl --query --progress
"""


def read(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the id and the text of each line."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if path.suffix == ".jsonl":
                entry = json.loads(line)
                yield entry["id"], entry["text"]
            else:
                yield str(number), line.removesuffix("\n")


def done_before(path: Path, space: str) -> set[str]:
    """Return the ids in the output, and truncate an incomplete last line."""
    ids: set[str] = set()
    complete_bytes = 0
    with path.open("ab+") as output:
        output.seek(0)
        for line in output:
            if not line.endswith(b"\n"):
                output.truncate(complete_bytes)
                break
            complete_bytes += len(line)
            entry = json.loads(line)
            if entry["fingerprint"] != space:
                raise SystemExit(f"`{path}` has vectors of another model. Choose another file.")
            ids.add(entry["id"])
    return ids


def write_npy(vectors: Path, npy: Path) -> tuple[int, ...]:
    """Write the vectors as one float32 array, and their ids to a text file next to it."""
    with vectors.open(encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    matrix = np.array([entry["embedding"] for entry in entries], dtype=np.float32)
    np.save(npy, matrix)
    ids = "".join(f"{entry['id']}\n" for entry in entries)
    npy.with_suffix(".ids.txt").write_text(ids, encoding="utf-8")
    return matrix.shape


def embed(client: EmbeddingClient, options: argparse.Namespace) -> int:
    """Embed what the output lacks; return how many texts could not be embedded."""
    space = client.fingerprint()
    done = done_before(options.output, space)
    pending: dict[int, str] = {}  # ids of the texts in flight, by their index in the stream
    failed = 0

    def new_texts() -> Iterator[str]:
        new = ((name, text) for name, text in read(options.input) if name not in done)
        for index, (name, text) in enumerate(new):
            pending[index] = name
            yield text

    def report(index: int, error: EmbeddingError) -> None:
        nonlocal failed
        failed += 1
        print(f"{pending.pop(index)}: {error.message}", file=sys.stderr)

    written = 0
    stream = client.iter_embed(
        new_texts(),
        input_type="query" if options.query else "document",
        on_failure=report,
        progress=options.progress,
    )
    with options.output.open("a", encoding="utf-8") as output:
        for index, vector in stream:
            entry = {"id": pending.pop(index), "fingerprint": space, "embedding": vector.tolist()}
            output.write(json.dumps(entry) + "\n")
            written += 1
    print(f"{written} embedded, {len(done)} already done, {failed} failed")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--npy", type=Path, help="also write the vectors as a numpy array")
    parser.add_argument("--query", action="store_true", help="embed the texts as queries")
    parser.add_argument("--progress", action="store_true", help="show a progress bar (needs tqdm)")
    options = parser.parse_args()
    try:
        with EmbeddingClient() as client:  # reads QWEN3_TRITON_URL and QWEN3_TRITON_API_KEY
            failed = embed(client, options)
    except EmbeddingError as error:  # not one text: the gateway is down, the key is wrong ...
        print(f"Error: {error}. Run the command again to resume.", file=sys.stderr)
        return 1
    if options.npy:
        print(f"Array: {write_npy(options.output, options.npy)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
