"""Rows in PostgreSQL's binary forms, for a table of any layout."""

from .chunk_rows import copy_chunks, count_chunks, delete_chunks, update_chunks, upsert_chunks

__all__ = ["copy_chunks", "count_chunks", "delete_chunks", "update_chunks", "upsert_chunks"]
