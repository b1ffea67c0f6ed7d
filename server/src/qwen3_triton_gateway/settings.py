"""Every setting of the gateway, declared once: variable, flag of `serve`, help and bounds."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .rerank_prompt import DEFAULT_INSTRUCTION

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE = re.compile(r"[ -~]+")
# What the protocol or tritonclient sets, in HTTP or in gRPC.
CONNECTION_HEADERS = {
    *("accept-encoding", "connection", "content-encoding", "content-length", "content-type"),
    *("host", "inference-header-content-length", "te", "transfer-encoding", "upgrade"),
}
Pooling: TypeAlias = Literal["last_token", "mean", "cls", "graph"]
Engine: TypeAlias = Literal["auto", "onnxruntime", "openvino"]
WantedPrecision: TypeAlias = Literal["auto", "float32", "bfloat16", "int8"]
# What a model is served for.
Task: TypeAlias = Literal["embed", "rerank"]
# The setting with the maximum length of its texts.
LENGTH_SETTINGS: dict[Task, str] = {"embed": "EMBED_MAX_LENGTH", "rerank": "RERANK_MAX_LENGTH"}
# What a model is found to compute in: `graph` is whatever its graph states.
Precision: TypeAlias = Literal["graph", "float32", "bfloat16", "int8"]

MIN_DIMENSIONS = 32
MAX_TEXTS = 2048


class ModelAlias(BaseModel):
    """What a name of the model says about the texts that are sent to it."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True
    )

    input_type: Literal["document", "query"] | None = None
    instruction: str | None = None

    @model_validator(mode="after")
    def _instruction_of_queries(self) -> ModelAlias:
        if self.instruction is not None and self.input_type != "query":
            msg = 'An `instruction` applies to queries only. Add `"input_type": "query"`.'
            raise ValueError(msg)
        return self


class Settings(BaseSettings):
    """The gateway's configuration, constructed with variable names: `Settings(EMBED_PORT=0)`.

    Constructing it also reads the environment, so only the command line does. A field's only alias
    is its variable, so that an unrelated `PORT` or `HOST` in the environment is never used.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        # A compose file passes an unset variable as an empty string.
        env_ignore_empty=True,
        allow_inf_nan=False,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    triton_url: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        validation_alias="TRITON_URL",
        description=(
            "Triton server: http://HOST:PORT or grpc://HOST:PORT, https or grpcs for TLS. "
            "Several, separated by commas, share the load. With credentials, "
            "http://USER:PASSWORD@HOST:PORT; behind a proxy, http://HOST:PORT/PATH."
        ),
        repr=False,  # may contain a password
    )
    triton_model: str = Field(
        default="qwen3_embed_onnx",
        validation_alias="TRITON_MODEL",
        description="Name of the model in Triton's model repository.",
    )
    triton_headers: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict[str, SecretStr],
        validation_alias="EMBED_TRITON_HEADERS",
        description=(
            "Headers of every request to Triton, over HTTP and gRPC: NAME=VALUE, separated by "
            "commas, or a JSON object."
        ),
    )
    triton_ca_file: Path | None = Field(
        default=None,
        validation_alias="EMBED_TRITON_CA_FILE",
        description=(
            "Certificates in PEM format to trust instead of the system's, for https and grpcs."
        ),
    )
    tokenizer_path: Path | None = Field(
        default=None,
        validation_alias="TOKENIZER_PATH",
        description=(
            "Folder that contains the model's tokenizer.json, or the file itself; by default "
            "the folder of --model-dir."
        ),
    )
    model_id: str | None = Field(
        default=None,
        validation_alias="EMBED_MODEL_ID",
        description=(
            "Model name in responses, part of the fingerprint; by default inferred from the "
            "model's hidden size."
        ),
    )
    model_aliases: Annotated[dict[str, ModelAlias], NoDecode] = Field(
        default_factory=dict[str, ModelAlias],
        validation_alias="EMBED_MODEL_ALIASES",
        description=(
            "Other names that requests may use for the model, comma-separated. Or a JSON object of "
            'names, each with {"input_type": ..., "instruction": ...} or {}, for clients that can '
            "send neither."
        ),
    )
    model_dir: Path | None = Field(
        default=None,
        validation_alias="EMBED_MODEL_DIR",
        description=(
            "Folder with model.onnx (or onnx/model.onnx, as on the hub) and tokenizer.json, to run "
            "the model in the gateway's process instead of Triton."
        ),
    )
    engine: Engine = Field(
        default="auto",
        validation_alias="EMBED_ENGINE",
        description=(
            "What runs the model in the gateway's process, or in the local Triton of `triton` and "
            "`up`: auto is OpenVINO where it is installed on x86-64, else ONNX Runtime."
        ),
    )
    precision: WantedPrecision = Field(
        default="auto",
        validation_alias="EMBED_PRECISION",
        description=(
            "What OpenVINO computes in: auto is bfloat16 where the processor multiplies in it, "
            "else float32. int8 needs weights from `qwen3-triton model quantize`, which measures "
            "what it loses."
        ),
    )
    engine_cache_dir: Path | None = Field(
        default=None,
        validation_alias="EMBED_ENGINE_CACHE_DIR",
        description=(
            "Folder in which OpenVINO keeps compiled models, for quick starts; without it, a model "
            "is compiled at each start."
        ),
    )
    rerank_triton_model: str | None = Field(
        default=None,
        validation_alias="RERANK_TRITON_MODEL",
        description=(
            "Name of a reranker in Triton's model repository, to serve it next to the embedding "
            "model; alone, if neither --triton-model, --tokenizer-path nor --model-dir is set."
        ),
    )
    rerank_model_dir: Path | None = Field(
        default=None,
        validation_alias="RERANK_MODEL_DIR",
        description=(
            "Folder with a reranker's model.onnx and tokenizer.json, to run it in the gateway's "
            "process; alone, if no embedding model is named."
        ),
    )
    rerank_tokenizer_path: Path | None = Field(
        default=None,
        validation_alias="RERANK_TOKENIZER_PATH",
        description=(
            "Folder that contains the reranker's tokenizer.json, or the file itself; by default "
            "the folder of --rerank-model-dir, else --tokenizer-path."
        ),
    )
    rerank_model_id: str | None = Field(
        default=None,
        validation_alias="RERANK_MODEL_ID",
        description="The reranker's name in requests and responses; by default that of the model.",
    )
    rerank_instruction: str = Field(
        default=DEFAULT_INSTRUCTION,
        validation_alias="RERANK_INSTRUCTION",
        description="What makes a document relevant, if the request sends no `instruction`.",
    )
    rerank_max_length: int = Field(
        default=8192,
        ge=128,
        validation_alias="RERANK_MAX_LENGTH",
        description=(
            "Maximum tokens of a query and a document with the prompt. Longer documents are "
            "truncated or refused, depending on the request; a query is never truncated. The "
            "default is lowered to what the config.json next to the tokenizer states."
        ),
    )
    rerank_split_special_tokens: bool = Field(
        default=False,
        validation_alias="RERANK_SPLIT_SPECIAL_TOKENS",
        description=(
            "Whether `<|im_end|>` and the like within queries, documents and instructions are "
            "plain text. Otherwise they are tokens of the prompt, as on the model card, and a "
            "document can end its turn and write the answer."
        ),
    )
    threads: int = Field(
        default=0,
        ge=0,
        validation_alias="EMBED_THREADS",
        description=(
            "Threads that run the model in the gateway's process, or in the local Triton of "
            "`triton` and `up`; 0 is one per core, or as many as a quota of CPU time pays for."
        ),
    )
    pooling: Pooling = Field(
        default="last_token",
        validation_alias="EMBED_POOLING",
        description=(
            "What a text's vector is: the state of its end token (last_token, as the family is "
            "trained), of its first token (cls), or the mean. A graph that pools is refused if it "
            "does not behave like this; graph accepts its pooling, whatever it is."
        ),
    )
    max_length: int = Field(
        default=1024,
        ge=2,
        validation_alias="EMBED_MAX_LENGTH",
        description=(
            "Maximum tokens per text, including the end token. Longer texts are truncated or "
            "refused, depending on the request. The default is lowered to what the config.json "
            "next to the tokenizer states."
        ),
    )
    output_dim: int = Field(
        default=1024,
        ge=MIN_DIMENSIONS,
        validation_alias="EMBED_OUTPUT_DIM",
        description=(
            "Dimensions of a vector if the request sets none; at most the model's hidden size."
        ),
    )
    timeout_seconds: float = Field(
        default=120.0,
        gt=0,
        validation_alias="EMBED_TIMEOUT_S",
        description="Deadline of a request in seconds; a request that misses it gets status 504.",
    )
    max_batch_tokens: int = Field(
        default=8192,
        ge=1,
        validation_alias="EMBED_MAX_BATCH_TOKENS",
        description=(
            "Maximum tokens per batch, padding included; fewer if the model would take "
            "longer than 0.1 s."
        ),
    )
    max_queue_tokens: int = Field(
        default=4_194_304,
        ge=1,
        validation_alias="EMBED_MAX_QUEUE_TOKENS",
        description=(
            "Maximum tokens waiting for the model; a request that exceeds it gets status 429."
        ),
    )
    max_queue_requests: int = Field(
        default=1024,
        ge=1,
        validation_alias="EMBED_MAX_QUEUE_REQUESTS",
        description=(
            "Maximum embedding requests in progress; a request that exceeds it gets status 429."
        ),
    )
    max_connections: int = Field(
        default=2048,
        ge=1,
        validation_alias="EMBED_MAX_CONNECTIONS",
        description=(
            "Maximum open connections, as far as there are file descriptors for them; beyond "
            "it, the one that has been idle longest makes room."
        ),
    )
    keep_alive_seconds: float = Field(
        default=75.0,
        gt=0,
        validation_alias="EMBED_KEEP_ALIVE_S",
        description=(
            "Seconds that an idle connection stays open; longer than proxies in front of the "
            "gateway keep theirs."
        ),
    )
    read_timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        validation_alias="EMBED_READ_TIMEOUT_S",
        description=(
            "Seconds from the first byte of a request in which its body must arrive; a slower one "
            "gets status 408. For headers, at most 10 s."
        ),
    )
    max_memory_bytes: int | None = Field(
        default=None,
        ge=1024 * 1024,
        validation_alias="EMBED_MAX_MEMORY_BYTES",
        description=(
            "Memory for all requests in progress in bytes, from their bodies to their answers; a "
            "request that exceeds it gets status 429. By default a quarter of the container's or "
            "machine's memory, at most 128 MiB."
        ),
    )
    cache_bytes: int = Field(
        default=0,
        ge=0,
        validation_alias="EMBED_CACHE_BYTES",
        description="Memory for cached vectors in bytes; 0 disables the cache.",
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1024,
        validation_alias="EMBED_MAX_BODY_BYTES",
        description="Maximum size of a request body in bytes; a larger one gets status 413.",
    )
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list[SecretStr],
        validation_alias="EMBED_API_KEYS",
        description=(
            "Accepted API keys, comma-separated; callers send one as 'Authorization: Bearer "
            "KEY'. Without keys, every caller is accepted."
        ),
    )
    api_keys_file: Path | None = Field(
        default=None,
        validation_alias="EMBED_API_KEYS_FILE",
        description=(
            "File with additional API keys, one per line, or name:key; metrics and logs show the "
            "name. Lines that start with # are skipped."
        ),
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        validation_alias="EMBED_CORS_ORIGINS",
        description="Origins of web pages that may call the gateway, comma-separated; * for all.",
    )
    root_path: str = Field(
        default="",
        validation_alias="EMBED_ROOT_PATH",
        description=(
            "Path prefix under which a proxy serves the gateway, such as /embeddings-api, whether "
            "or not the proxy removes it."
        ),
    )
    openai_truncate: bool = Field(
        default=False,
        validation_alias="EMBED_OPENAI_TRUNCATE",
        description=(
            "Whether texts on /v1/embeddings that are too long are truncated if the request does "
            "not say, for clients that cannot send `truncate`."
        ),
    )
    tls_certificate: Path | None = Field(
        default=None,
        validation_alias="EMBED_TLS_CERTIFICATE",
        description=(
            "Certificate chain in PEM format; with it and --tls-key, the gateway serves HTTPS."
        ),
    )
    tls_key: Path | None = Field(
        default=None,
        validation_alias="EMBED_TLS_KEY",
        description="Private key of the certificate in PEM format.",
    )
    host: str = Field(
        default="127.0.0.1",
        validation_alias="EMBED_HOST",
        description="Address to listen on; 0.0.0.0 for all interfaces.",
    )
    port: int = Field(
        default=8101,
        ge=0,
        le=65535,
        validation_alias="EMBED_PORT",
        description="Port to listen on; 0 picks a free port and logs it.",
    )
    shutdown_delay_seconds: float = Field(
        default=1.0,
        ge=0,
        validation_alias="EMBED_SHUTDOWN_DELAY_S",
        description=(
            "Seconds after SIGTERM in which requests are still accepted, while readiness is "
            "already false."
        ),
    )
    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description=(
            "OTLP collector that receives traces over HTTP, such as http://host:4318; other "
            "OTEL_ variables apply too."
        ),
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        validation_alias="EMBED_LOG_FORMAT",
        description="Log lines as text or as JSON objects.",
    )

    @field_validator("triton_url", "cors_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _parse_aliases(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        begins_with = value.strip()[:1]
        if begins_with not in ("{", "[", '"'):
            return {name.strip(): ModelAlias() for name in value.split(",") if name.strip()}
        try:
            aliases = json.loads(value)
        except ValueError:
            aliases = None
        form = 'Write names separated by commas, or {"NAME": {"input_type": "query"}}.'
        if not isinstance(aliases, dict):
            raise ValueError(f"It begins with `{begins_with}` and is not a JSON object. {form}")
        for name, alias in cast("dict[str, object]", aliases).items():
            if not name.strip() or not isinstance(alias, dict):
                raise ValueError(f"{name!r} has no object with its input type. {form}")
        return cast("dict[str, object]", aliases)

    @field_validator("triton_headers", mode="before")
    @classmethod
    def _parse_headers(cls, value: object) -> object:
        return parse_headers(value) if isinstance(value, str) else value

    @field_validator("root_path")
    @classmethod
    def _one_leading_slash(cls, value: str) -> str:
        path = value.strip("/")
        return f"/{path}" if path else ""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _no_blank_keys(cls, value: object) -> object:
        """Refuse a value without a key in it, which would leave the gateway open by accident."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list):
            return parts
        keys = [_stripped(part) for part in cast("list[object]", parts)]
        keys = [key for key in keys if key]
        if parts and not keys:
            msg = "It contains no key. Set at least one, or unset it to accept every caller."
            raise ValueError(msg)
        return keys

    @field_validator("api_keys_file", "tls_certificate", "tls_key", "triton_ca_file")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is not None and (path.is_dir() or not os.access(path, os.R_OK)):
            msg = f"The file {str(path)!r} cannot be read."
            raise ValueError(msg)
        return path

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            msg = "EMBED_TLS_CERTIFICATE and EMBED_TLS_KEY belong together. Set both or neither."
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _one_backend(self) -> Settings:
        if self.rerank_triton_model and self.rerank_model_dir:
            msg = "RERANK_TRITON_MODEL and RERANK_MODEL_DIR are both set. Set only one of them."
            raise ValueError(msg)
        if self.rerank_triton_model and not self.triton_url:
            msg = "RERANK_TRITON_MODEL needs TRITON_URL, the address of the Triton that serves it."
            raise ValueError(msg)
        if self.triton_url and self.model_dir and not self.rerank_triton_model:
            msg = "TRITON_URL and EMBED_MODEL_DIR are both set. Set only one of them."
            raise ValueError(msg)
        return self

    @property
    def serves_reranker(self) -> bool:
        return bool(self.rerank_triton_model or self.rerank_model_dir)

    @property
    def serves_embeddings(self) -> bool:
        """Whether an embedding model is served: always, unless only a reranker is named."""
        is_named = bool(
            self.model_dir or self.tokenizer_path or "triton_model" in self.model_fields_set
        )
        on_triton = bool(self.triton_url) and not self.rerank_triton_model
        return is_named or on_triton or not self.serves_reranker


def parse_headers(text: str) -> dict[str, str]:
    """Parse `NAME=VALUE,NAME=VALUE`, also with colons, or a JSON object.

    Raises:
        ValueError: It is neither, or a header cannot be sent. The message shows no value.
    """
    if text.lstrip().startswith("{"):
        try:
            headers: Any = json.loads(text)
        except ValueError:
            raise ValueError("It is not a JSON object.") from None
        if not all(isinstance(value, str) for value in headers.values()):
            raise ValueError("The values of its JSON object are not all strings.")
    else:
        parts = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
        pairs = [re.split("[=:]", part, maxsplit=1) for part in parts]
        if any(len(pair) == 1 for pair in pairs):
            msg = "A part of it is not NAME=VALUE. Write values with commas as a JSON object."
            raise ValueError(msg)
        headers = {name.strip(): value.strip() for name, value in pairs}
    for number, (name, value) in enumerate(headers.items(), start=1):
        if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
            msg = f"Header {number} is invalid: names are words, and values printable ASCII."
            raise ValueError(msg)
        if name.lower() in CONNECTION_HEADERS:
            raise ValueError(f"{name!r} is set by the gateway itself. Remove it.")
    return headers


def _stripped(key: object) -> object:
    text = key.get_secret_value() if isinstance(key, SecretStr) else key
    return text.strip() if isinstance(text, str) else text
