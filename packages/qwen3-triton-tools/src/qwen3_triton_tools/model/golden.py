"""What the publishers of Qwen3-Embedding and others measured: texts, ids, scores, components.

Sources:
    Queries, documents, scores of 0.6B: https://huggingface.co/Qwen/Qwen3-Embedding-0.6B, usage
    with transformers; scores of 4B and 8B: the cards of those models, same texts.
    The vector of 0.6B: huggingface/text-embeddings-inference,
    `backends/candle/tests/snapshots/test_qwen3__qwen3_cpu_single.snap`, float32 on a CPU.
    Token ids: computed from Qwen's published vocabulary of 151,643 byte pairs (`qwen.tiktoken` and
    the family's split expression), which the three sizes share.
    Overflowing texts: QwenLM/Qwen3-Embedding issues 164 and 186, ollama issue 12921.
"""

from __future__ import annotations

QUERIES = ("What is the capital of China?", "Explain gravity")
DOCUMENTS = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
)
# A row for each query, a column for each document, over all of the model's dimensions.
SCORES = {
    "0.6b": ((0.7646, 0.1414), (0.1355, 0.6000)),
    "4b": ((0.7534, 0.1147), (0.0320, 0.6258)),
    "8b": ((0.7493, 0.0751), (0.0880, 0.6318)),
}

TEI_TEXT, TEI_NEIGHBOUR = "What is Deep Learning?", "Deep Learning is..."
TEI_HEAD = (-0.015721, -0.03191, -0.010947, -0.066955, -0.017525, 0.064638, -0.062125, 0.003443)
TEI_COSINE = 0.902887

# Letters, digits, Chinese, punctuation, accents: each is cut by another rule of the vocabulary.
TOKEN_PROBE = "In 2025, 北京 — naïve café!"
# fmt: off
QWEN_PROBE_IDS = (
    641, 220, 17, 15, 17, 20, 11, 94305, 245, 46553, 1959, 94880, 586, 51950, 0,
)
# fmt: on
QWEN_END_TOKEN_ID = 151643

OVERFLOWING_TEXTS = (
    "importance of life",
    "importance",
    "import",
    "import numpy as np",
    "important dates in the history of imports",
    "import os\nimport sys\n\nprint(sys.version)",
)
