"""Texts per second of other engines, in-process, on our weights.

`peers.py` runs this in environments that have them, separate from the gateway's:

    python bench/peer_engines.py checkpoint MODEL_DIR FOLDER    # needs torch and transformers
    python bench/peer_engines.py sentence-transformers FOLDER TEXTS.json
    python bench/peer_engines.py infinity FOLDER TEXTS.json
    python bench/peer_engines.py llama FOLDER TEXTS.json

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


async def llama(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Embed with llama.cpp in q8_0, its usual precision on CPUs, through its Python package."""
    from llama_cpp import LLAMA_POOLING_TYPE_LAST, Llama
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    class TokenizedElsewhere(Llama):
        """llama.cpp with the tokens of our tokenizer: the file has none."""

        def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
            return tokenizer.encode(text.decode()).ids

    model = TokenizedElsewhere(
        str(write_gguf(folder)),
        embedding=True,
        pooling_type=LLAMA_POOLING_TYPE_LAST,
        n_ctx=MAX_LENGTH * BATCH_SIZE,
        n_batch=MAX_LENGTH,
        n_ubatch=MAX_LENGTH,
        n_seq_max=BATCH_SIZE,
        n_threads=os.cpu_count(),
        n_threads_batch=os.cpu_count(),
        verbose=False,
    )

    async def embed(texts: list[str]) -> Any:
        return model.embed(texts, normalize=True)

    return await _measure(embed, texts)


def write_gguf(folder: Path) -> Path:
    """Write a checkpoint as llama.cpp reads it, with its matrices in q8_0."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    layers = config["num_hidden_layers"]
    writer.add_block_count(layers)
    writer.add_context_length(MAX_LENGTH)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, layers)
    for name, array in load_file(folder / "model.safetensors").items():
        kind = gguf.GGMLQuantizationType.Q8_0 if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        named = names.get_name(f"model.{name}", try_suffixes=(".weight",))
        writer.add_tensor(named, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
    "llama": llama,
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
