"""One file for each dialect; each thin: parse, call the embedder, shape the answer."""
