"""Embed a file of records with Ray Data, and write it as Parquet with a column of vectors.

Prints the options with which `qwen3-triton-ingest load --vector-column embedding` loads the result.
See `docs/ray.md`.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest import GatewayOptions
from qwen3_triton_ingest.ray_data import EmbedBatch

ACTORS = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="JSONL or Parquet with the columns id and text")
    parser.add_argument("target", type=Path, help="folder to write Parquet files to")
    options = parser.parse_args()

    with EmbeddingClient() as client:  # reads QWEN3_TRITON_URL
        space = client.embed(["probe"])

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray.data

    data: Any = ray.data
    read = data.read_parquet if options.source.suffix == ".parquet" else data.read_json
    dataset = read(str(options.source.resolve())).map_batches(
        EmbedBatch,
        fn_constructor_kwargs={
            "gateway": GatewayOptions(url=os.environ.get("QWEN3_TRITON_URL"), max_concurrency=4),
            # An actor that starts later must not meet another model.
            "fingerprint": space.fingerprint,
        },
        concurrency=ACTORS,
        # An actor mostly waits for the gateway. With a whole core each, none is left for reading.
        num_cpus=0.25,
        batch_size=1024,
    )
    dataset.write_parquet(str(options.target.resolve()))
    print(f"--fingerprint {space.fingerprint} --dimensions {space.dimensions}")


if __name__ == "__main__":
    main()
