"""Tables in PostgreSQL: found, checked, and made where they are missing."""

from .preparation import find_table, prepare_table, version_warning

__all__ = ["find_table", "prepare_table", "version_warning"]
