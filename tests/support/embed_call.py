"""`POST /embed` as called without our client."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np

from qwen3_triton_gateway.tensors import Float32Matrix

TIMEOUT_SECONDS = 120.0


def post(url: str, **body: Any) -> httpx2.Response:
    # To load certificates, unused here, takes longer than the call.
    return httpx2.post(f"{url}/embed", json=body, timeout=TIMEOUT_SECONDS, verify=False)


def embed(url: str, texts: Sequence[str], **body: Any) -> Float32Matrix:
    """Embed texts into float32 rows; fail with the message of any status other than 200."""
    response = post(url, texts=list(texts), encoding_format="base64", **body)
    assert response.status_code == 200, response.text
    rows = [base64.b64decode(row) for row in response.json()["embeddings"]]
    return np.stack([np.frombuffer(row, dtype="<f4") for row in rows]).astype(np.float32)


def cosines(left: Float32Matrix, right: Float32Matrix) -> Float32Matrix:
    """Return the cosine of each pair of rows, in float64, whatever their norms."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    products = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / products
