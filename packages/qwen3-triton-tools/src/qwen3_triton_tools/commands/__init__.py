"""The commands beside `serve`, `triton` and `up`, a file each; what they do stands elsewhere."""
