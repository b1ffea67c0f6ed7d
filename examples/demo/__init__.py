"""The whole stack on one machine: Triton, gateway, PostgreSQL, LangChain and LlamaIndex."""
