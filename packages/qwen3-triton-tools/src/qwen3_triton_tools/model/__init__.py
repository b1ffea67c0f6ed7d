"""Models on their way to Triton: inspected, fetched, pooled, and laid out as a repository."""
