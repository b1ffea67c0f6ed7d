"""Rows in PostgreSQL's binary formats, for a table of any layout."""
