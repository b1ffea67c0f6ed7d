"""Texts per second of sentence-transformers and infinity, in-process, on our weights.

`peers.py` runs this in environments that have them, separate from the gateway's:

    python bench/peer_engines.py checkpoint MODEL_DIR FOLDER    # needs torch and transformers
    python bench/peer_engines.py sentence-transformers FOLDER TEXTS.json
    python bench/peer_engines.py infinity FOLDER TEXTS.json

Prints one line of JSON: the rate of every round, and the first text's vector, so that the vectors
can be compared too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
TRAINING = Path(__file__).resolve().parents[1] / "packages" / "qwen3-nano" / "training"
BATCH_SIZE = 32  # of both, by default
MAX_LENGTH = 1024
ROUNDS = 3

Embed = Callable[[list[str]], Awaitable[Any]]


def write_checkpoint(model_dir: Path, folder: Path) -> None:
    """Write weights in the format of sentence-transformers 4 to 6, with last-token pooling."""
    sys.path.append(str(TRAINING))
    import reference
    from transformers import PreTrainedTokenizerFast

    model = reference.load_reference(model_dir)
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(model_dir / "tokenizer.json"),
        pad_token="<|endoftext|>",
        padding_side="left",
    )
    tokenizer.save_pretrained(folder)
    # transformers 4 and 5 differ in the tokenizer class and in where the rotary base is.
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH}
    _update(folder / "tokenizer_config.json", named)
    _update(folder / "config.json", json.loads((model_dir / "config.json").read_text()))
    parts = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Normalize").mkdir()
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_lasttoken": True}
    off = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | off))
    longest = {"max_seq_length": MAX_LENGTH, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(longest))
    shutil.copyfile(model_dir / "tokenizer.json", folder / "tokenizer.json")


def _update(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


async def sentence_transformers(
    folder: Path, texts: list[str], dtype: str = "float32"
) -> dict[str, Any]:
    """Encode as its users do: in one call, which sorts by length and batches."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"torch_dtype": dtype})

    async def embed(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=BATCH_SIZE)

    return await _measure(embed, texts)


async def infinity(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Embed with infinity's engine, which sorts and batches by itself."""
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    arguments = EngineArgs(
        model_name_or_path=str(folder),
        engine="torch",
        device="cpu",
        dtype="float32",
        batch_size=BATCH_SIZE,
        bettertransformer=False,
        model_warmup=False,
        compile=False,
    )
    engine = AsyncEmbeddingEngine.from_args(arguments)
    async with engine:

        async def embed(texts: list[str]) -> Any:
            vectors, _ = await engine.embed(texts)
            return vectors

        return await _measure(embed, texts)


async def _measure(embed: Embed, texts: list[str]) -> dict[str, Any]:
    vectors = await embed(texts[:BATCH_SIZE])
    rates: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await embed(texts)
        rates.append(len(texts) / (time.perf_counter() - began))
    return {"texts_per_second": rates, "first": [float(value) for value in vectors[0]]}


ENGINES = {
    "sentence-transformers": sentence_transformers,
    "sentence-transformers-bfloat16": partial(sentence_transformers, dtype="bfloat16"),
    "infinity": infinity,
}


def main() -> None:
    """Run the step named by the first argument."""
    what, folder, other = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "checkpoint":
        write_checkpoint(folder, other)
    else:
        print(json.dumps(asyncio.run(ENGINES[what](folder, json.loads(other.read_text())))))


if __name__ == "__main__":
    main()
