"""HTTP routes: one module per dialect, each parsing, calling the embedder, shaping the answer."""
