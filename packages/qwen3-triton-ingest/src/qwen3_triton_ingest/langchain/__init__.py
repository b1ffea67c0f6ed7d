"""LangChain: its own tables, written in bulk, and a retriever for any table that was loaded."""

from .retriever import PostgresRetriever
from .store import BulkPGVectorStore

__all__ = ["BulkPGVectorStore", "PostgresRetriever"]
