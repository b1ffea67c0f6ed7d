"""The whole path on one machine: Triton, gateway, PostgreSQL, LangChain and LlamaIndex."""
