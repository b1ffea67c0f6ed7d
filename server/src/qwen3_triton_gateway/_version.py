from importlib.metadata import version

__version__ = version("qwen3-triton-gateway")
