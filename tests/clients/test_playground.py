"""The playground shows what the API returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from node_programs import run_node
from served_product import embed, running


def playground(url: str, *key: str) -> list[dict[str, Any]]:
    """Open the page, press its button, and return what it shows; again with a key, if any."""
    return run_node("playground.mjs", f"{url}/", *key)


def texts_of(items: Sequence[Sequence[str]]) -> list[str]:
    return [item[0].partition(". ")[2] for item in items]


def test_it_shows_documents_by_their_vectors_and_by_the_reranker(tmp_path: Path) -> None:
    with running("up", "--rerank", log=tmp_path / "log") as url:
        (page,) = playground(url)
        before, after = texts_of(page["before"]), texts_of(page["after"])
        query = embed(url, ["Which animals feed milk to their young?"], input_type="query")[0]
        similarities = embed(url, before) @ query
    assert page["health"] == "ready"
    assert not page["error"]
    assert np.all(np.diff(similarities) <= 0)
    assert [float(item[1]) for item in page["before"]] == [
        float(f"{score:.3f}") for score in similarities
    ]
    scores = [float(item[1]) for item in page["after"]]
    assert scores == sorted(scores, reverse=True)
    moved = 0
    for place, (text, item) in enumerate(zip(after, page["after"], strict=True)):
        rise = before.index(text) - place
        moved += rise != 0
        told = f"{'up' if rise > 0 else 'down'} {abs(rise)} from" if rise else "same place"
        assert told in item[2]
    assert 0 < moved == int(page["summary"].split()[2])
    assert {"curl", "curl, rerank", "LangChain, rerank"} <= {*page["clients"]}


def test_it_asks_for_a_key_and_shows_no_reranker_where_there_is_none(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("demo:a-key-of-the-playground\n")
    with running("serve", "--api-keys-file", keys, log=tmp_path / "log") as url:
        without, page = playground(url, "a-key-of-the-playground")
    assert "key" in without["error"]
    assert without["options"]
    assert not without["before"]
    assert not page["error"]
    assert page["after"] is None
    assert len(page["before"]) == 8
    assert page["snippet"].startswith(f"curl -s {url}/embed")
    assert not any("rerank" in name for name in page["clients"])
