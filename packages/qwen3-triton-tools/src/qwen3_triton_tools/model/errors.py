"""What can go wrong with a model on its way to Triton."""


class ModelToolError(Exception):
    """A model cannot be read, written or served; the message says what to do."""
