"""Model tools, doctor, tuning and local Triton: the commands around the qwen3-triton gateway."""

from importlib.metadata import version

__version__ = version("qwen3-triton-tools")
